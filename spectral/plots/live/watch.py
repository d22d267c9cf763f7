"""A run under observation: new content when something was committed, and how the run is doing in between."""

import threading
import time
from pathlib import Path
from typing import Any

from spectral.errors import UserError
from spectral.plots.report import gather, to_json, waiting
from spectral.plots.report.payload import STATUS_WORDS
from spectral.storage import Run, open_run
from spectral.storage.locks import is_locked
from spectral.storage.run_directory import LOCK_NAME, RESULTS_NAME, TRANSITIONS_NAME, require_run_folder

MAP_BYTES = 1_000_000  # all content is sent anew with every snapshot
BUSY_SHARE = 0.1  # of one processor at most goes into content: the run beside it needs it


class RunWatch:
    """Looks at a run whenever it is asked, from any thread; no file stays open between looks.

    Args:
        path: a run folder, with or without results yet.

    Raises:
        RunDirectoryError: no such folder, or no run in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.parent if path.name == RESULTS_NAME else path
        require_run_folder(self.path)
        self._run: Run | None = None
        self._lock = threading.Lock()
        self._version = ""
        self._content = ""
        self._next = 0.0  # earliest time to make content again

    def look(self) -> tuple[str, dict[str, str]]:
        """Return the version of the newest content, and `{status, text}` of this moment."""
        with self._lock:
            self._refresh()
            status = "waiting" if self._run is None else self._run.status
            return self._version, {"status": status, "text": STATUS_WORDS.get(status, status)}

    def content(self) -> str:
        """Return the newest content as JSON; call `look` before."""
        with self._lock:
            return self._content

    @property
    def finished(self) -> bool:
        """Whether nobody writes to the run, so that nothing will be added unless someone resumes it."""
        with self._lock:
            if self._run is None:
                return not is_locked(self.path / LOCK_NAME)
            return self._run.status != "running"

    def _refresh(self) -> None:
        try:
            if self._run is None:
                self._run = open_run(self.path)
            else:
                self._run.refresh()
            version = self._seen(self._run)
            note = ""
        except UserError as error:
            # No results yet, or between two states of a live file; what was shown stays.
            version, note = f"waiting {error}", str(error)
            if self._run is not None:
                return
        now, started = time.monotonic(), time.thread_time()
        running = self._run is not None and self._run.status == "running"
        # How a run ended is told at once.
        if version == self._version or (running and now < self._next):
            return
        try:
            made: dict[str, Any] = (
                waiting(self.path.name, f"No results yet: {note}")
                if self._run is None
                else gather(self._run, map_bytes=MAP_BYTES, checkpoints=False)
            )
        except UserError:
            return  # a writer got in the way; the next look tries again
        self._content, self._version = to_json(made), version
        took = time.thread_time() - started
        self._next = now + took / BUSY_SHARE

    def _seen(self, run: Run) -> str:
        """Return what a reader can see of a run, as text that changes when it does."""
        try:
            judged = (self.path / TRANSITIONS_NAME).stat().st_mtime_ns
        except OSError:
            judged = 0
        last = [steps[-1:].tolist() for steps in (run.steps, run.train_steps)]
        return f"{len(run.steps)} {len(run.train_steps)} {last} {run.status} {judged}"
