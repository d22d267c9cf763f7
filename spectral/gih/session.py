"""An experiment in a run folder: trained, committed every few seconds, resumed with the same bits.

A commit is: replace `results.h5`, then write a checkpoint that counts its rows. A process that dies loses what came
after its last commit and nothing before: the resumed run cuts the rows to those of its checkpoint and measures the
others again.
"""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import scipy
import torch

from spectral.errors import CheckpointError, ResultsFileError, UserError
from spectral.gih.config import GIHConfig
from spectral.gih.dating import stage_transitions
from spectral.gih.expected import expected_information
from spectral.gih.generalisation import generalisation
from spectral.gih.references import references
from spectral.gih.results import Extras, GIHResults, build_dataset, read_dataset, read_rows, write_dataset
from spectral.gih.runner import GIHRun, Measurement, Progress
from spectral.interruption import Interruption
from spectral.storage.checkpoint import (
    checkpoint_name,
    find_newest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    save_checkpoint,
)
from spectral.storage.run_directory import RunDirectory

FORMAT = "spectral.gih/1"
COMMIT_SECONDS = 5.0
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a session ended.

    Attributes:
        finished: whether the whole experiment is done; else it was interrupted and saved.
        n_rows: rows stored.
        seconds: spent in this session.
    """

    finished: bool
    n_rows: int
    seconds: float


class GIHSession:
    """One sitting of an experiment in its folder, whose lock the caller holds.

    Args:
        config: the settings; of a resumed run, its own.
        directory: open for writing.
        resume: go on from the newest checkpoint.
        resume_anyway: also where the conditions differ on which the bits depend.
        show: called with progress after every epoch and row.
        say: called with one line for a person.
        commit_seconds: least time between two commits; None = 5.

    Raises:
        CheckpointError: the checkpoint is of other settings or conditions. ResultsFileError: rows are missing.
    """

    def __init__(
        self,
        config: GIHConfig,
        directory: RunDirectory,
        *,
        resume: bool = False,
        resume_anyway: bool = False,
        show: Callable[[Progress, Measurement | None], None] | None = None,
        say: Callable[[str], None] | None = None,
        commit_seconds: float | None = None,
    ) -> None:
        self.config, self.directory = config, directory
        self._show, self._say = show, say or (lambda text: None)
        self._every = COMMIT_SECONDS if commit_seconds is None else commit_seconds
        self._interruption = Interruption()
        self._rows: list[Measurement] = []
        self._commits = 0
        self.run = GIHRun(config, watch=self._watch)
        state = self._load(resume_anyway) if resume else None
        if state is not None:
            self.run.load_state_dict(state["run"])
            self._rows = self._stored_rows(int(state["n_rows"]))
            self._commits = int(state["commits"])
        else:
            directory.log_event("start", pid=os.getpid())
        self._extras = Extras(references=references(config), information=expected_information(config))
        self._last_commit = time.monotonic()

    @property
    def rows(self) -> list[Measurement]:
        """The rows so far."""
        return self._rows

    @property
    def extras(self) -> Extras:
        """Observers, information and, at the end, generalisation."""
        return self._extras

    def train(self) -> Outcome:
        """Train to the end, or until SIGINT or SIGTERM; measure generalisation and date the stages at the end.

        Raises:
            UserError: training diverged or the disk refused; what was committed is kept.
        """
        started = time.monotonic()
        try:
            with self._interruption.watched():
                for row in self.run.measurements():
                    self._rows.append(row)
                    if row.time == 0:
                        names = "+".join(self.config.stages()[row.stage].train)
                        self.directory.log_event("stage", stage=row.stage, train=names)
                    self._tell(row)
                    self._commit_if_due()
                    if self._interruption.requested:
                        break
            if not self.run.finished:
                self._commit("interrupted")
                self.directory.log_event("interrupted", n_rows=len(self._rows))
                return Outcome(finished=False, n_rows=len(self._rows), seconds=time.monotonic() - started)
            self._commit("running")
            self._finish()
        except UserError as error:
            with contextlib.suppress(UserError, OSError):  # the disk may be the reason
                self.directory.log_event("error", message=str(error))
                self._write("failed")
            raise
        return Outcome(finished=True, n_rows=len(self._rows), seconds=time.monotonic() - started)

    def _finish(self) -> None:
        config = self.config
        if config.generalisation_chains:
            self._say(f"generalisation: {config.generalisation_chains} fresh chains at 3 concentrations and 8 lengths")
            found = generalisation(
                self.run.model,
                parents=config.lags,
                n_chains=config.generalisation_chains,
                eps=config.eps,
                seed=config.seed,
            )
            self._extras = Extras(
                references=self._extras.references, information=self._extras.information, generalisation=found
            )
        save_checkpoint(self.directory.model_final_path, {"format": FORMAT, "model": self._weights()})
        self._write("finished")
        verdict = stage_transitions(GIHResults(self.directory.path))
        self.directory.write_json("transitions.json", verdict)
        self.directory.log_event("end", n_rows=len(self._rows))

    def _weights(self) -> dict[str, Any]:
        return {name: value.clone() for name, value in self.run.model.state_dict().items()}

    def _watch(self, progress: Progress) -> bool:
        if self._show is not None:
            self._show(progress, None)
        self._commit_if_due()
        return not self._interruption.requested

    def _tell(self, row: Measurement) -> None:
        if self._show is None:
            return
        stages = self.config.stages()
        stage = stages[row.stage]
        total = stage.flow_time or float(stage.epochs)
        self._show(Progress(stage=row.stage, n_stages=len(stages), time=row.time, total=total), row)

    def _commit_if_due(self) -> None:
        if self._rows and time.monotonic() - self._last_commit >= self._every:
            self._commit("running")

    def _commit(self, status: str) -> None:
        self._write(status)
        self._commits += 1
        folder = self.directory.checkpoints_path
        state = {
            "format": FORMAT,
            "run": self.run.state_dict(),
            "n_rows": len(self._rows),
            "commits": self._commits,
            "environment": environment(),
        }
        save_checkpoint(folder / checkpoint_name(self._commits), state)
        prune_checkpoints(folder, KEPT_CHECKPOINTS, set())
        self.directory.log_event("checkpoint", number=self._commits, n_rows=len(self._rows))
        self._last_commit = time.monotonic()

    def _write(self, status: str) -> None:
        write_dataset(build_dataset(self.config, self._rows, self._extras, status=status), self.directory.results_path)

    def _load(self, resume_anyway: bool) -> dict[str, Any] | None:
        """Return the newest good checkpoint; None when the run died before its first one."""
        folder = self.directory.checkpoints_path
        if not list_checkpoints(folder):
            self.directory.log_event("resume", n_rows=0, note="no checkpoint yet; starting from the first epoch")
            return None
        path, state, skipped = find_newest_checkpoint(folder)
        for reason in skipped:
            self.directory.log_event("checkpoint_skipped", reason=reason)
            self._say(f"skipped a damaged checkpoint: {reason}")
        if state.get("format") != FORMAT:
            msg = f"{path} is no checkpoint of spectral train-gih; move it out of the folder"
            raise CheckpointError(msg)
        if state["run"]["config"] != self.config.to_dict():
            msg = f"{path} belongs to other settings than {self.directory.path}/config.json; start a new run"
            raise CheckpointError(msg)
        now = environment()
        saved = state["environment"]
        changed = [f"{key} {saved.get(key)} -> {value}" for key, value in now.items() if saved.get(key) != value]
        if changed and not resume_anyway:
            msg = (
                f"{path} was written under other conditions ({', '.join(changed)}), so the bits would differ from an "
                "uninterrupted run; add --resume_anyway to go on all the same"
            )
            raise CheckpointError(msg)
        if changed:
            self._say(f"warning: resumed under other conditions ({', '.join(changed)})")
        self.directory.log_event("resume", n_rows=state["n_rows"], changed=changed)
        return state

    def _stored_rows(self, n: int) -> list[Measurement]:
        path = self.directory.results_path
        if not path.exists():
            msg = f"{path} is missing, and its rows cannot be measured again; restore a copy or start a new run"
            raise ResultsFileError(msg)
        try:
            return read_rows(read_dataset(path), n)
        except ValueError as error:
            msg = f"{path} is not the file of this run ({error}); restore a copy or start a new run"
            raise ResultsFileError(msg) from error


def environment() -> dict[str, Any]:
    """Return the conditions on which the bits of an update depend."""
    return {
        "torch": str(torch.__version__),
        "scipy": str(scipy.__version__),
        "threads": torch.get_num_threads(),
    }
