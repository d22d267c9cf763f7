"""Comparing runs: what is grouped, what is aligned, and the numbers in tables, figures and page."""

import json
import shutil

import numpy as np
import pytest


def dated(midpoint, *, onset=None, end=None):
    """Return the fields of a dated transition."""
    return {
        "detected": True, "verdict": "abrupt", "reason": None, "onset": onset or midpoint - 50.0, "midpoint": midpoint,
        "end": end or midpoint + 50.0, "interval": [midpoint - 10.0, midpoint + 10.0], "p_value": 0.001,
        "abruptness": 12.0, "agreeing_signals": {},
    }  # fmt: skip


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, make_synthetic):
    """Three seeds whose loss falls from 4 to 1 at steps 300, 400, 600, in steps of 100."""
    folder = tmp_path_factory.mktemp("many")
    for seed, midpoint in enumerate((300.0, 400.0, 600.0)):

        def change(row, midpoint=midpoint):
            for name in list(row):
                if name.startswith("circuits/") or name == "behaviour/loss_by_position":
                    del row[name]
            row["behaviour/loss"] = 4.0 - 3.0 * (row["step"] >= midpoint)
            row["hessian/eigenvalues"] = np.arange(10, 0, -1.0) * (1 + (row["step"] >= midpoint))

        make_synthetic(
            folder / f"s{seed}",
            steps=range(0, 1001, 100),
            change=change,
            verdict={"consensus": dated(midpoint), "mechanism": {"label": "induction"}},
            config={"seed": seed},
        )
    return folder


@pytest.fixture
def own_seeds(seeds, tmp_path):
    return shutil.copytree(seeds, tmp_path / "seeds")


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def undate(folder):
    edit(folder / "transitions.json", consensus={"detected": False, "verdict": "gradual", "reason": "too_wide"})


def test_runs_that_differ_in_the_seed_alone_are_one_group(seeds):
    from spectral.plots.compare import read_comparison

    comparison = read_comparison([seeds])
    (group,) = comparison.groups
    assert [member.name for member in group.members] == ["s0", "s1", "s2"]
    assert group.label == "all runs"
    assert read_comparison([seeds / "s1", seeds / "s0", seeds / "s1"]).members[0].name == "s1"


def test_groups_are_named_by_the_settings_that_tell_them_apart(own_seeds):
    from spectral.plots.compare import read_comparison

    edit(own_seeds / "s1" / "config.json", lr=0.5, weight_decay=0.5, device="cuda")
    edit(own_seeds / "s2" / "config.json", lr=0.5, weight_decay=0.5, n_threads=7)
    comparison = read_comparison([own_seeds])
    assert [(group.label, len(group.members)) for group in comparison.groups] == [
        ("lr 0.001 (1 other settings differ too)", 1),
        ("lr 0.5 (1 other settings differ too)", 2),
    ]
    edit(own_seeds / "s2" / "config.json", beta1=0.5)
    labels = [group.label for group in read_comparison([own_seeds]).groups]
    assert len(set(labels)) == 3
    assert labels[2].startswith("lr 0.5, beta1 0.5")


def test_aligned_at_the_midpoint_the_medians_are_exact(seeds):
    from spectral.plots.compare import read_comparison
    from spectral.plots.compare.series import band, quantities

    comparison = read_comparison([seeds])
    (loss,) = [one for one in quantities(comparison) if one.name == "loss"]
    aligned = band(comparison.members, loss, "midpoint")
    np.testing.assert_array_equal(aligned.places, np.arange(-600, 701, 100))
    # Runs cover -300..700, -400..600 and -600..400; two of three are needed.
    known = (aligned.places >= -400) & (aligned.places <= 600)
    np.testing.assert_array_equal(np.isfinite(aligned.median), known)
    np.testing.assert_array_equal(aligned.median[known], np.where(aligned.places[known] < 0, 4.0, 1.0))
    np.testing.assert_array_equal(aligned.low[known], aligned.high[known])


