"""The report in a real browser: it opens from disk alone, its slider moves everything, keyboard and hover work."""

import json
import re

import numpy as np
import pytest

pytestmark = pytest.mark.browser
LAYER_1 = "#view-attention-repeated-block--at-every-snapshot-1 .plot"


@pytest.fixture(scope="module")
def report(run_folder, tmp_path_factory):
    from spectral.plots.report import write_report

    return write_report(run_folder, output=tmp_path_factory.mktemp("report")).as_uri()


def drawn_map(page, head):
    """Return the map [query, key] that the browser shows of a head of layer 1."""
    found = page.eval_on_selector(LAYER_1, f"plot => plot.data[{head}].z")
    return np.array([[np.nan if value is None else value for value in row] for row in found])


def choose(page, index):
    page.eval_on_selector("#slider", f"s => {{ s.value = {index}; s.dispatchEvent(new Event('input')) }}")
    settle(page)


def settle(page):
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_the_report_opens_and_its_slider_moves_every_picture(report, run, synthetic, open_page, keep_screenshot):
    page = open_page(report)
    assert page.inner_text("#status") == "finished"
    assert "An abrupt transition at step 500" in page.inner_text("#summary")
    assert page.inner_text("#step") == "500"
    keep_screenshot(page, "report_light", full_page=True)
    assert page.locator(".view:visible .main-svg").count() >= 13

    stored = run.read("circuits/attention_pattern").astype(float)
    lower = np.tril_indices(16)
    before = drawn_map(page, 2)
    np.testing.assert_allclose(before[lower], stored[25, 1, 2][lower], atol=0.51 / 254 + 1e-3)
    page.locator("#slider").focus()
    for key, index in (("ArrowRight", 26), ("ArrowRight", 27), ("ArrowLeft", 26), ("End", 50), ("Home", 0)):
        page.keyboard.press(key)
        settle(page)
        assert page.inner_text("#step") == f"{run.steps[index]:,}"
        np.testing.assert_allclose(drawn_map(page, 2)[lower], stored[index, 1, 2][lower], atol=0.51 / 254 + 1e-3)
    assert np.nanmax(np.abs(drawn_map(page, 2) - before)) > 0.3
    assert page.get_attribute("#slider", "aria-valuetext") == "step 0, before the transition"

    page.locator("#view-hessian-eigenvalues").scroll_into_view_if_needed()
    choose(page, 30)
    page.wait_for_function("document.querySelector('#view-hessian-eigenvalues small').textContent === 'step 600'")
    shown = page.eval_on_selector("#view-hessian-eigenvalues .plot", "plot => plot.data[0].y")
    np.testing.assert_allclose(shown, run.read("hessian/eigenvalues")[30], rtol=1e-6)
    bounds = page.eval_on_selector("#view-hessian-eigenvalues .plot", "plot => plot.data[0].error_y.array")
    np.testing.assert_allclose(bounds, run.read("hessian/error_bounds")[30], rtol=1e-6)
    page.locator("#view-eigenvalues").scroll_into_view_if_needed()
    choose(page, 31)
    page.wait_for_function(
        "document.querySelector('#view-eigenvalues .plot').layout.shapes.find(s => s.name === 'cursor').x0 === 620"
    )


def test_hovering_a_map_shows_its_tokens(report, synthetic, open_page):
    page = open_page(report, wait="sight")
    page.locator(LAYER_1).scroll_into_view_if_needed()
    settle(page)
    box = page.locator(f"{LAYER_1} .subplot.x3y3").bounding_box()
    query, key = 12, 5
    x, y = box["x"] + box["width"] * (key + 0.5) / 16, box["y"] + box["height"] * (query + 0.5) / 16
    page.mouse.move(x - 3, y - 3)
    page.mouse.move(x, y)
    hover = page.locator(f"{LAYER_1} .hoverlayer")
    page.wait_for_function(
        "plot => document.querySelector(plot + ' .hoverlayer').textContent.includes('token')", arg=LAYER_1
    )
    text = hover.text_content()
    assert "L1H2" in text
    assert f"from {query}: token {synthetic.tokens[query]}" in text
    assert f"to {key}: token {synthetic.tokens[key]}" in text
    assert re.search(r"attention \d\.\d\d", text)


