"""`spectral show`: numbers of the run as text, on any terminal and for any state of the run."""

import io
import json
import shutil
import sys

import h5py
import numpy as np
import pytest


def show(capsys, *arguments, expect=0):
    from spectral.cli import main

    assert main(["show", *map(str, arguments)]) == expect
    captured = capsys.readouterr()
    return captured.out if expect == 0 else captured.err


def change(folder, name, values):
    with h5py.File(folder / "results.h5", "r+") as file:
        file[name][: len(values)] = values


def test_a_finished_run_shows_state_verdict_spectrum_and_curves(trained_run, capsys):
    from spectral.storage import open_run

    text = show(capsys, trained_run)
    run = open_run(trained_run)
    assert text.splitlines()[0].rstrip() == "tiny  finished  step 20 of 20, 3 snapshots"
    assert "verdict: inconclusive" in text
    assert "because too few snapshots" in text
    top = run.read("hessian/eigenvalues")[:, 0]
    (line,) = [line for line in text.splitlines() if line.startswith("λ1, largest")]
    assert line.split()[-4:] == [f"{value:.3g}" for value in (top[0], top[-1], top.min(), top.max())]
    for name in ("training loss", "induction accuracy", "trace", "gradient in top 4", "H"):
        assert name in text
    assert "\x1b" not in text  # no colours where there is no terminal
    assert max(map(len, text.splitlines())) <= 110


def test_formed_heads_and_a_dated_transition_are_named(own_run, capsys):
    scores = np.zeros((3, 2, 2))
    scores[:, 1, 0] = [0.1, 0.5, 0.9]
    change(own_run, "circuits/induction_score_corrected", scores)
    change(own_run, "circuits/content_match_fraction", np.where(scores > 0, 0.8, np.nan))
    verdict = json.loads((own_run / "transitions.json").read_text())
    verdict["consensus"] |= {
        "detected": True, "verdict": "abrupt", "reason": None, "onset": 8.0, "midpoint": 10.0, "end": 12.0,
        "interval": [9.0, 11.0], "abruptness": 15.0, "p_value": 0.002, "agreeing_signals": {},
    }  # fmt: skip
    verdict["mechanism"]["label"] = "induction"
    (own_run / "transitions.json").write_text(json.dumps(verdict))
    text = show(capsys, own_run)
    assert "when: step 8 to 12, half-way at 10" in text
    assert "half-way, 90 % interval: 9 to 11" in text
    assert "induction heads, which match content" in text
    assert "L1H0 induction 0.90, at 0.3 or more since step 10, matches content 0.80" in text
    (line,) = [line for line in text.splitlines() if line.startswith("transition  ") and "▲" in line]
    (scale,) = [line for line in text.splitlines() if line.startswith("step  ")]
    left, right = scale.index("0"), scale.index("20") + 2
    assert line.index("▲") == pytest.approx((left + right) / 2, abs=1.5)


def test_narrow_and_ascii_terminals(trained_run, capsys, monkeypatch):
    text = show(capsys, trained_run, "--width", "60")
    assert max(map(len, text.splitlines())) <= 60
    assert "…" not in text[text.index("training loss") :]
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    from spectral.cli import main

    assert main(["show", str(trained_run)]) == 0
    sys.stdout.flush()
    assert "l1, largest" in raw.getvalue().decode("ascii")


def test_a_run_that_died_shows_how_to_go_on(own_run, capsys):
    with h5py.File(own_run / "results.h5", "r+") as file:
        file["status"][0] = 0  # calls itself running, and nobody holds it
    (own_run / "transitions.json").unlink()
    text = show(capsys, own_run)
    assert "own  died" in text
    assert "go on with: python train.py --resume" in text
    assert "the detector has not judged this run" in text


def test_a_run_without_snapshots_shows_its_losses(capsys, tmp_path):
    from spectral.cli import train

    flags = ["--preset", "tiny", "--num_steps", "10", "--eigen_interval", "0", "--quiet"]
    assert train([*flags, "--runs_dir", ".", "--run_name", "bare"]) == 0
    text = show(capsys, "bare")
    assert "measuring is off" in text
    assert "training loss" in text
    assert "λ" not in text


def test_missing_values_leave_gaps(own_run, capsys):
    change(own_run, "hessian/eigenvalues", np.full((2, 4), np.nan))
    change(own_run, "behaviour/induction_accuracy", np.full(3, np.nan))
    text = show(capsys, own_run)
    assert "λ1, largest" in text
    assert "nan" not in text
    assert "induction accuracy" not in text


def test_mistakes_cost_one_line(trained_run, tmp_path, capsys):
    assert "does not exist" in show(capsys, "nowhere", expect=2)
    assert "--width 3 is too narrow" in show(capsys, trained_run, "--width", "3", expect=2)
    broken = shutil.copytree(trained_run, tmp_path / "broken")
    (broken / "results.h5").write_bytes(b"no")
    error = show(capsys, broken, expect=2)
    assert error.count("\n") == 1