def test_by_step_the_band_holds_the_quartiles(seeds):
    from spectral.plots.compare import read_comparison
    from spectral.plots.compare.series import band, quantities

    comparison = read_comparison([seeds])
    (loss,) = [one for one in quantities(comparison) if one.name == "loss"]
    found = band(comparison.members, loss, "step")
    np.testing.assert_array_equal(found.places, np.arange(0, 1001, 100))
    # At 300 one run of three has fallen, at 400 and 500 two, from 600 on all.
    np.testing.assert_array_equal(found.median, [4, 4, 4, 4, 1, 1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(found.low, [4, 4, 4, 2.5, 1, 1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(found.high, [4, 4, 4, 4, 2.5, 2.5, 1, 1, 1, 1, 1])


def test_the_overlay_draws_the_runs_and_their_band(seeds):
    from spectral.plots.compare import overlay, read_comparison

    figure = overlay(read_comparison([seeds]), align="step")
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "held-out loss (nats)"
    assert len([line for line in axes.lines if line.get_gid() == "run"]) == 3
    (median,) = [line for line in axes.lines if line.get_gid() == "median"]
    assert list(median.get_ydata()) == [4, 4, 4, 4, 1, 1, 1, 1, 1, 1, 1]


def test_tables_hold_transitions_and_spectra(seeds):
    from spectral.plots.compare import read_comparison
    from spectral.plots.compare.tables import group_table, run_table, spectrum_table

    comparison = read_comparison([seeds])
    runs = run_table(comparison)
    assert list(runs["midpoint"]) == [300, 400, 600]
    assert list(runs["interval_low"]) == [290, 390, 590]
    assert list(runs["seed"]) == [0, 1, 2]
    assert set(runs["mechanism"]) == {"induction"}
    # One width before the onset is 150 steps ahead of the midpoint, so there the eigenvalues have not doubled yet.
    assert set(runs["lambda_1_before"]) == {10.0}
    assert set(runs["lambda_1_midpoint"]) == set(runs["lambda_1_after"]) == {20.0}
    assert list(runs["lambda_1_largest_step"]) == [300, 400, 600]
    (row,) = group_table(comparison).to_dict("records")
    assert (row["runs"], row["dated"]) == (3, 3)
    assert (row["midpoint_q25"], row["midpoint_median"], row["midpoint_q75"]) == (350, 400, 500)
    spectra = spectrum_table(comparison).query("run == 's1' and end == 'top' and phase == 'after'")
    assert list(spectra["eigenvalue"]) == list(np.arange(20, 0, -2.0))
    assert set(spectra["step"]) == {500}  # 550 lies between two snapshots; the earlier one is taken


def test_transition_times_are_drawn_with_their_intervals(own_seeds):
    from spectral.plots.compare import read_comparison, transition_times

    undate(own_seeds / "s0")
    axes = transition_times(read_comparison([own_seeds])).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["s1", "s2", "s0"]
    dots = [line for line in axes.lines if line.get_gid() == "midpoint"]
    assert [line.get_xdata()[0] for line in dots] == [400, 600]
    intervals = [line for line in axes.lines if line.get_gid() == "interval"]
    assert [list(line.get_xdata()) for line in intervals] == [[390, 410], [590, 610]]
    assert axes.texts[0].get_text() == "gradual (too wide)"


def compare(*arguments, expect=0):
    from spectral.cli import visualize

    assert visualize(list(map(str, arguments))) == expect


def test_the_command_writes_page_tables_and_figures(own_seeds, capsys):
    compare(own_seeds, "--formats", "svg")
    said = capsys.readouterr().out.splitlines()
    folder = own_seeds / "comparison"
    assert said[-1] == str(folder / "compare.html")
    assert "all runs: 3 of 3 with a dated abrupt transition, midpoint 400 (median; quartiles 350 to 500" in said[-2]
    assert {file.name for file in folder.iterdir()} == {
        "compare.html", "runs.csv", "groups.csv", "spectra.csv", "overlay.svg", "transitions.svg", "spectra.svg",
    }  # fmt: skip
    page = (folder / "compare.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "<script" not in page
    assert "http" not in page
    from spectral.plots.compare import read_comparison

    assert len(read_comparison([own_seeds]).members) == 3  # the folder it made is no run and does not disturb


def test_undated_runs_are_kept_by_step_and_left_out_at_the_midpoint(own_seeds, capsys):
    from spectral.plots.compare import overlay, read_comparison

    undate(own_seeds / "s2")
    compare(own_seeds, "--formats", "svg")
    assert "aligned by step: 1 of 3 runs have no dated transition" in capsys.readouterr().out
    figure = overlay(read_comparison([own_seeds]), align="midpoint")
    assert "1 without a dated transition are not drawn" in figure.texts[1].get_text()
    assert len([line for line in figure.axes[0].lines if line.get_gid() == "run"]) == 2
    for name in ("s0", "s1"):
        undate(own_seeds / name)
    compare(own_seeds, "--align", "midpoint", expect=2)
    assert "none of the 3 runs has a dated transition; use --align step" in capsys.readouterr().err


def test_runs_of_different_shapes_broken_and_empty_ones_give_a_page(own_seeds, synthetic, capsys):
    synthetic.make(own_seeds / "<b>small", steps=range(0, 501, 50), n_top=2, n_negative=0, n_heads=3, components=())
    synthetic.make(own_seeds / "empty", steps=())
    broken = shutil.copytree(own_seeds / "s0", own_seeds / "torn")
    (broken / "results.h5").write_bytes(b"torn")
    compare(own_seeds, "--formats", "svg")
    said = capsys.readouterr().out
    assert "empty left out: no snapshot was committed yet" in said
    assert "torn left out" in said
    page = (own_seeds / "comparison" / "compare.html").read_text()
    assert "&lt;b&gt;small" in page
    assert "<b>small" not in page
    assert "torn" in page
    assert "top 2" in (own_seeds / "comparison" / "overlay.svg").read_text()  # the smallest space counts for all


def test_missing_values_leave_gaps_in_the_band(own_seeds):
    import h5py

    from spectral.plots.compare import overlay, read_comparison, spectra
    from spectral.plots.compare.series import band, quantities

    for name in ("s0", "s1"):
        with h5py.File(own_seeds / name / "results.h5", "r+") as file:
            file["behaviour/loss"][4] = np.nan
            file["hessian/eigenvalues"][:] = np.nan
    comparison = read_comparison([own_seeds])
    (loss,) = [one for one in quantities(comparison) if one.name == "loss"]
    found = band(comparison.members, loss, "step")
    np.testing.assert_array_equal(np.isnan(found.median), np.arange(11) == 4)
    overlay(comparison, align="midpoint")
    assert spectra(comparison) is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "s0"], "nowhere does not exist"),
        (["."], "is no run and holds none"),
        (["s0", "--align", "step"], "--align has no meaning for one run"),
        (["s0", "s1", "--animate", "spectrum"], "--animate has no meaning for several runs"),
        (["s0", "s1", "--align", "onset"], "--align"),
        (["s0", "s1", "--output", "s0/config.json"], "cannot be written"),
    ],
)
def test_mistakes_cost_one_line(own_seeds, arguments, words, monkeypatch, capsys):
    monkeypatch.chdir(own_seeds)
    if arguments == ["."]:
        (own_seeds / "bare").mkdir()
        monkeypatch.chdir(own_seeds / "bare")
    compare(*arguments, expect=2)
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_nothing_to_compare_costs_one_line(synthetic, tmp_path, capsys):
    for name in ("a", "b"):
        synthetic.make(tmp_path / name, steps=())
    compare(tmp_path, expect=2)
    assert "none of 2 runs can be compared; a: no snapshot was committed yet" in capsys.readouterr().err
