"""`spectral densify`: which rows it adds, that nothing else changes, and how it refuses."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

SMALL = ("--preset", "tiny", "--n_threads", "1", "--num_steps", "24", "--eigen_interval", "6", "--quiet")
FLAGS = ("--checkpoint_interval", "6", "--keep_checkpoints", "0", "--track_top_k_eigenvalues", "2")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Two runs of one configuration: snapshots every 6 steps, and every 2."""
    from spectral.cli import train

    folder = tmp_path_factory.mktemp("densify_runs")
    assert train([*SMALL, *FLAGS, "--runs_dir", str(folder), "--run_name", "sparse"]) == 0
    dense = [*SMALL, *FLAGS, "--eigen_interval", "2", "--runs_dir", str(folder), "--run_name", "dense"]
    assert train(dense) == 0
    return folder


@pytest.fixture
def copy(runs):
    return Path(shutil.copytree(runs / "sparse", "runs/mine"))


def densify(*words):
    from spectral.cli import main

    return main(["densify", *map(str, words)])


def test_added_rows_are_those_of_a_run_that_was_dense_from_the_start(runs, copy, capsys):
    with h5py.File(copy / "results.h5") as file:
        before = {name: file[name][()] for name in ("behaviour/loss", "hessian/eigenvalues", "hessian/track_id")}
    assert densify(copy, "--from_step", 7, "--to_step", 17, "--interval", 2, "--quiet") == 0
    line = capsys.readouterr().out
    assert "6 snapshots added from step 7 to 17" in line
    assert "agreed bit for bit" in line
    with h5py.File(copy / "results.h5") as sparse, h5py.File(runs / "dense" / "results.h5") as dense:
        steps, all_steps = sparse["hessian/step"][()], dense["hessian/step"][()]
        assert steps.tolist() == [0, 6, 7, 8, 10, 12, 14, 16, 17, 18, 24]
        added = [8, 10, 14, 16]
        here, there = np.isin(steps, added), np.isin(all_steps, added)
        for name in ("behaviour/loss_by_position", "circuits/induction_score", "hessian/gradient_norm"):
            assert sparse[name][()][here].tobytes() == dense[name][()][there].tobytes(), name
        bound = sparse["hessian/error_bounds"][()][here] + dense["hessian/error_bounds"][()][there]
        gap = abs(sparse["hessian/eigenvalues"][()][here] - dense["hessian/eigenvalues"][()][there])
        assert (gap <= bound).all()
        assert (sparse["hessian/track_id"][()][here] == -1).all()
        old = np.isin(steps, [0, 6, 12, 18, 24])
        for name, values in before.items():
            assert sparse[name][()][old].tobytes() == values.tobytes(), name
    events = [json.loads(line) for line in (copy / "events.jsonl").read_text().splitlines()]
    assert events[-1]["kind"] == "densified"


def test_a_damaged_checkpoint_is_walked_past_and_named(copy, capsys):
    (copy / "checkpoints" / "step_000000012.pt").write_bytes(b"x")
    assert densify(copy, "--from_step", 13, "--to_step", 14, "--interval", 1) == 0
    shown = capsys.readouterr()
    assert "2 snapshots added" in shown.out
    assert "skipped a damaged checkpoint" in shown.err
    assert "step_000000012.pt" in shown.err


def test_a_densified_run_still_resumes_and_can_be_densified_again(copy, capsys):
    from spectral.cli import train

    assert densify(copy, "--from_step", 7, "--to_step", 9, "--interval", 1, "--quiet") == 0
    assert densify(copy, "--from_step", 13, "--to_step", 14, "--interval", 1, "--quiet") == 0
    with h5py.File(copy / "results.h5") as file:
        steps = file["hessian/step"][()].tolist()
        losses = file["behaviour/loss"][()]
    assert steps == [0, 6, 7, 8, 9, 12, 13, 14, 18, 24]
    assert train(["--resume", str(copy), "--quiet"]) == 0
    with h5py.File(copy / "results.h5") as file:
        assert file["hessian/step"][()].tolist() == steps
        assert file["behaviour/loss"][()].tobytes() == losses.tobytes()
    # From an earlier checkpoint: what was added behind it is dropped with the rows behind it.
    for path in (copy / "checkpoints").glob("step_0000000[12]*"):
        path.unlink()
    (copy / "model_final.pt").unlink()
    assert train(["--resume", str(copy), "--quiet"]) == 0
    with h5py.File(copy / "results.h5") as file:
        assert file["hessian/step"][()].tolist() == [0, 6, 12, 18, 24]
        assert file["behaviour/loss"][()].tobytes() == losses[np.isin(steps, [0, 6, 12, 18, 24])].tobytes()


def test_without_an_early_checkpoint_it_repeats_the_run_from_the_start(copy, capsys):
    for path in (copy / "checkpoints").glob("step_00000000[06]*"):
        path.unlink()
    assert densify(copy, "--from_step", 7, "--to_step", 8, "--interval", 1, "--quiet") == 0
    assert "the initialisation, 2 stored snapshots" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--around_transition",), "no detected transition"),
        ((), "name one window"),
        (("--around_transition", "--from_step", "1"), "name one window"),
        (("--from_step", "3"), "--to_step"),
        (("--from_step", "5", "--to_step", "3"), "from <= to"),
        (("--from_step", "0", "--to_step", "99"), "<= 24"),
        (("--from_step", "6", "--to_step", "6"), "lower --interval"),
        (("--from_step", "6", "--to_step", "9", "--interval", "-1"), "--interval"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(copy, capsys, words, text):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != "run.lock"}
    assert densify(copy, *words, "--quiet") == 2
    error = capsys.readouterr().err.strip()
    assert text in error
    assert "\n" not in error
    assert before == {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.name != "run.lock"}


def test_a_replay_that_is_not_the_run_writes_nothing(copy, capsys):
    path = copy / "checkpoints" / "step_000000006.pt"
    from spectral.storage import load_checkpoint, save_checkpoint

    state = load_checkpoint(path)
    state["model"]["W_E"] = state["model"]["W_E"] * (1 + 1e-6)
    save_checkpoint(path, state)
    before = (copy / "results.h5").read_bytes()
    assert densify(copy, "--from_step", 7, "--to_step", 9, "--interval", 1, "--quiet") == 2
    assert "not the run's at step 6" in capsys.readouterr().err
    assert (copy / "results.h5").read_bytes() == before


def test_a_run_that_goes_on_or_is_none_is_refused(copy, capsys):
    assert densify("runs/nowhere", "--from_step", 1, "--to_step", 2) == 2
    assert "runs/nowhere" in capsys.readouterr().err
