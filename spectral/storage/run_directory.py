"""The folder of one run: its lock, configuration, event log and the names of everything else in it."""

import contextlib
import datetime
import json
import math
import os
import shutil
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from spectral.errors import RunDirectoryError
from spectral.storage.atomic import TEMPORARY_SUFFIX, fsync_folder, remove_stale_temporaries, write_text_atomic
from spectral.storage.locks import is_locked, take_lock

LOCK_NAME = "run.lock"
CONFIG_NAME = "config.json"
RESULTS_NAME = "results.h5"
TRANSITIONS_NAME = "transitions.json"
EVENTS_NAME = "events.jsonl"

_KNOWN_ENTRIES = {
    LOCK_NAME,
    CONFIG_NAME,
    RESULTS_NAME,
    TRANSITIONS_NAME,
    EVENTS_NAME,
    "checkpoints",
    "figures",
    "probe_steps",
    "export",
    "tensorboard",
    "model_final.pt",
    "model_final.pt.sha256",
    "report.html",
}


class RunDirectory:
    """One run folder, open for writing (its lock held until `close` or death) or for reading."""

    def __init__(self, path: Path, *, lock: int | None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: dict[str, Any], *, overwrite: bool = False) -> "RunDirectory":
        """Make a run folder, take its lock and store the configuration.

        Args:
            path: the folder; missing, or empty.
            config: the resolved configuration, JSON-serialisable.
            overwrite: delete an earlier run at `path` first. Only a folder that holds a run and nothing else is
                deleted, and only while no process writes to it.

        Raises:
            RunDirectoryError: the folder is not empty, is in use, is no run, or cannot be made.
            TypeError: `config` holds something JSON cannot express.
        """
        folder = Path(path)
        text = json.dumps(config, indent=2)
        try:
            if folder.exists() and not folder.is_dir():
                msg = f"{folder} is a file; choose another run name"
                raise RunDirectoryError(msg)
            entries = sorted(os.listdir(folder)) if folder.is_dir() else []
            if entries and not overwrite:
                msg = f"{folder} is not empty; go on with --resume {folder}, give another --run_name, or --overwrite it"
                raise RunDirectoryError(msg)
            if entries:
                _require_run(folder, entries)
            folder.mkdir(parents=True, exist_ok=True)
            lock = _acquire(folder)
            try:
                _clear(folder)
                for name in ("checkpoints", "figures"):
                    (folder / name).mkdir()
                write_text_atomic(folder / CONFIG_NAME, text + "\n")
                fsync_folder(folder.parent)
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            msg = f"{folder} cannot be set up ({error.strerror}); choose another place for the run"
            raise RunDirectoryError(msg) from error
        return cls(folder, lock=lock)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, for_writing: bool) -> "RunDirectory":
        """Open an existing run folder.

        Args:
            path: the folder.
            for_writing: take the lock, delete what a killed writer left half written, end a cut line of the log.

        Raises:
            RunDirectoryError: missing folder, no run in it, or another process writes to it.
        """
        folder = Path(path)
        require_run_folder(folder)
        if not for_writing:
            return cls(folder, lock=None)
        try:
            lock = _acquire(folder)
            try:
                for place in (folder, folder / "checkpoints", folder / "figures"):
                    place.mkdir(exist_ok=True)
                    remove_stale_temporaries(place)
                _mend_last_line(folder / EVENTS_NAME)
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            msg = f"{folder} cannot be written ({error.strerror}); check its permissions and the free space"
            raise RunDirectoryError(msg) from error
        return cls(folder, lock=lock)

    @property
    def config(self) -> dict[str, Any]:
        """The stored configuration."""
        found = read_json(self.path / CONFIG_NAME)
        if not found:
            msg = f"{self.path / CONFIG_NAME} cannot be read; restore it or start a new run"
            raise RunDirectoryError(msg)
        return found

    @property
    def results_path(self) -> Path:
        """Where `results.h5` lies."""
        return self.path / RESULTS_NAME

    @property
    def checkpoints_path(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def figures_path(self) -> Path:
        """Folder of the figures."""
        return self.path / "figures"

    @property
    def model_final_path(self) -> Path:
        """Where the final weights lie."""
        return self.path / "model_final.pt"

    def log_event(self, kind: str, **fields: Any) -> None:
        """Append one line to the event log: `kind`, the time (UTC), and `fields` (non-finite numbers become null)."""
        self._require_lock()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps(plain_json({"time": now, "kind": kind, **fields})) + "\n"
        self._append(line.encode("utf-8"))

    def read_events(self) -> list[dict[str, Any]]:
        """Return the events in order; lines that a crash cut are skipped."""
        try:
            text = (self.path / EVENTS_NAME).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        events = []
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if isinstance(event, dict):
                    events.append(event)
        return events

    def write_json(self, name: str, content: Any) -> None:
        """Replace `name` in this folder by `content` as JSON, whole or not at all; non-finite numbers become null.

        Raises:
            ValueError: `name` is a path. TypeError: something JSON cannot express.
            RunDirectoryError: opened for reading only, or the disk refused.
        """
        self._require_lock()
        if Path(name).name != name:
            msg = f"{name!r} is no plain file name; leave out the folders"
            raise ValueError(msg)
        text = json.dumps(plain_json(content), indent=2, allow_nan=False) + "\n"
        try:
            write_text_atomic(self.path / name, text)
        except OSError as error:
            msg = f"{self.path / name} could not be written ({error.strerror}); free some space and try again"
            raise RunDirectoryError(msg) from error

    def close(self) -> None:
        """Release the lock; does nothing the second time."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_lock(self) -> None:
        if self._lock is None:
            msg = f"{self.path} is open for reading only; open it for writing"
            raise RunDirectoryError(msg)

    def _append(self, data: bytes) -> None:
        try:
            descriptor = os.open(self.path / EVENTS_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                # One write() per line: with O_APPEND lines of several threads never mix.
                os.write(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            msg = f"{self.path / EVENTS_NAME} could not be written ({error.strerror}); free some space, then resume"
            raise RunDirectoryError(msg) from error


def require_run_folder(folder: Path) -> None:
    """Check that `folder` holds a run.

    Raises:
        RunDirectoryError: missing, a file, or a folder without configuration and results.
    """
    if not folder.exists():
        msg = f"{folder} does not exist; check the path"
        raise RunDirectoryError(msg)
    if not folder.is_dir():
        msg = f"{folder} is a file; give the run folder"
        raise RunDirectoryError(msg)
    if not (folder / CONFIG_NAME).exists() and not (folder / RESULTS_NAME).exists():
        msg = f"{folder} is no run folder (neither {CONFIG_NAME} nor {RESULTS_NAME} in it); give the folder of one run"
        raise RunDirectoryError(msg)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object at `path`; empty when it is missing or unreadable."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _acquire(folder: Path) -> int:
    path = folder / LOCK_NAME
    lock = take_lock(path)
    if lock is None:
        holder = read_json(path)
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('started', '?')}"
        msg = f"{folder} is in use by {who}; wait for it or stop it first"
        raise RunDirectoryError(msg)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}) + "\n"
    # In place, not by rename: the lock belongs to this file and not to its name.
    os.ftruncate(lock, 0)
    os.pwrite(lock, text.encode("utf-8"), 0)
    return lock


def _require_run(folder: Path, entries: list[str]) -> None:
    """Refuse to delete anything but a run: a mistyped path must not cost someone's files."""
    if CONFIG_NAME not in entries and RESULTS_NAME not in entries and entries != [LOCK_NAME]:
        msg = f"{folder} holds no run and is not overwritten; choose another run name"
        raise RunDirectoryError(msg)
    strange = [e for e in entries if e not in _KNOWN_ENTRIES and not _is_temporary(e)]
    if strange or folder.is_symlink():
        what = f"also holds {strange[0]}" if strange else "is a link"
        msg = f"{folder} {what} and is not overwritten; move that away or choose another run name"
        raise RunDirectoryError(msg)
    if is_locked(folder / LOCK_NAME) or is_locked(folder / RESULTS_NAME):
        holder = read_json(folder / LOCK_NAME)
        msg = f"{folder} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}; stop it first"
        raise RunDirectoryError(msg)


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name == LOCK_NAME:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)


def _mend_last_line(path: Path) -> None:
    """End a line that a crash cut, so that the next event starts on its own."""
    try:
        with open(path, "r+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() == 0:
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
    except FileNotFoundError:
        return


def plain_json(value: Any) -> Any:
    """Return `value` in JSON's terms; NaN and infinities, which JSON lacks, become null."""
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy numbers and arrays, tensors
        return plain_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
