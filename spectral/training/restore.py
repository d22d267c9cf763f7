"""A run's weights and optimizer as they were after any number of updates.

Training is a function of (configuration, step), so the state after step S is that of an earlier checkpoint plus the
updates between them, done again: bit for bit the same on the same machine, PyTorch and number of threads.
"""

import contextlib
import copy
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spectral.config import FIELD_NAMES, RunConfig
from spectral.data import DataSource
from spectral.errors import CheckpointError, ConfigError, NonFiniteError, RunDirectoryError
from spectral.models import Transformer
from spectral.storage import RunDirectory, list_checkpoints, load_checkpoint
from spectral.training.setup import make_optimizer
from spectral.training.update import training_update

CHECKPOINT_FORMAT = 1


def environment(device: torch.device) -> dict[str, Any]:
    """Return the conditions on which the bits of an update depend."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "device": name}


def environment_differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return one phrase per condition that differs, such as `threads 7 -> 1`."""
    return [f"{name} {saved.get(name)} -> {now[name]}" for name in now if saved.get(name) != now[name]]


def require_own_checkpoint(path: Path, state: Any, config: RunConfig, run_path: Path) -> None:
    """Check that a checkpoint was written by this suite for this run.

    Raises:
        CheckpointError: foreign, of another format, or of another configuration.
    """
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        msg = f"{path} is no checkpoint of this suite; move it out of the folder"
        raise CheckpointError(msg)
    if state["config_digest"] != config.digest():
        msg = f"{path} belongs to another configuration than {run_path}/config.json; start a new run"
        raise CheckpointError(msg)


def read_run_config(run_path: str | os.PathLike[str]) -> RunConfig:
    """Return the settings of a run that `train.py` made.

    Raises:
        RunDirectoryError: no run there, or a run of another program, which cannot be trained here.
        ConfigError: settings that this version does not know.
    """
    directory = RunDirectory.open(run_path, for_writing=False)
    stored = directory.config
    missing = [name for name in FIELD_NAMES if name not in stored]
    if missing:
        msg = (
            f"{directory.path}/config.json does not say how to train (no {missing[0]!r}); "
            "give a run of train.py, made by this version"
        )
        raise RunDirectoryError(msg)
    try:
        return RunConfig.from_dict(stored)
    except ConfigError as error:
        msg = f"{directory.path}/config.json was written by another version or edited: {error}"
        raise RunDirectoryError(msg) from None


@dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """Where a replay begins.

    Attributes:
        step: updates completed there.
        checkpoint: file name of the checkpoint; None = the initialisation.
        state: content of the checkpoint; None = the initialisation.
        environment: conditions under which the run went on there; empty when no checkpoint tells.
        skipped: why newer checkpoints were passed over.
    """

    step: int
    checkpoint: str | None
    state: dict[str, Any] | None
    environment: dict[str, Any]
    skipped: tuple[str, ...]


def find_origin(
    run_path: Path, config: RunConfig, step: int, *, from_start: bool, map_location: torch.device
) -> Origin:
    """Return the newest whole checkpoint at or before a step, or the initialisation.

    Safe on a run that is being written: checkpoints appear whole, and one deleted meanwhile is passed over.

    Args:
        run_path: the run folder.
        config: its settings.
        step: updates completed.
        from_start: use the initialisation where no checkpoint is early enough.
        map_location: where the tensors of the checkpoint go.

    Raises:
        CheckpointError: no checkpoint is early enough and `from_start` is off, or one belongs to another run.
    """
    found = list_checkpoints(run_path / "checkpoints")
    skipped: list[str] = []
    for completed, path in reversed([pair for pair in found if pair[0] <= step]):
        try:
            state = load_checkpoint(path, map_location=map_location)
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        require_own_checkpoint(path, state, config, run_path)
        return Origin(
            step=completed,
            checkpoint=path.name,
            state=state,
            environment=dict(state["environment"]),
            skipped=tuple(skipped),
        )
    if not from_start:
        later = [completed for completed, _ in found if completed > step]
        why = (
            f"{len(skipped)} damaged" if skipped else f"the oldest is of step {later[0]}" if later else "there is none"
        )
        other = f"choose --step {later[0]} or later, " if later else ""
        msg = (
            f"{run_path} has no checkpoint at or before step {step} ({why}); {other}"
            "add --from_start to repeat the run from its initialisation, or train with --keep_checkpoints 0"
        )
        raise CheckpointError(msg)
    return Origin(step=0, checkpoint=None, state=None, environment=_later_environment(found), skipped=tuple(skipped))


@contextlib.contextmanager
def run_conditions(config: RunConfig, origin: Origin, device: torch.device) -> Iterator[None]:
    """Compute with the run's number of threads; threads and global random state are put back afterwards."""
    threads = torch.get_num_threads()
    wanted = origin.environment.get("threads", config.n_threads) or threads
    try:
        torch.set_num_threads(int(wanted))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(threads)


class Replica:
    """A run's model and optimizer in memory, free to go its own way.

    Attributes:
        model: in training mode.
        optimizer: over its parameters.
        completed: updates done.
    """

    def __init__(self, config: RunConfig, source: DataSource) -> None:
        """Begin at the initialisation."""
        self.config, self.source = config, source
        self.model = Transformer.from_config(config).to(source.device)
        self.model.train()
        self.optimizer = make_optimizer(config, self.model)
        self.completed = 0

    @classmethod
    def at(cls, origin: Origin, config: RunConfig, source: DataSource) -> "Replica":
        """Begin at a checkpoint or at the initialisation."""
        replica = cls(config, source)
        if origin.state is not None:
            replica._load(origin.state["model"], origin.state["optimizer"], origin.step)
        return replica

    def fork(self) -> "Replica":
        """Return an independent copy."""
        other = Replica(self.config, self.source)
        other._load(self.model.state_dict(), self.optimizer.state_dict(), self.completed)
        return other

    def update(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Do the next update of the run; return the batch's loss before it and the gradient norm before clipping."""
        result = training_update(self.model, self.optimizer, self.source, self.config, self.completed)
        self.completed += 1
        return result

    def replay(self, run_path: Path) -> float:
        """Do the next update and return the batch's loss before it; NaN or infinity raises `NonFiniteError`."""
        loss, norm = self.update()
        if not math.isfinite(float(loss) + float(norm)):
            msg = f"{run_path} diverges: loss or gradient are not finite after step {self.completed - 1}; begin earlier"
            raise NonFiniteError(msg)
        return float(loss)

    def _load(self, weights: dict[str, Any], optimizer: dict[str, Any], completed: int) -> None:
        self.model.load_state_dict(weights)
        # An optimizer keeps the tensors that it is given and writes into them.
        self.optimizer.load_state_dict(copy.deepcopy(optimizer))
        self.completed = completed


def _later_environment(found: list[tuple[int, Path]]) -> dict[str, Any]:
    for _, path in found:
        try:
            return dict(load_checkpoint(path)["environment"])
        except (CheckpointError, KeyError):
            continue
    return {}
