"""The training loop: updates, snapshots, checkpoints, and a resume that continues bit for bit.

Every random choice is a function of (seed, stream, step), so the state of a run is the weights, the optimizer and a few
numbers. A snapshot row is on disk before the checkpoint of the same step is written; a checkpoint therefore never
refers to rows that do not exist, and resuming drops exactly the rows after it.
"""

import contextlib
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spectral.config import RunConfig
from spectral.data import DataSource
from spectral.detection import OnlineEvent, RunVerdict
from spectral.detection.signals import signal_values
from spectral.errors import CheckpointError, NonFiniteError, ResultsFileError, UserError
from spectral.interruption import Interruption
from spectral.models import Transformer
from spectral.storage import (
    ResultsWriter,
    RunDirectory,
    checkpoint_name,
    find_newest_checkpoint,
    list_checkpoints,
    open_run,
    prune_checkpoints,
    save_checkpoint,
)
from spectral.training.curvature_row import CurvatureMeter, Notice
from spectral.training.dense_window import DenseWindow
from spectral.training.measure import CausalMeter, ProbeMeter
from spectral.training.monitor import SpectralMonitor
from spectral.training.progress import Progress
from spectral.training.restore import (
    CHECKPOINT_FORMAT,
    environment,
    environment_differences,
    require_own_checkpoint,
)
from spectral.training.results_file import create_results
from spectral.training.row import Row
from spectral.training.setup import (
    choose_compile,
    curvature_settings,
    curvature_subject,
    make_detector,
    make_deterministic,
    make_optimizer,
    select_device,
)
from spectral.training.tensorboard import FOLDER as TENSORBOARD_FOLDER
from spectral.training.tensorboard import TensorBoardLog
from spectral.training.update import rate_of, training_update


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: optimizer updates completed.
        finished: False when it was interrupted; a resume continues it.
        verdict: of the offline detector, None without snapshots or when interrupted.
        seconds: wall-clock time of this process's part.
        measuring_seconds: of that, spent on snapshots.
    """

    step: int
    finished: bool
    verdict: RunVerdict | None
    seconds: float
    measuring_seconds: float


class Trainer:
    """One run from its first step, or from its newest checkpoint, to its end.

    Args:
        config: the run's settings.
        directory: its folder, open for writing.
        resume: continue from the newest checkpoint instead of starting.
        resume_anyway: continue although the machine or the library versions differ from those of the checkpoint.
        progress: where to show progress; None = silent.
        tensorboard: keep a copy of the scalars for TensorBoard in `<run>/tensorboard`.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        *,
        resume: bool = False,
        resume_anyway: bool = False,
        progress: Progress | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.config, self.directory = config, directory
        self._progress = progress
        if config.n_threads:
            torch.set_num_threads(config.n_threads)
        self.device = select_device(config.device)
        make_deterministic(self.device)
        self.source = DataSource(config, self.device)
        self.model = Transformer.from_config(config).to(self.device)
        self.optimizer = make_optimizer(config, self.model)
        self.detector = make_detector(config)
        self.completed = 0
        self._stop_at = config.num_steps
        self._marked: set[int] = set()
        self._dense = DenseWindow(config)
        self._snapshots = frozenset(config.snapshot_steps())
        self._causal_steps = frozenset(config.causal_steps())
        self._probes = ProbeMeter(config, self.source)
        self._causes = CausalMeter(self._probes.plan, self.model) if self._causal_steps else None
        self._interruption = Interruption()
        self._saved = -1
        self._accuracy: float | None = None
        self._lambda_1: float | None = None
        state = self._load(resume_anyway) if resume else None
        self.monitor = self._open_monitor(state)
        if state is not None:
            self.monitor.load_state_dict(state["monitor"])
        self._tensorboard: TensorBoardLog | None = None
        if tensorboard:  # rows after the checkpoint are gone by now
            place = directory.path / TENSORBOARD_FOLDER
            self._tensorboard = TensorBoardLog.rewritten(place, open_run(directory.path) if resume else None)

    # the loop

    @property
    def finished(self) -> bool:
        """Whether no update is left to do."""
        return self.completed >= self._stop_at

    def run(self) -> Outcome:
        """Train to the end, or until interrupted.

        Raises:
            NonFiniteError: loss, gradient or spectrum became NaN or infinite. What was measured is on disk.
            ResultsFileError, CheckpointError: the disk refused.
        """
        started = time.perf_counter()
        if self._progress is not None and self._snapshots:
            compiled, why = choose_compile(self.config, self._n_parameters)
            self._progress.message(f"Hessian products: {'compiled' if compiled else 'eager'} ({why})")
        try:
            with self._interruption.watched(self._tell_saving):
                self._advance()
            finished = self.finished
            if finished:
                save_checkpoint(self.directory.model_final_path, dict(self.model.state_dict()))
        except UserError as error:
            self._fail(error)
            raise
        finally:
            if self._tensorboard is not None:
                self._tensorboard.close()
        verdict = None
        if finished:
            verdict = self.monitor.close(judge=self.config.detect)
        else:
            self.directory.log_event("interrupted", step=self.completed)
            self.monitor.close(status="interrupted")
        return Outcome(
            step=self.completed,
            finished=finished,
            verdict=verdict,
            seconds=time.perf_counter() - started,
            measuring_seconds=self.monitor.seconds,
        )

    def _advance(self) -> None:
        self.model.train()
        if self._saved < 0:  # a run resumed at step 0 has that snapshot already
            self._measure()
            self._measure_causes(last=False)
            self._save()
        while self.completed < self._stop_at and not self._interruption.requested:
            loss, norm = self._update()
            self.completed += 1
            step = self.completed
            last = step >= self._stop_at
            logged = step % self.config.log_interval == 0 or last
            if logged or self.device.type == "cpu":
                # On a GPU reading the loss waits for the device, so there it is checked where it is read anyway.
                self._require_finite(loss, norm)
            if logged:
                self._log(loss, norm)
            if step in self._snapshots or (last and self._snapshots) or self._dense.due(step):
                self._measure()
                last = step >= self._stop_at
            self._measure_causes(last=last)
            if self._checkpoint_due(step) or last or self._interruption.requested:
                self._require_finite(loss, norm)
                self._save()
            if self._progress is not None:
                facts: dict[str, float | None] = {}
                if logged:  # reading the loss makes a GPU wait
                    facts = {"loss": float(loss), "accuracy": self._accuracy, "lambda_1": self._lambda_1}
                self._progress.update(step, **facts)
        # The signal may have come after the step's last look at it.
        if self._interruption.requested and self._saved != self.completed:
            self._save()

    def _update(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Do one optimizer update; return the batch's loss before it and the gradient norm before clipping."""
        return training_update(self.model, self.optimizer, self.source, self.config, self.completed)

    def _require_finite(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        if not (math.isfinite(float(loss)) and math.isfinite(float(norm))):
            msg = (
                f"step {self.completed}: the loss ({float(loss):g}) or its gradient ({float(norm):g}) is not finite; "
                f"lower --lr {self.config.lr:g} or set --grad_clip. earlier results are in {self.directory.path}"
            )
            raise NonFiniteError(msg)

    def _log(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        config = self.config
        row = {
            "loss": float(loss),
            "learning_rate": rate_of(config, self.completed - 1),
            "gradient_norm": float(norm),
            "tokens_seen": self.completed * config.batch_size * config.seq_length,
        }
        self.monitor.log(self.completed, **row)
        if self._tensorboard is not None:
            self._tensorboard.training(self.completed, row)

    # snapshots and detection

    def _measure(self) -> None:
        if not self._snapshots:
            return
        events: list[OnlineEvent] = []

        def detect(row: Row) -> Row:
            if self.detector is None or self.completed not in self._snapshots:
                return {}
            values = {name: float(value) for name, value in signal_values(row.__getitem__, row).items()}
            events.extend(self.detector.update(self.completed, values))
            return {f"detector/{name}": value for name, value in self.detector.statistics.items()}

        row = self.monitor.snapshot(self.completed, extra=detect, last=self.completed >= self._stop_at)
        if self._tensorboard is not None:
            self._tensorboard.snapshot(self.completed, row)
        self._accuracy = float(row["behaviour/induction_accuracy"])
        eigenvalues = row.get("hessian/eigenvalues")
        self._lambda_1 = None if eigenvalues is None else float(eigenvalues[0])
        for event in events:
            self._announce(event)
        if self._dense.note(events, self.completed):
            self.directory.log_event("dense_window", step=self.completed, interval=self._dense.interval)
            if self._progress is not None:
                self._progress.message(f"step {self.completed}: snapshots every {self._dense.interval} steps from here")

    def _measure_causes(self, *, last: bool) -> None:
        """Store a row of `/causal` where one is due: as planned, at the end, and at a checkpoint of a transition.

        Never at a checkpoint that an interruption asked for: an uninterrupted run would not have that row.
        """
        if self._causes is None:
            return
        marked = self.config.causal == "checkpoints" and self.completed in self._marked
        if self.completed in self._causal_steps or last or marked:
            causes = self._causes
            self.monitor.causes(self.completed, lambda _: causes.measure(self.model))

    def _announce(self, event: OnlineEvent) -> None:
        self.directory.log_event(
            "detector", event=event.kind, **{name: value for name, value in event.to_dict().items() if name != "kind"}
        )
        if event.kind == "transition_revoked":
            self._stop_at = self.config.num_steps  # a false alarm must not end the run
        if event.kind != "transition_confirmed":
            return
        self.directory.log_event(
            "transition", step=self.completed, midpoint=event.midpoint, signals=list(event.signals)
        )
        self._marked.add(self.completed)  # its checkpoint is written after this snapshot and never pruned
        if self._progress is not None:
            self._progress.message(
                f"step {self.completed}: transition confirmed, midpoint about step {event.midpoint:.0f} "
                f"({', '.join(event.signals)})"
            )
        if self.config.stop_after_transition:
            self._stop_at = min(self._stop_at, self.completed + self.config.stop_after_transition)

    # state

    def _checkpoint_due(self, step: int) -> bool:
        interval = self.config.checkpoint_interval
        return step in self._marked or bool(interval and step % interval == 0)

    def _save(self) -> None:
        """Write a checkpoint of the current step, then delete old ones."""
        folder = self.directory.checkpoints_path
        state = {
            "format": CHECKPOINT_FORMAT,
            "step": self.completed,
            "config_digest": self.config.digest(),
            "environment": environment(self.device),
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "monitor": self.monitor.state_dict(),
            "detector": None if self.detector is None else self.detector.state_dict(),
            "stop_at": self._stop_at,
            "marked": sorted(self._marked),
            "dense_window": self._dense.state_dict(),
            "committed": list(self.monitor.writer.committed_by_run),
        }
        # A checkpoint must not outlive rows that it counts: rows of /train are forced to disk here.
        self.monitor.writer.set_status("running")
        save_checkpoint(folder / checkpoint_name(self.completed), state)
        self._saved = self.completed
        self.directory.log_event("checkpoint", step=self.completed)
        if self.config.keep_checkpoints:
            prune_checkpoints(folder, self.config.keep_checkpoints, self._marked)

    def _load(self, resume_anyway: bool) -> dict[str, Any] | None:
        """Restore the newest good checkpoint; None when the run died before its first one."""
        folder = self.directory.checkpoints_path
        if not list_checkpoints(folder):
            self.directory.log_event("resume", step=0, note="no checkpoint yet; starting from the first step")
            return None
        path, state, skipped = find_newest_checkpoint(folder, map_location=self.device)
        for reason in skipped:
            self.directory.log_event("checkpoint_skipped", reason=reason)
            if self._progress is not None:
                self._progress.message(f"skipped a damaged checkpoint: {reason}")
        require_own_checkpoint(path, state, self.config, self.directory.path)
        self._require_same_environment(path, state["environment"], resume_anyway)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.detector is not None and state["detector"] is not None:
            self.detector.load_state_dict(state["detector"])
        self.completed = self._saved = int(state["step"])
        self._stop_at = int(state["stop_at"])
        self._marked = set(state["marked"])
        self._dense.load_state_dict(state["dense_window"])
        self.directory.log_event("resume", step=self.completed)
        return state

    def _require_same_environment(self, path: Path, saved: dict[str, Any], resume_anyway: bool) -> None:
        different = environment_differences(saved, environment(self.device))
        if not different:
            return
        text = f"{path} was written under other conditions ({', '.join(different)})"
        if not resume_anyway:
            msg = (
                f"{text}, so the bits would differ from an uninterrupted run; add --resume_anyway to go on all the same"
            )
            raise CheckpointError(msg)
        self.directory.log_event("resume_anyway", differences=different)
        if self._progress is not None:
            self._progress.message(f"warning: {text}")

    def _meter(self) -> CurvatureMeter:
        subject = curvature_subject(self.config, self.model, self.optimizer, self.source)
        return CurvatureMeter(subject, curvature_settings(self.config, self._n_parameters))

    @property
    def _n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def _tell(self, notice: Notice) -> None:
        if self._progress is not None:
            self._progress.message(notice.text)

    def _open_monitor(self, state: dict[str, Any] | None) -> SpectralMonitor:
        config, path = self.config, self.directory.results_path
        if state is not None and not path.exists():
            msg = f"{path} is missing, and its rows cannot be measured again; restore a copy or start a new run"
            raise ResultsFileError(msg)
        meter = self._meter()
        if path.exists():
            # Also with no checkpoint: then nothing is kept, but probes and attributes are.
            writer = ResultsWriter.reopen(path, last_step=self.completed if state is not None else -1)
        else:
            writer = create_results(path, config, self.source, meter, self._probes, self._causes)
        if state is not None and list(writer.committed_by_run) != state["committed"]:
            rows = writer.committed_by_run
            writer.close()
            msg = (
                f"{path} has {rows[0]} training rows, {rows[1]} snapshots and {rows[2]} causal rows up to step "
                f"{self.completed} where the checkpoint counts {', '.join(map(str, state['committed']))}; it is not "
                "the file of this run: restore a copy or start a new run"
            )
            raise ResultsFileError(msg)
        monitor = SpectralMonitor.over(
            meter,
            self.directory,
            writer,
            eigen_interval=config.eigen_interval or config.num_steps,
            measurements=[lambda _: self._probes.measure(self.model)],
            significance=config.significance,
            tell=self._tell,
        )
        if state is None:
            self.directory.log_event("start", step=0, pid=os.getpid())
        return monitor

    def _fail(self, error: UserError) -> None:
        """Leave the run readable and say why it ended; the disk may be the reason, so nothing here may raise."""
        with contextlib.suppress(UserError, OSError):
            self.directory.log_event("error", step=self.completed, message=str(error))
        with contextlib.suppress(UserError, OSError):
            self.monitor.close(status="failed")

    def _tell_saving(self, signal_name: str) -> None:
        if self._progress is not None:
            self._progress.message(f"{signal_name}: saving a checkpoint after this step")
