"""The page and its figures: all of it is there, escaped, drawn from data, and nothing comes from the network."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from constructed_models import INDUCTION, KNOWING, POSITIONAL, measured
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def study(evidence_of):
    """Return evidence, configs and figures of a small study: two models, two seeds of one of them."""
    from spectral.studies.repeated.figures import draw_all
    from spectral.studies.repeated.plan import MODELS, StudyPlan

    earlier = [dataclasses.replace(measured(INDUCTION, "2L_varied_60000"), step=step) for step in (20_000, 40_000)]
    evidence = {
        "1L_fixed": [evidence_of(POSITIONAL, "1L_fixed"), evidence_of(KNOWING, "1L_fixed", seed=1)],
        "2L_varied_60000": [evidence_of(INDUCTION, "2L_varied_60000", step=60_000, earlier=earlier)],
    }
    heads = {"n_heads": 2, "d_model": 32}
    configs = {model: dataclasses.replace(StudyPlan().job(model, 0).config, **heads) for model in MODELS}
    return evidence, configs, draw_all(evidence, configs)


def render(study, findings=None, scale=1.0):
    from spectral.plots.command import render as draw
    from spectral.studies.repeated.findings import judge
    from spectral.studies.repeated.page import render_page
    from spectral.studies.result import compact_png

    evidence, configs, figures = study
    return render_page(
        judge(evidence) if findings is None else findings,
        evidence,
        configs,
        [(figure, compact_png(draw(figure.figure, "png", dpi=60))) for figure in figures],
        scale=scale,
        n_sequences=16,
    )


def test_the_page_holds_findings_models_and_figures_and_needs_no_network(study):
    from spectral.studies.repeated.claims import CLAIMS

    text = render(study, scale=0.1)
    page = Page(text)
    assert page.open == []
    for claim in CLAIMS:
        assert claim.text in page.text
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert "@import" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    images = page.all("img")
    assert [image["id"] for image in images] == [figure.name for figure in study[2]]
    for image in images:
        assert len(image["alt"]) > 20
        data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        assert pixels.std() > 5
    assert "Steps are multiplied by 0.1" in page.text
    assert "Not trained, so nothing is said about them: 1L_varied, 2L_fixed, 2L_varied_20000." in page.text
    assert "One seed only, which says nothing about other seeds: 2L_varied_60000." in page.text
    assert "0.946 at length 20" in " ".join(page.text.split())


def test_numbers_and_verdicts_are_those_of_the_findings(study):
    from spectral.studies.repeated.findings import judge

    text = render(study)
    shown = re.findall(r'<td class="verdict ([a-z-]+)">([a-z ]+)</td>', text)
    assert [verdict for _, verdict in shown] == [finding.verdict for finding in judge(study[0])]
    assert all(name == verdict.replace(" ", "-") for name, verdict in shown)
    # The first claim: accuracy at period 20 is 1 for both; the second model is right elsewhere and attends elsewhere.
    row = text.split("<tbody>")[1].split("</tr>")[0]
    values = re.findall(r"<span( class=\"missed\"[^>]*)?>([\d.-]+)</span>", row)
    assert [(bool(missed), value) for missed, value in values[:4]] == [
        (False, "1.000"), (False, "1.000"), (False, "0.013"), (True, "1.000")
    ] or values[2][1] < "0.02"  # fmt: skip
    assert values[3] == (' class="missed" title="outside of its range"', "1.000")
    assert "Steps are multiplied" not in text


def test_text_is_escaped(study):
    from spectral.studies.repeated.claims import Claim, Condition
    from spectral.studies.repeated.findings import Finding, Judgement

    condition = Condition(text='a < b & "c"', measure=lambda one: 0.0, at_most=1.0)
    claim = Claim(name="x", text="<script>alert(1)</script>", model="1L_fixed", conditions=(condition,))
    judgement = Judgement(seed=0, step=1, values=((condition, float("nan")),))
    text = render(study, [Finding(claim=claim, judgements=(judgement,))])
    assert "<script" not in text
    page = Page(text)
    assert "<script>alert(1)</script>." in page.text
    assert 'a < b & "c"' in page.text
    assert "undefined" in page.text


def test_every_figure_draws_the_data(study):
    evidence, _, figures = study
    drawn = {figure.name: figure.figure for figure in figures}
    assert list(drawn) == [
        "accuracy_by_period",
        "attention_by_distance",
        "repeated_tokens",
        "long_run",
        "head_scores_1L_fixed",
        "head_scores_2L_varied_60000",
        "attention_maps_1L_fixed",
        "attention_maps_2L_varied_60000",
    ]
    accuracy = [line.get_ydata() for axes in drawn["accuracy_by_period"].axes for line in axes.lines]
    for runs in evidence.values():
        for run in runs:
            assert any(np.array_equal(line, run.final.accuracy) for line in accuracy)
    profiles = [line.get_ydata() for axes in drawn["attention_by_distance"].axes for line in axes.lines]
    for wanted in evidence["1L_fixed"][0].final.offset_profile.reshape(-1, 60):
        assert any(np.array_equal(line, wanted) for line in profiles)
    points = np.concatenate([line.get_ydata() for axes in drawn["repeated_tokens"].axes for line in axes.lines])
    for runs in evidence.values():
        for run in runs:
            for doubled in run.final.doubled.values():
                assert doubled.ambiguous in points
                assert doubled.other in points
    for model, runs in evidence.items():
        maps = [image.get_array() for axes in drawn[f"attention_maps_{model}"].axes for image in axes.images]
        n_heads = int(np.prod(runs[0].final.maps.shape[1:3]))
        assert len(maps) == 6 * n_heads  # the colour bar is none
        assert all(any(np.array_equal(image, one) for image in maps) for one in runs[0].final.maps.reshape(-1, 80, 80))
        curves = [line.get_ydata() for axes in drawn[f"head_scores_{model}"].axes for line in axes.lines]
        assert any(np.array_equal(line, runs[0].curves["circuits/induction_score"][:, 0, 1]) for line in curves)
    long = [line.get_ydata() for axes in drawn["long_run"].axes for line in axes.lines]
    one = evidence["2L_varied_60000"][0]
    for heights in (
        one.curves["behaviour/induction_accuracy_period"][:, 3],
        one.curves["circuits/previous_token_score_corrected"][:, 0, 1],
        one.curves["circuits/previous_token_score_corrected"][:, 0].sum(1),
        one.final.accuracy,
        [moment.doubled["longer"].ambiguous for moment in (*one.earlier, one.final)],
    ):
        assert any(np.array_equal(line, heights) for line in long)


def test_no_two_labels_of_a_figure_overlap(study):
    for figure in study[2]:
        renderer = FigureCanvasAgg(figure.figure).get_renderer()
        figure.figure.draw(renderer)
        boxes = []
        for axes in figure.figure.axes:
            if not axes.axison:
                continue
            low, high = axes.get_xlim()
            ticks = [tick.label1 for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *ticks]
            boxes += [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text() and t.get_visible()]
        assert len(boxes) > 4
        for i, (one, a) in enumerate(boxes):
            for other, b in boxes[:i]:
                overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
                assert min(overlap) < 1.5, (figure.name, one, other)


def test_without_runs_there_is_nothing_to_draw():
    from spectral.studies.repeated.figures import draw_all

    assert draw_all({}, {}) == []


def test_a_compact_png_shows_the_same_picture():
    from spectral.studies.result import compact_png

    ramp = np.linspace(0, 255, 400, dtype=np.uint8)
    picture = np.stack([np.tile(ramp, (50, 1)), np.full((50, 400), 90, np.uint8), np.tile(ramp[::-1], (50, 1))], 2)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    shown = np.asarray(Image.open(io.BytesIO(compact_png(buffer.getvalue()))).convert("RGB"))
    assert shown.shape == picture.shape
    assert np.abs(shown.astype(int) - picture).max() <= 8
