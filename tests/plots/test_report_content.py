"""What the report of a run holds: the numbers behind its pictures, its sentences, and that no name can break out."""

import base64
import json
import re

import numpy as np
import pytest


def decoded(part):
    """Return the frames of one part of a view as the page's script sees them."""
    raw = base64.b64decode(part["data"])
    if part["kind"] == "f4":
        return np.frombuffer(raw, dtype="<f4").reshape(part["shape"])
    frames, n, _ = part["shape"]
    lower = np.frombuffer(raw, dtype=np.uint8).reshape(frames, -1)
    values = np.full((frames, n, n), np.nan)
    rows, columns = np.tril_indices(n)
    values[:, rows, columns] = np.where(lower == 255, np.nan, lower / 254)
    return values


def views(run, **options):
    from spectral.plots.report import gather

    return {view["name"]: view for view in gather(run, **options)["views"]}


def words(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def trace_values(trace, key):
    """Return numbers of a plotly trace, which may be stored as base64."""
    found = trace[key]
    if isinstance(found, dict):
        return np.frombuffer(base64.b64decode(found["bdata"]), dtype=found["dtype"])
    return np.asarray(found)


def test_maps_hold_the_stored_patterns_of_every_head_at_every_snapshot(run, synthetic):
    found = views(run)
    stored = run.read("circuits/attention_pattern").astype(float)
    layers = [view for view in found.values() if view["group"] == "attention"]
    assert [view["title"] for view in layers] == ["Layer 0", "Layer 1"]
    for layer, view in enumerate(layers):
        assert view["steps"] == run.steps.tolist()
        assert view["note"] == ""
        for head, part in enumerate(view["parts"]):
            shown = decoded(part)
            rows, columns = np.tril_indices(16)
            np.testing.assert_allclose(
                shown[:, rows, columns], stored[:, layer, head][:, rows, columns], atol=0.5 / 254 + 1e-3
            )
            assert np.isnan(shown[:, 0, 1:]).all()  # the future
        assert view["figure"]["data"][2]["y"][5] == f"from 5: token {synthetic.tokens[5]}"
        assert f"L{layer}H2" in view["figure"]["data"][2]["hovertemplate"]


def test_maps_that_were_not_measured_stay_empty(tmp_path, synthetic):
    from spectral.storage import open_run

    def drop(row):
        if row["step"] == 20:
            del row["circuits/attention_pattern"]

    run = open_run(synthetic.make(tmp_path / "run", steps=(0, 20, 40), change=drop))
    view = next(view for view in views(run).values() if view["group"] == "attention")
    shown = decoded(view["parts"][0])
    assert np.isnan(shown[1]).all()
    assert np.isfinite(shown[0]).any()


def test_frames_of_weights_and_spectrum_are_the_stored_numbers(run):
    found = views(run)
    ov = run.read("circuits/ov_eigenvalues")
    parts = found["ov-eigenvalues"]["parts"]
    for part in parts:
        label = re.match(r"L(\d)H(\d)", found["ov-eigenvalues"]["figure"]["data"][part["trace"]]["hovertemplate"])
        layer, head = int(label[1]), int(label[2])
        np.testing.assert_allclose(decoded(part), ov[:, layer, head, :, "xy".index(part["key"])], rtol=1e-6)
    eigenvalues = {(part["trace"], part["key"]): decoded(part) for part in found["hessian-eigenvalues"]["parts"]}
    np.testing.assert_allclose(eigenvalues[0, "y"], run.read("hessian/eigenvalues"), rtol=1e-6)
    np.testing.assert_allclose(eigenvalues[0, "error_y.array"], run.read("hessian/error_bounds"), rtol=1e-6)
    np.testing.assert_allclose(eigenvalues[1, "y"], run.read("hessian/negative_eigenvalues"), rtol=1e-6)
    mass = decoded(found["block-mass"]["parts"][0])
    np.testing.assert_allclose(mass.sum(1), run.read("hessian/block_mass").sum(-1), rtol=1e-5)


def test_density_is_the_smoothed_quadrature(tmp_path, synthetic):
    """One node of weight 1 at 3 must give a Gaussian around 3 whose area is 1."""
    from spectral.storage import open_run

    def add(row):
        row["hessian/density_nodes"] = np.array([[0.0, 3.0, 10.0]])
        row["hessian/density_weights"] = np.array([[0.0, 1.0, 0.0]])

    folder = synthetic.make(tmp_path / "run", steps=(0, 20), change=add, density_probes=1, density_steps=3)
    view = views(open_run(folder))["spectral-density"]
    grid, density = trace_values(view["figure"]["data"][0], "x"), decoded(view["parts"][0])[0]
    area = float(np.trapezoid(density, grid))
    assert area == pytest.approx(1.0, abs=0.01)
    assert float(np.trapezoid(density * grid, grid)) / area == pytest.approx(3.0, abs=0.01)


def test_curves_are_the_stored_ones_and_the_band_is_the_detectors(run):
    found = views(run)
    by_name = {trace["name"]: trace for trace in found["eigenvalues"]["figure"]["data"]}
    np.testing.assert_array_equal(trace_values(by_name["λ1"], "y"), run.read("hessian/eigenvalues")[:, 0])
    heads = {trace["name"]: trace for trace in found["induction_score"]["figure"]["data"]}
    np.testing.assert_array_equal(trace_values(heads["L1H2"], "y"), run.read("circuits/induction_score")[:, 1, 2])
    for view in found.values():
        shapes = {shape["name"]: shape for shape in view["figure"]["layout"].get("shapes", [])}
        assert view["hasStepAxis"] == bool(shapes)
        if shapes:
            assert (shapes["transition-band"]["x0"], shapes["transition-band"]["x1"]) == (450.0, 550.0)
            assert (shapes["transition-interval"]["x0"], shapes["transition-interval"]["x1"]) == (490.0, 510.0)
            assert shapes["transition-midpoint"]["x0"] == 500.0


def test_a_newcomer_reads_when_which_heads_and_what_the_spectrum_did(run, synthetic):
    from spectral.plots.report import gather

    content = gather(run)
    text = words(content["html"]["summary"])
    assert text.startswith("An abrupt transition at step 500; induction heads: L1H2 When")
    assert "half-way at step 500, from step 450 (10 %) to step 550 (90 %)" in text
    assert "between 490 and 510 with 90 % confidence" in text
    # Raw scores here: with a chance of 0.11, L1H2 gets (0.94 - 0.11) / 0.89 = 0.93, L1H0 (0.34 - 0.11) / 0.89 = 0.26.
    assert re.search(r"1 of 8 heads is an induction head: L1H2 \(score 0\.9\d, formed since step 500\)", text)
    assert re.search(r"1 of 8 heads is a previous-token head: L0H1 \(score 0\.9\d", text)
    assert re.search(r"They match content.* L1H2 95%", text)
    top = run.read("hessian/eigenvalues")[:, 0]
    assert f"starts at {top[0]:.3g} (step 0)" in text
    assert f"ends at {top[-1]:.3g} (step 1,000)" in text
    assert "Previous token score changed 70 steps before induction accuracy." in text
    details = words(content["html"]["details"])
    assert "previous token score induction accuracy -70 [-90, -50]" in details
    assert content["steps"][content["start"]] == 500


def test_without_a_transition_the_summary_says_no_and_why(tmp_path, synthetic):
    from spectral.plots.report import gather
    from spectral.storage import open_run

    folder = synthetic.make(tmp_path / "run", steps=range(0, 401, 40), verdict=synthetic.verdict(detected=False))
    text = words(gather(open_run(folder))["html"]["summary"])
    assert text.startswith("No abrupt transition")
    assert "the change is too slow to be abrupt" in text
    assert re.search(r"No induction head: the highest score at the last snapshot is -?0\.\d\d \(L\dH\d\)", text)


def test_a_head_that_lost_its_score_again_is_not_called_formed(tmp_path, synthetic):
    from spectral.plots.report.story import formed_heads
    from spectral.storage import open_run

    def fade(row):
        row["circuits/induction_score"][1, 2] = {0: 0.0, 20: 0.9, 40: 0.0, 60: 0.9, 80: 0.95}[row["step"]]
        row["circuits/induction_score"][0, 0] = {0: 0.0, 20: 0.9, 40: 0.9, 60: 0.9, 80: 0.1}[row["step"]]

    run = open_run(synthetic.make(tmp_path / "run", steps=range(0, 81, 20), change=fade))
    (head,) = formed_heads(run, "induction_score")
    assert (head.name, head.since) == ("L1H2", 60)
    assert head.score == pytest.approx((0.95 - 0.11) / 0.89)


def test_thinned_curves_keep_spikes_and_gaps():
    from spectral.plots.report.thinning import curve_points

    heights = np.sin(np.arange(50_000) / 3000)
    heights[12_345], heights[40_001], heights[777] = 9.0, -9.0, np.nan
    kept = curve_points(heights, 1500)
    assert {0, 777, 12_345, 40_001, 49_999} <= set(kept.tolist())
    assert len(kept) <= 1500 + 3
    assert (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(curve_points(heights[:1500], 1500), np.arange(1500))


@pytest.mark.parametrize("limit", [2, 3, 10, 67, 200])
def test_thinned_frames_lie_densest_around_the_transition_and_keep_the_ends(run, limit):
    from spectral.plots.report.thinning import frame_rows
    from spectral.plots.verdict import read_verdict

    steps = np.arange(0, 10_001, 5)  # 2,001 snapshots, transition from 450 to 550
    rows = frame_rows(steps, limit, read_verdict(run))
    assert (rows[0], rows[-1]) == (0, 2000)
    assert len(rows) == limit
    near = np.count_nonzero((steps[rows] >= 350) & (steps[rows] <= 650))
    assert near >= min(61, limit // 2 - 1)  # 61 lie there


def test_what_was_thinned_is_said(tmp_path, synthetic):
    from spectral.storage import open_run

    run = open_run(synthetic.make(tmp_path / "run", steps=range(0, 1001, 20), verdict=synthetic.verdict()))
    size = 2 * 4 * 16 * 17 // 2
    found = views(run, map_bytes=10 * size)
    view = next(view for view in found.values() if view["group"] == "attention")
    assert view["note"] == "Thinned: 10 of 51 snapshots have maps here."
    assert len(view["steps"]) == 10
    assert set(view["steps"]) <= set(run.steps.tolist())


def test_names_with_markup_in_them_cannot_break_out(tmp_path, synthetic):
    from spectral.plots.report import gather, render_report
    from spectral.storage import open_run

    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    blocks = ("W_E", "<b>bold</b>", *(f"b{i}" for i in range(9)))
    folder = synthetic.make(
        tmp_path / evil.replace("/", "∕"), steps=(0, 20), verdict=synthetic.verdict(), block_names=blocks,
        config={"note": evil, evil: evil},
    )  # fmt: skip
    verdict = synthetic.verdict()
    verdict["signals"] = {evil: {"verdict": evil, "detected": False, "family": evil}}
    (folder / "transitions.json").write_text(json.dumps(verdict))
    content = gather(open_run(folder))
    page = render_report(content)
    without_plotly = re.sub(r"<script>/\*\*\s+\* plotly.*?</script>", "", page, flags=re.DOTALL)
    assert len(without_plotly) < len(page) - 3_000_000
    assert "<script>alert" not in without_plotly
    assert "<img" not in without_plotly
    assert without_plotly.count("</script>") == 2  # the content's and the page's own
    block_view = next(view for view in content["views"] if view["name"] == "block-mass")
    assert "<b>" not in json.dumps(block_view["figure"]["data"][0]["y"])  # plotly would read it as markup
    stored = re.search(r'<script type="application/json" id="content">(.*?)</script>', without_plotly, flags=re.DOTALL)
    assert json.loads(stored[1])["name"] == folder.name


def test_the_command_repeats_the_run(tmp_path, synthetic):
    import shlex

    from spectral.cli import parse_train
    from spectral.config import RunConfig
    from spectral.plots.report.tables import repeat_flags
    from spectral.storage import open_run

    stored = RunConfig(
        n_heads=4, n_layers=3, lr=3e-4, use_lr_schedule=True, layer_norm=False, probe_periods=(8, 16), seed=7,
        block_spectra=("layers",), data="ngram", ngram_parents=(1, 2), grad_clip=0.0,
    ).to_dict()  # fmt: skip
    run = open_run(synthetic.make(tmp_path / "run", steps=(), config=stored))
    flags = repeat_flags(run)
    line = " ".join(map(shlex.quote, flags))
    _, config, _ = parse_train(shlex.split(line))
    assert config.to_dict() == stored


def test_missing_values_leave_gaps_and_break_nothing(tmp_path, synthetic):
    from spectral.plots.report import gather, to_json
    from spectral.storage import open_run

    folder = synthetic.make(
        tmp_path / "run", steps=range(0, 1001, 40), change=synthetic.spoil, verdict=synthetic.verdict()
    )
    content = gather(open_run(folder))
    assert len(content["views"]) >= 12
    assert "NaN" not in re.sub(r'"[^"]*"', "", to_json(content))  # which JSON does not know
    text = words(content["html"]["summary"])
    assert not re.search(r"\b(nan|inf)\b", text)


@pytest.mark.parametrize("train", [True, False])
def test_a_run_without_snapshots_gets_a_page_that_says_so(tmp_path, synthetic, train):
    from spectral.plots.report import gather, write_report
    from spectral.storage import open_run

    folder = synthetic.make(tmp_path / "run", steps=(), train=train)
    content = gather(open_run(folder))
    assert [view["name"] for view in content["views"]] == (["loss"] if train else [])
    assert content["steps"] == []
    text = words(content["html"]["summary"])
    assert "No snapshot was measured yet" in text
    assert "attention maps: no snapshot was committed yet" in text
    assert write_report(folder).stat().st_size < 6_000_000


def test_a_crashed_run_is_shown_and_called_so(tmp_path, synthetic):
    from spectral.plots.report import gather
    from spectral.storage import open_run

    content = gather(open_run(synthetic.make(tmp_path / "run", steps=range(0, 401, 100), status="running")))
    assert content["status"] == "died"
    assert "The process that wrote this run died" in words(content["html"]["summary"])
    assert content["steps"] == [0, 100, 200, 300, 400]


def test_a_run_of_another_program_gets_a_page_without_a_command(tmp_path, synthetic):
    from spectral.plots.report import gather
    from spectral.storage import open_run

    folder = synthetic.make(
        tmp_path / "run", steps=(0, 500), attention_positions=0, change=lambda row: [
            row.pop(name) for name in list(row) if name.startswith("circuits/")
        ],
    )  # fmt: skip
    (folder / "config.json").write_text('{"loss": "mine"}\n')
    content = gather(open_run(folder))
    assert "No command: the settings are not those of this suite" in words(content["html"]["details"])
    assert {view["group"] for view in content["views"]} == {"spectrum", "curves"}


def test_reading_some_rows_equals_reading_all_of_them(run):
    for name in ("circuits/attention_pattern", "hessian/eigenvalues", "behaviour/loss"):
        np.testing.assert_array_equal(run.read(name, rows=[0, 7, 50]), run.read(name)[[0, 7, 50]])
    assert run.read("hessian/eigenvalues", rows=[]).shape == (0, 10)
    assert run.read("hessian/eigenvalues", rows=[0, 10**6]).shape == (1, 10)  # as long as there are rows


def test_the_file_is_written_whole_or_not_at_all(tmp_path, synthetic):
    from spectral.errors import RunDirectoryError
    from spectral.plots.report import write_report

    folder = synthetic.make(tmp_path / "run", steps=(0, 20))
    path = write_report(folder)
    assert path == folder / "report.html"
    assert path.read_bytes() == write_report(folder).read_bytes()  # no time of writing inside
    assert write_report(folder, output=tmp_path / "a" / "b").parent == tmp_path / "a" / "b"
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        write_report(folder, output=tmp_path / "file")
    assert not [entry for entry in folder.iterdir() if entry.name.startswith(".")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from spectral.cli import train
    from spectral.storage import open_run

    runs = tmp_path_factory.mktemp("runs")
    flags = "--preset tiny --num_steps 4 --eigen_interval 4 --checkpoint_interval 2 --causal never --quiet"
    assert train([*flags.split(), "--runs_dir", str(runs), "--run_name", "run"]) == 0
    return open_run(runs / "run")


def test_checkpoints_give_the_maps_that_the_model_makes(trained):
    import torch

    from spectral.config import RunConfig
    from spectral.models import Transformer
    from spectral.plots.report.attention import computed_maps
    from spectral.storage import load_checkpoint

    state = torch.random.get_rng_state()
    (maps,) = computed_maps(trained, ["repeat"])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert maps.choice == "repeated block, at checkpoints"
    assert maps.steps.tolist() == [2, 4]
    model = Transformer.from_config(RunConfig.from_dict(trained.config))
    model.load_state_dict(load_checkpoint(trained.path / "checkpoints" / "step_000000002.pt")["model"])
    tokens = torch.from_numpy(trained.probe("repeat_tokens")[:1].astype(np.int64))
    with torch.no_grad():
        np.testing.assert_array_equal(maps.patterns[0], model.eval().forward_with_patterns(tokens)[1][0].numpy())
    assert maps.tokens == [str(token) for token in tokens[0].tolist()]


def test_the_stored_probe_comes_first_and_the_others_from_checkpoints(trained):
    from spectral.plots.report import gather

    choices = list(dict.fromkeys(view["choice"] for view in gather(trained)["views"] if view["choice"]))
    assert choices[0] == "repeated block, at every snapshot"
    assert "no repeat (control), at checkpoints" in choices
    without = [view["choice"] for view in gather(trained, checkpoints=False)["views"] if view["choice"]]
    assert set(without) == {choices[0]}
