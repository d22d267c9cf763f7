"""Run folders: one writer, nothing deleted by mistake, a log that survives cuts."""

import json
import os
import time

import pytest
from storage_processes import ForkedWriter


def test_a_new_folder_has_lock_and_config_and_names_the_rest(tmp_path):
    from spectral.storage import RunDirectory

    config = {"seed": 1, "lr": 1e-3, "preset": None}
    with RunDirectory.create(tmp_path / "a" / "run", config) as folder:
        assert folder.config == config
        assert sorted(p.name for p in folder.path.iterdir()) == ["checkpoints", "config.json", "figures", "run.lock"]
        assert folder.results_path.name == "results.h5"
        assert folder.checkpoints_path.is_dir()
        assert folder.figures_path.is_dir()
        assert folder.model_final_path.name == "model_final.pt"
        holder = json.loads((folder.path / "run.lock").read_text())
        assert holder["pid"] == os.getpid()
        assert set(holder) == {"pid", "host", "started"}
    with RunDirectory.open(folder.path, for_writing=False) as again:
        assert again.config == config


def test_a_folder_in_use_is_refused_by_name_of_the_holder(tmp_path):
    from spectral.errors import RunDirectoryError
    from spectral.storage import RunDirectory

    with RunDirectory.create(tmp_path / "run", {}):
        for attempt in (
            lambda: RunDirectory.open(tmp_path / "run", for_writing=True),
            lambda: RunDirectory.create(tmp_path / "run", {}, overwrite=True),
        ):
            with pytest.raises(RunDirectoryError, match=f"in use by process {os.getpid()}"):
                attempt()
        RunDirectory.open(tmp_path / "run", for_writing=False).close()
    RunDirectory.open(tmp_path / "run", for_writing=True).close()


def test_the_lock_falls_when_its_holder_is_killed(tmp_path):
    from spectral.storage import RunDirectory

    def hold(acknowledge):
        with RunDirectory.create(tmp_path / "run", {}):
            acknowledge("train", 1)
            time.sleep(60)

    child = ForkedWriter(hold)
    while child.acknowledged["train"] < 0:
        assert child.alive()
    child.kill()
    RunDirectory.open(tmp_path / "run", for_writing=True).close()


def test_a_folder_with_content_is_not_overwritten_unasked(tmp_path):
    from spectral.errors import RunDirectoryError
    from spectral.storage import RunDirectory

    RunDirectory.create(tmp_path / "run", {"seed": 1}).close()
    with pytest.raises(RunDirectoryError, match="not empty"):
        RunDirectory.create(tmp_path / "run", {"seed": 2})
    (tmp_path / "run" / "checkpoints" / "step_000000001.pt").write_bytes(b"x")
    with RunDirectory.create(tmp_path / "run", {"seed": 2}, overwrite=True) as folder:
        assert folder.config == {"seed": 2}
        assert list(folder.checkpoints_path.iterdir()) == []


@pytest.mark.parametrize("names", [["thesis.tex"], ["config.json", "thesis.tex"], ["checkpoints"]])
def test_overwriting_never_deletes_what_is_no_run(tmp_path, names):
    from spectral.errors import RunDirectoryError
    from spectral.storage import RunDirectory

    folder = tmp_path / "run"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    with pytest.raises(RunDirectoryError, match="not overwritten"):
        RunDirectory.create(folder, {}, overwrite=True)
    assert sorted(os.listdir(folder)) == sorted(names)


def test_a_file_or_a_missing_folder_is_refused(tmp_path):
    from spectral.errors import RunDirectoryError
    from spectral.storage import RunDirectory

    (tmp_path / "file").write_text("x")
    with pytest.raises(RunDirectoryError, match="is a file"):
        RunDirectory.create(tmp_path / "file", {})
    with pytest.raises(RunDirectoryError, match="cannot be set up"):
        RunDirectory.create(tmp_path / "file" / "run", {})
    with pytest.raises(RunDirectoryError, match="does not exist"):
        RunDirectory.open(tmp_path / "missing", for_writing=True)
    with pytest.raises(RunDirectoryError, match="no run folder"):
        RunDirectory.open(tmp_path, for_writing=True)
    assert os.listdir(tmp_path) == ["file"]


def test_events_survive_a_cut_line(tmp_path):
    from spectral.storage import RunDirectory

    with RunDirectory.create(tmp_path / "run", {}) as folder:
        assert folder.read_events() == []
        folder.log_event("start", step=0, loss=float("inf"))
        folder.log_event("checkpoint", step=10)
    log = tmp_path / "run" / "events.jsonl"
    log.write_bytes(log.read_bytes()[:-9])
    with RunDirectory.open(tmp_path / "run", for_writing=True) as folder:
        assert [event["kind"] for event in folder.read_events()] == ["start"]
        folder.log_event("resume", step=5)
        events = folder.read_events()
    assert [event["kind"] for event in events] == ["start", "resume"]
    assert events[0]["loss"] is None
    assert events[0]["time"].endswith("+00:00")


def test_json_is_replaced_whole_and_has_no_nan(tmp_path):
    import numpy as np

    from spectral.storage import RunDirectory

    with RunDirectory.create(tmp_path / "run", {}) as folder:
        folder.write_json("transitions.json", {"midpoint": np.float64(3.5), "interval": (1, float("nan"))})
        assert json.loads((folder.path / "transitions.json").read_text()) == {"midpoint": 3.5, "interval": [1, None]}
        with pytest.raises(TypeError):
            folder.write_json("transitions.json", {"x": object()})
        assert json.loads((folder.path / "transitions.json").read_text())["midpoint"] == 3.5
        with pytest.raises(ValueError, match="plain file name"):
            folder.write_json("../x.json", {})


def test_a_reader_cannot_write(tmp_path):
    from spectral.errors import RunDirectoryError
    from spectral.storage import RunDirectory

    RunDirectory.create(tmp_path / "run", {}).close()
    with RunDirectory.open(tmp_path / "run", for_writing=False) as folder:
        with pytest.raises(RunDirectoryError, match="reading only"):
            folder.log_event("x")
        with pytest.raises(RunDirectoryError, match="reading only"):
            folder.write_json("transitions.json", {})


def test_what_a_killed_writer_left_is_removed_at_the_next_start(tmp_path):
    from spectral.storage import RunDirectory

    RunDirectory.create(tmp_path / "run", {}).close()
    left = [tmp_path / "run" / ".results.h5.ab12.tmp", tmp_path / "run" / "checkpoints" / ".step_000000001.pt.cd.tmp"]
    for path in left:
        path.write_bytes(b"half")
    RunDirectory.open(tmp_path / "run", for_writing=False).close()
    assert all(path.exists() for path in left)
    RunDirectory.open(tmp_path / "run", for_writing=True).close()
    assert not any(path.exists() for path in left)


def test_an_atomic_write_that_fails_leaves_the_old_text(tmp_path):
    import resource

    from spectral.storage import write_text_atomic

    path = tmp_path / "report.html"
    write_text_atomic(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_text_atomic(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]
