"""The log for TensorBoard: the scalars of the results file, once each, at no cost to training."""

import sys

import numpy as np
import pytest
from training_runs import SMALL, kill, resume_here, same_weights, start, train_here, wait_for

TENSORBOARD = ("--log_to", "tensorboard")


def events(folder):
    """Return tag -> [(step, value)] of every event file, duplicates included."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for file in sorted((folder / "tensorboard").iterdir()):
        accumulator = EventAccumulator(str(file), purge_orphaned_data=False, size_guidance={"scalars": 0})
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            found.setdefault(tag, []).extend((event.step, event.value) for event in accumulator.Scalars(tag))
    return found


def assert_log_equals_results(folder):
    from spectral.detection.signals import signal_values
    from spectral.storage import open_run

    run, log = open_run(folder), events(folder)
    checked = {tag: (run.train_steps, run.read(tag)) for tag in ("train/loss", "train/gradient_norm")}
    checked |= {f"hessian/eigenvalues/{i + 1}": (run.steps, run.read("hessian/eigenvalues")[:, i]) for i in range(2)}
    checked |= {tag: (run.steps, run.read(tag)) for tag in ("behaviour/loss", "behaviour/induction_accuracy")}
    signals = signal_values(run.read, run.datasets())
    checked |= {f"signals/{name}": (run.steps, values) for name, values in signals.items()}
    assert len(checked) == 12
    for tag, (steps, values) in checked.items():
        known = np.isfinite(values)
        assert [step for step, _ in log[tag]] == steps[known].tolist(), tag
        np.testing.assert_allclose([value for _, value in log[tag]], values[known], rtol=1e-6)
    return log


def test_the_log_holds_the_scalars_and_the_weights_do_not_change(tmp_path):
    plain = train_here(tmp_path / "plain", "--dropout", "0.1")
    logged = train_here(tmp_path / "logged", "--dropout", "0.1", *TENSORBOARD)
    assert_log_equals_results(logged)
    assert same_weights(plain, logged)
    assert not (plain / "tensorboard").exists()
    resume_here(plain, *TENSORBOARD)  # a finished run gets its log afterwards
    assert_log_equals_results(plain)


def test_a_killed_and_resumed_run_has_every_event_once(tmp_path):
    folder = tmp_path / "killed"
    flags = [
        *SMALL,
        "--num_steps",
        "40",
        "--eigen_interval",
        "8",
        "--checkpoint_interval",
        "8",
        "--keep_checkpoints",
        "2",
    ]
    process = start(*flags, *TENSORBOARD, "--runs_dir", str(tmp_path), "--run_name", "killed", "--quiet")
    wait_for(lambda: (folder / "checkpoints" / "step_000000016.pt.sha256").exists(), process)
    kill(process)
    resume_here(folder)  # by itself, without the flag
    log = assert_log_equals_results(folder)
    assert log["train/loss"][-1][0] == 40


def test_without_the_package_there_is_one_line_and_no_run(tmp_path, monkeypatch, capsys):
    from spectral.cli import train

    for name in [
        name for name in sys.modules if name.split(".")[0] == "tensorboard" or "torch.utils.tensorboard" in name
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert train([*SMALL, *TENSORBOARD, "--runs_dir", str(tmp_path), "--run_name", "none"]) == 2
    assert capsys.readouterr().err == "error: --log_to tensorboard needs a package: pip install tensorboard\n"
    assert not (tmp_path / "none").exists()


def test_an_unknown_place_is_refused(tmp_path, capsys):
    from spectral.cli import train

    assert train([*SMALL, "--log_to", "wandb", "--runs_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "--log_to" in error
    assert "tensorboard" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_missing_values_are_left_out(tmp_path, value):
    from spectral.training.tensorboard import TensorBoardLog

    log = TensorBoardLog(tmp_path / "tensorboard")
    log.snapshot(
        3, {"hessian/trace": value, "hessian/audit": -1, "hessian/loss": 2.5, "hessian/eigenvalues": [1.0, value]}
    )
    log.close()
    wanted = {"hessian/loss": [(3, 2.5)], "hessian/eigenvalues/1": [(3, 1.0)], "signals/largest_eigenvalue": [(3, 1.0)]}
    assert events(tmp_path) == wanted
