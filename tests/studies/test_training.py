"""Runs of a study: kept when finished, gone on with bit for bit, refused when they are others."""

import json
import os
import shutil
import signal

import h5py
import pytest
import torch

SCALE = 0.001


def plan(folder, **values):
    from spectral.studies.repeated.plan import StudyPlan

    return StudyPlan(**({"output": folder, "scale": SCALE, "models": ("1L_fixed",)} | values))


def train(plan, *, n_parallel=1, tell=lambda event: None):
    from spectral.studies.training import check_folders, train_all

    check_folders(plan, plan.jobs())
    return train_all(plan.jobs(), n_parallel=n_parallel, tell=tell)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same_run(one, other):
    a, b = (torch.load(folder / "model_final.pt", weights_only=True) for folder in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with h5py.File(one / "results.h5") as first, h5py.File(other / "results.h5") as second:
        for name in ("train/loss", "behaviour/induction_accuracy_period", "circuits/induction_score"):
            assert first[name][()].tobytes() == second[name][()].tobytes()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A study with one finished run. Read only."""
    folder = tmp_path_factory.mktemp("study")
    events = []
    assert train(plan(folder), tell=events.append)
    assert [event["event"] for event in events][-1] == "done"
    assert {"run": "1L_fixed_seed0", "event": "step", "step": 0, "total": 5} in events
    return folder


def test_a_run_of_the_study_is_an_ordinary_run(trained):
    from spectral.storage import list_checkpoints, open_run

    run = open_run(trained / "runs" / "1L_fixed_seed0")
    assert run.status == "finished"
    assert run.steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert [step for step, _ in list_checkpoints(run.path / "checkpoints")] == [0, 1, 2, 3, 4, 5]


def test_a_finished_run_is_kept_byte_for_byte(trained):
    before = contents(trained)
    assert train(plan(trained), tell=lambda event: pytest.fail(str(event)))
    assert contents(trained) == before


def test_an_interrupted_run_goes_on_bit_for_bit(trained, tmp_path):
    def interrupt(event):
        if event["event"] == "step" and event["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    assert not train(plan(tmp_path), tell=interrupt)
    assert not (tmp_path / "runs/1L_fixed_seed0/model_final.pt").exists()
    assert train(plan(tmp_path))
    assert_same_run(trained / "runs/1L_fixed_seed0", tmp_path / "runs/1L_fixed_seed0")
    lines = (tmp_path / "runs/1L_fixed_seed0/events.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert "interrupted" in kinds
    assert "resume" in kinds


def test_processes_side_by_side_give_the_same_bits(trained, tmp_path):
    events = []
    wanted = plan(tmp_path, n_seeds=2)
    (tmp_path / "runs/1L_fixed_seed1").mkdir(parents=True)
    (tmp_path / "runs/1L_fixed_seed1/run.lock").touch()  # as a kill in the first instant leaves it
    assert train(wanted, n_parallel=2, tell=events.append)
    assert_same_run(trained / "runs/1L_fixed_seed0", tmp_path / "runs/1L_fixed_seed0")
    done = {event["run"] for event in events if event["event"] == "done" and event["finished"]}
    assert done == {"1L_fixed_seed0", "1L_fixed_seed1"}


def test_a_run_that_fails_in_a_process_is_named(tmp_path, monkeypatch):
    from spectral.errors import UserError
    from spectral.studies import training

    monkeypatch.setattr(training.sys, "executable", shutil.which("false"))
    with pytest.raises(UserError, match=r"the process that trained 1L_fixed_seed\d ended with exit code 1; give"):
        train(plan(tmp_path, n_seeds=2), n_parallel=2)


def test_a_refusal_inside_a_process_is_passed_on(trained, tmp_path):
    from spectral.errors import UserError

    wanted = plan(tmp_path, n_seeds=2)
    for name in ("1L_fixed_seed0", "1L_fixed_seed1"):
        shutil.copytree(trained / "runs/1L_fixed_seed0", tmp_path / "runs" / name)
        (tmp_path / "runs" / name / "model_final.pt").unlink()
        config = json.loads((tmp_path / "runs" / name / "config.json").read_text())
        (tmp_path / "runs" / name / "config.json").write_text(json.dumps(config | {"seed": int(name[-1])}))
    with pytest.raises(UserError, match="belongs to another configuration"):
        train(wanted, n_parallel=2)


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "only found"])
def test_other_settings_are_refused_and_nothing_is_harmed(trained, asked):
    from spectral.errors import RunDirectoryError
    from spectral.studies.training import check_folders

    before = contents(trained)
    other = plan(trained, scale=0.1, models=("1L_fixed" if asked else "2L_fixed",))
    with pytest.raises(RunDirectoryError, match="1L_fixed_seed0 was made with num_steps 5, this study asks for 500; "):
        check_folders(other, other.jobs())
    assert contents(trained) == before


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    from spectral.errors import RunDirectoryError

    (tmp_path / "runs/1L_fixed_seed0").mkdir(parents=True)
    (tmp_path / "runs/1L_fixed_seed0/thesis.tex").write_text("years of work")
    with pytest.raises(RunDirectoryError, match="1L_fixed_seed0 holds no run; move it away or choose another place"):
        train(plan(tmp_path))
    assert (tmp_path / "runs/1L_fixed_seed0/thesis.tex").read_text() == "years of work"


def test_a_run_in_use_is_refused(trained, tmp_path):
    from spectral.errors import RunDirectoryError
    from spectral.storage import RunDirectory
    from spectral.studies.training import check_folders

    shutil.copytree(trained, tmp_path / "study")
    wanted = plan(tmp_path / "study")
    with (
        RunDirectory.open(wanted.jobs()[0].path, for_writing=True),
        pytest.raises(RunDirectoryError, match=r"is in use by process \d+ on .+; wait for it or stop it first"),
    ):
        check_folders(wanted, wanted.jobs())


def test_a_place_that_is_a_file_is_refused(tmp_path):
    from spectral.errors import RunDirectoryError

    (tmp_path / "study").write_text("")
    with pytest.raises(RunDirectoryError, match="study cannot be written; choose another place with --output"):
        train(plan(tmp_path / "study"))
