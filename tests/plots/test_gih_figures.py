"""Figures of an experiment: what they draw is what was stored, and the predicted curves are those of the theory."""

import numpy as np
import pytest

SMALL = {"n_sample": 300, "n_validation": 100, "seq_length": 40, "hessian_points": 3, "generalisation_chains": 20}


def train(folder, **options):
    from spectral.gih import GIHConfig
    from spectral.gih.session import GIHSession
    from spectral.storage import RunDirectory

    config = GIHConfig(**(SMALL | options))
    with RunDirectory.create(folder, config.to_dict()) as directory:
        GIHSession(config, directory).train()
    return folder


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    from spectral.gih import GIHResults

    options = {"n_epochs": (40, 0, 60), "flow_time": (0.0, 1e6, 0.0)}
    return GIHResults(train(tmp_path_factory.mktemp("gih") / "staged", **options))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    from spectral.gih import GIHResults

    options = {"model": "full", "train": ("all",), "n_epochs": (5,), "lr": (0.01,), "generalisation_chains": 0}
    return GIHResults(train(tmp_path_factory.mktemp("gih") / "full", **options))


def lines(axes):
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axes.get_lines()}


def test_the_page_of_stages_draws_stored_values_and_theory(staged):
    from spectral.gih import selection_descent
    from spectral.plots.gih.stages import stages

    shares, attention, sharpness, outcome, offsets, loss = stages(staged).axes[:6]
    rows = staged.rows_of(0)
    drawn = lines(shares)
    best = staged.read("shares")[rows, 6]
    np.testing.assert_array_equal(drawn["{1,2}"][1], best)
    import torch

    first = {name: torch.from_numpy(staged.read(name)[0].copy()) for name in ("forces", "c")}
    curve = selection_descent(first["forces"], c=first["c"], a=0.01, lr=1.0, epochs=40)
    assert any(np.allclose(line.get_ydata(), curve.shares[:, 6].numpy()) for line in shares.get_lines())
    np.testing.assert_array_equal(lines(attention)["head 1"][1], staged.read("own_offset")[staged.rows_of(1), 0])
    np.testing.assert_array_equal(lines(sharpness)["measured"][1], staged.read("a")[staged.rows_of(2)])
    assert "start: rate Σ p J" in lines(sharpness)
    heights = sorted(bar.get_height() for bar in outcome.patches)
    assert heights[-1] == pytest.approx(staged.read("shares")[-1].max())
    bars = [bar.get_height() for bar in offsets.patches]
    np.testing.assert_allclose(bars, staged.read("w")[-1].flatten())
    assert any("Bayes" in label for label in lines(loss))


def test_the_early_prediction_of_a_has_the_slope_of_the_measured_curve(staged):
    from spectral.plots.gih.source import predicted_sharpness

    times = staged.read("time")[staged.rows_of(2)]
    early = predicted_sharpness(staged, 2, times)["start: rate Σ p J"]
    measured = staged.read("a")[staged.rows_of(2)]
    assert early[1] - early[0] == pytest.approx(measured[1] - measured[0], rel=1e-9)
    assert early[-1] > measured[-1]


def test_the_predicted_attention_follows_the_measured_one(staged):
    from spectral.plots.gih.source import predicted_attention

    rows = staged.rows_of(1)
    times, own = staged.read("time")[rows], staged.read("own_offset")[rows]
    for head in (0, 1):
        theory = predicted_attention(staged, 1, head, times)
        assert np.abs(theory - own[:, head]).max() < 0.02
    assert predicted_attention(staged, 1, 2, times) is None  # a head outside the winner stands still
    assert predicted_attention(staged, 0, 0, times) is None


def test_banded_attention_is_a_softmax_over_the_valid_offsets():
    from spectral.plots.gih.weights import banded_attention

    pattern = banded_attention(np.log([6.0, 3.0, 1.0]), np.array([2, 3, 4]), 6)
    assert np.isnan(pattern[:2]).all()  # no offset is valid in the first two rows
    np.testing.assert_allclose(pattern[2, 0], 1.0)
    np.testing.assert_allclose(pattern[3, :2], [1 / 3, 2 / 3])
    np.testing.assert_allclose(pattern[5, 1:4], [0.1, 0.3, 0.6])
    assert np.isnan(pattern[5, [0, 4, 5]]).all()
    itself = banded_attention(np.zeros(1), np.array([1]), 3, itself=True)
    np.testing.assert_allclose(itself[2, 1:], [0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(itself[0, 0], 1.0)


def test_every_figure_is_drawn_for_both_models(staged, full, capsys):
    from spectral.cli import visualize
    from spectral.plots.gih import GIH_FIGURES, draw_gih_run

    assert visualize([str(staged.path), "--formats", "png"]) == 0
    out = capsys.readouterr().out
    files = {path.stem for path in (staged.path / "figures").iterdir()}
    assert files == set(GIH_FIGURES)
    assert "information set [1, 2]" in out
    told = []
    written = draw_gih_run(full.path, formats=("svg",), progress=told.append)
    assert {path.stem for path in written} == set(GIH_FIGURES) - {"generalisation"}
    assert any("generalisation left out" in line for line in told)


def test_a_crashed_run_is_drawn_as_far_as_it_got(staged, tmp_path):
    import shutil

    from spectral.gih import GIHResults
    from spectral.gih.results import write_dataset
    from spectral.plots.gih import GIH_FIGURES

    folder = tmp_path / "cut"
    shutil.copytree(staged.path, folder)
    (folder / "transitions.json").unlink()
    part = staged.to_xarray().isel(row=slice(0, 1)).drop_dims(["alpha", "length"])
    part.attrs["status"] = "running"
    write_dataset(part, folder / "results.h5")
    run = GIHResults(folder)
    assert run.status == "died"
    for name, draw in GIH_FIGURES.items():
        if name != "generalisation":
            assert draw(run).axes


def test_the_dates_of_a_stage_are_crossings_of_its_curve(staged):
    verdicts = staged.transitions["stages"]
    share = verdicts[0]["signals"]["share 110"]
    assert 0 < share["tenth"] < share["half"] < share["nine_tenths"] < 40
    rows = staged.rows_of(0)
    values = staged.read("shares")[rows, 6]
    done = (values - values[0]) / (values[-1] - values[0])
    assert np.interp(share["half"], staged.read("time")[rows], done) == pytest.approx(0.5, abs=1e-9)
    assert set(verdicts[1]["signals"]) == {"own_offset 1", "own_offset 2", "loss"}
    assert share["verdict"] in {"abrupt", "gradual", "none", "inconclusive"}