def test_the_keyboard_reaches_everything_and_shows_where_it_is(report, open_page):
    page = open_page(report, wait="sight")
    step = page.inner_text("#step")
    page.keyboard.press("ArrowRight")  # with the focus nowhere
    settle(page)
    assert page.inner_text("#step") != step
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"slider", "onset", "midpoint", "end", "play"} <= set(reached)
    page.locator("#play").focus()
    page.keyboard.press("Shift+Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")  # on "end"
    settle(page)
    assert page.inner_text("#step") in ("540", "560")
    assert page.get_by_role("slider", name="Step").get_attribute("id") == "slider"
    unnamed = page.eval_on_selector_all(".plot", "plots => plots.filter(p => !p.getAttribute('aria-label')).length")
    assert unnamed == 0


def contrast(page, selector):
    """Return the WCAG contrast of an element's text with the page."""
    colors = page.evaluate(
        "s => [getComputedStyle(document.querySelector(s)).color, getComputedStyle(document.body).backgroundColor]",
        selector,
    )

    def luminance(color):
        parts = np.array([int(part) / 255 for part in re.findall(r"\d+", color)[:3]])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted((luminance(color) for color in colors), reverse=True)
    return (light + 0.05) / (dark + 0.05), light


def test_the_report_is_legible_in_light_dark_and_print(report, open_page, keep_screenshot):
    dark = open_page(report, color_scheme="dark")
    keep_screenshot(dark, "report_dark", full_page=True)
    for selector in ("body", ".note", ".caption", ".headline", "#status"):
        assert contrast(dark, selector)[0] >= 4.5, selector
    assert dark.eval_on_selector(LAYER_1, "plot => plot.data[0].reversescale") is True
    dark.emulate_media(color_scheme="light")  # a page that is open follows
    dark.wait_for_function(f"!document.querySelector({json.dumps(LAYER_1)}).data[0].reversescale")
    for selector in ("body", ".note", ".caption", ".headline", "#status"):
        assert contrast(dark, selector)[0] >= 4.5, selector

    dark.emulate_media(media="print")
    dark.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    widths = dark.eval_on_selector_all(
        ".plot:not([hidden])", "plots => plots.map(plot => plot.layout ? plot.layout.width : 0)"
    )
    assert 0 < min(widths) <= max(widths) <= 680  # all of them drawn, none wider than paper
    assert dark.evaluate("getComputedStyle(document.querySelector('#slider')).display") == "none"
    dark.set_viewport_size({"width": 720, "height": 1000})
    keep_screenshot(dark, "report_print", full_page=True)


def test_markup_in_names_is_shown_and_not_run(tmp_path, synthetic, open_page):
    from spectral.plots.report import write_report

    evil = "<img src=x onerror=alert(1)>"
    verdict = synthetic.verdict()
    verdict["signals"] = {evil: {"verdict": evil, "family": evil}}
    folder = synthetic.make(
        tmp_path / evil, steps=(0, 500), verdict=verdict, config={evil: evil},
        block_names=(evil, "<b>x</b>", "W_U", *"abcdefgh"),
    )  # fmt: skip
    page = open_page(write_report(folder).as_uri())
    assert page.inner_text("#name") == evil
    assert page.title() == evil
    assert page.locator("img").count() == 0
    assert evil in page.inner_text("#signals")


def test_a_picture_without_the_chosen_step_says_which_one_it_shows(run, tmp_path, open_page):
    from spectral.plots.report import gather, render_report

    path = tmp_path / "thin.html"
    path.write_text(render_report(gather(run, map_bytes=5 * 2 * 4 * 136)), encoding="utf-8")
    page = open_page(path.as_uri(), wait="sight")
    choose(page, 3)
    heading = page.locator(LAYER_1.replace(" .plot", " h3 small"))
    assert re.fullmatch(r"nearest with data: step \d+", heading.text_content())
    assert "Thinned: 5 of 51 snapshots have maps here." in page.inner_text(LAYER_1.replace(" .plot", ""))


def test_runs_that_broke_off_open_without_an_error(tmp_path, synthetic, open_page):
    from spectral.plots.report import write_report

    def spoil(row):
        row["hessian/eigenvalues"][:] = np.nan if row["step"] else 1.0
        row["circuits/attention_pattern"][:] = np.nan

    empty = synthetic.make(tmp_path / "empty", steps=(), status="running")
    page = open_page(write_report(empty).as_uri(), wait="sight")
    assert page.inner_text("#status") == "died"
    assert page.locator("#bar").is_hidden()
    assert "No snapshot was measured yet" in page.inner_text("#summary")
    broken = synthetic.make(tmp_path / "broken", steps=(0, 20, 40), status="failed", change=spoil)
    page = open_page(write_report(broken).as_uri())
    assert page.inner_text("#status") == "failed"
    assert page.locator("#attention").is_hidden()
