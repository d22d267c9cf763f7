"""Training the runs of a study: finished ones are kept, interrupted ones go on bit for bit, others are refused."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spectral.config import RunConfig
from spectral.errors import RunDirectoryError, UserError
from spectral.storage import RunDirectory, open_run
from spectral.storage.locks import is_locked
from spectral.storage.run_directory import CONFIG_NAME, LOCK_NAME, read_json
from spectral.studies.plan import Job, Plan, differing_setting
from spectral.training import Progress, Trainer
from spectral.training.estimate import estimate

Tell = Callable[[dict[str, Any]], None]
"""Receives what happens in a run: `event` is `step`, `message` or `done`; `run` is its name."""

_REPORT_SECONDS = 0.5


def is_finished(job: Job) -> bool:
    """Tell whether a run has been trained to its end and judged."""
    if not ((job.path / "results.h5").exists() and (job.path / "model_final.pt").exists()):
        return False
    return open_run(job.path).status == "finished"


def check_folders(plan: Plan, jobs: Sequence[Job]) -> None:
    """Check, before anything is written, that every folder of a study is one that it may go on with.

    Args:
        plan: the study.
        jobs: the runs to be trained; those found in the folder beside them are checked for their settings only.

    Raises:
        RunDirectoryError: a run with other settings, a folder that holds no run, a run that another process writes to,
            or a place that cannot be written.
    """
    place = next(place for place in (plan.runs_path, *plan.runs_path.parents) if place.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        msg = f"{place} cannot be written; choose another place with --output"
        raise RunDirectoryError(msg)
    wanted = {job.name for job in jobs}
    for job in [*jobs, *(job for job in plan.found_jobs() if job.name not in wanted)]:
        if not job.path.exists():
            continue
        if not job.path.is_dir() or not (_is_begun(job) or _is_empty(job)):
            msg = f"{job.path} holds no run; move it away or choose another place with --output"
            raise RunDirectoryError(msg)
        stored = read_json(job.path / CONFIG_NAME)
        different = differing_setting(job, stored) if stored else None
        if different is not None:
            name, found, asked = different
            msg = f"{job.path} was made with {name} {found}, this study asks for {asked}; give the --scale of then, "
            msg += "or another --output"
            raise RunDirectoryError(msg)
        if job.name in wanted and is_locked(job.path / LOCK_NAME):
            holder = read_json(job.path / LOCK_NAME)
            msg = f"{job.path} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}; "
            msg += "wait for it or stop it first"
            raise RunDirectoryError(msg)


def train_run(job: Job, *, tell: Tell, resume_anyway: bool = False) -> bool:
    """Train one run in this process, from its first step or from where it stopped.

    Returns:
        Whether it reached its end; False after Ctrl-C or SIGTERM, when a checkpoint was saved.

    Raises:
        UserError: whatever the trainer refuses: a damaged file, another machine, a loss that is not finite.
    """
    begun = _is_begun(job)
    if begun:
        opened = RunDirectory.open(job.path, for_writing=True)
    else:
        opened = RunDirectory.create(job.path, job.config.to_dict(), overwrite=_is_empty(job))
    with opened as directory:
        config = RunConfig.from_dict(directory.config)
        progress = _Reporter(job.name, config.num_steps, tell)
        trainer = Trainer(config, directory, resume=begun, resume_anyway=resume_anyway, progress=progress)
        progress.start(trainer.completed)
        outcome = trainer.run()
    tell({"event": "done", "run": job.name, "finished": outcome.finished, "seconds": outcome.seconds})
    return outcome.finished


def train_all(jobs: Sequence[Job], *, n_parallel: int, tell: Tell, resume_anyway: bool = False) -> bool:
    """Train all runs that are not finished, up to `n_parallel` at a time in processes of their own.

    Ctrl-C or SIGTERM lets every running one save a checkpoint; a second one ends at once.

    Returns:
        Whether all are finished; False when interrupted.

    Raises:
        UserError: a run failed. The others were stopped with a checkpoint.
    """
    pending = [job for job in jobs if not is_finished(job)]
    # The longest first: what is left at the end is short, so no core waits long.
    pending.sort(key=lambda job: -job.config.num_steps * job.config.n_layers)
    if n_parallel <= 1 or len(pending) <= 1:
        return all(train_run(job, tell=tell, resume_anyway=resume_anyway) for job in pending)
    return _Pool(n_parallel, tell, resume_anyway).run(pending)


def expected_seconds(jobs: Sequence[Job], n_parallel: int) -> float:
    """Return about how long training takes, timed on a few steps of each model; nothing is written.

    Interrupted runs are counted as if they began anew. With several at a time it is at least as long as the longest.
    """
    price = {}
    for job in jobs:
        if job.model not in price:
            price[job.model] = estimate(job.config).seconds
    seconds = [price[job.model] for job in jobs if not is_finished(job)]
    return max(sum(seconds) / n_parallel, max(seconds, default=0.0)) if seconds else 0.0


def _is_begun(job: Job) -> bool:
    return (job.path / CONFIG_NAME).exists()


def _is_empty(job: Job) -> bool:
    """Tell whether nothing is lost by beginning a run here; a kill in its first instant leaves a lock file alone."""
    return not job.path.exists() or (job.path.is_dir() and set(os.listdir(job.path)) <= {LOCK_NAME})


class _Reporter(Progress):
    """Passes on what a trainer tells instead of showing it."""

    def __init__(self, run: str, total: int, tell: Tell) -> None:
        self._run, self._steps, self._report = run, total, tell
        self._known: dict[str, float] = {}
        self._next = 0.0

    def start(self, initial: int) -> None:
        self._report({"event": "step", "run": self._run, "step": initial, "total": self._steps})

    def update(self, step: int, **facts: float | None) -> None:
        self._known |= {name: value for name, value in facts.items() if value is not None}
        now = time.monotonic()
        if now >= self._next or step == self._steps:
            self._next = now + _REPORT_SECONDS
            self._report({"event": "step", "run": self._run, "step": step, "total": self._steps, **self._known})

    def message(self, text: str) -> None:
        self._report({"event": "message", "run": self._run, "text": text})

    def close(self) -> None:
        """Nothing is open."""


def _read_event(name: str, line: str) -> dict[str, Any]:
    """Return one line of a worker as an event; what a library prints in between becomes a message."""
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    return event if isinstance(event, dict) else {"event": "message", "run": name, "text": line.rstrip()}


class _Pool:
    """Worker processes, each training one run and telling about it in lines of JSON."""

    def __init__(self, n_parallel: int, tell: Tell, resume_anyway: bool) -> None:
        self._n, self._tell, self._resume_anyway = n_parallel, tell, resume_anyway
        self._events: queue.Queue[tuple[str, dict[str, Any] | None]] = queue.Queue()
        self._workers: dict[str, subprocess.Popen[str]] = {}
        self._stopping = False

    def run(self, jobs: list[Job]) -> bool:
        """Train the jobs; return whether all finished."""
        waiting, unfinished, failure = list(jobs), {job.name for job in jobs}, ""
        previous = self._catch_signals()
        try:
            while self._workers or (waiting and not self._stopping):
                while waiting and len(self._workers) < self._n and not self._stopping:
                    self._start(waiting.pop(0))
                try:
                    name, event = self._events.get(timeout=0.2)
                except queue.Empty:
                    continue
                if event is None:  # its output has ended, so the process has, or will in a moment
                    code = self._workers.pop(name).wait()
                    if name in unfinished and not self._stopping and not failure:
                        failure = f"the process that trained {name} ended with exit code {code}; give the command "
                        failure += "again to go on from its last checkpoint"
                        self._stop()
                elif event["event"] == "error":
                    failure = failure or str(event["text"])
                    self._stop()
                else:
                    if event["event"] == "done" and event["finished"]:
                        unfinished.discard(name)
                    self._tell(event)
        finally:
            for worker in self._workers.values():
                worker.kill()
                worker.wait()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if failure:
            raise UserError(failure)
        return not unfinished

    def _start(self, job: Job) -> None:
        package = str(Path(__file__).parents[2])
        paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        settings = json.dumps(job.settings)
        command = [sys.executable, "-m", "spectral.studies.worker", job.model, str(job.path), settings]
        command += ["--resume_anyway"] if self._resume_anyway else []
        worker = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )
        self._workers[job.name] = worker
        threading.Thread(target=self._listen, args=(job.name, worker), daemon=True).start()

    def _listen(self, name: str, worker: "subprocess.Popen[str]") -> None:
        assert worker.stdout is not None
        try:
            with worker.stdout as lines:
                for line in lines:
                    self._events.put((name, _read_event(name, line)))
        finally:  # whatever happens here: the loop waits for this
            self._events.put((name, None))

    def _stop(self) -> None:
        self._stopping = True
        for worker in self._workers.values():
            worker.terminate()

    def _catch_signals(self) -> dict[signal.Signals, Any]:
        def stop(number: int, _frame: Any) -> None:
            if self._stopping:
                raise KeyboardInterrupt
            self._stop()

        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
