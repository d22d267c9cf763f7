"""What any study consists of: named models times seeds, each a run with settings of its own."""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from spectral.config import RunConfig
from spectral.errors import ConfigError

MIN_SCALE = 0.001
_MOST_SNAPSHOTS = 60  # of a scaled run; at one tenth of the steps 240 snapshots would cost as much as the training


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a study.

    Attributes:
        model: one of the study's models.
        seed: of the run.
        settings: what the study asks for, by setting; everything else keeps its default.
        path: run folder.
    """

    model: str
    seed: int
    settings: dict[str, Any]
    path: Path

    @cached_property
    def config(self) -> RunConfig:
        """The settings as a configuration."""
        return RunConfig.from_dict(self.settings)

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.path.name


@dataclass(frozen=True, kw_only=True)
class Plan(ABC):
    """Everything that decides what a study trains.

    Attributes:
        output: folder of the study; its runs lie in `runs` inside of it.
        models: which of `MODELS` to train.
        n_seeds: seeds 0 .. n_seeds - 1 of each.
        scale: factor on all numbers of steps, in [0.001, 1].
    """

    MODELS: ClassVar[tuple[str, ...]] = ()

    output: Path
    models: tuple[str, ...]
    n_seeds: int = 1
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the values; all faults are reported in one `ConfigError`."""
        faults = self._faults()
        if faults:
            raise ConfigError(faults)

    @abstractmethod
    def settings_of(self, model: str) -> dict[str, Any]:
        """Return the settings of one model at full length, without its seed."""

    @property
    def runs_path(self) -> Path:
        """Folder of the run folders."""
        return self.output / "runs"

    def job(self, model: str, seed: int) -> Job:
        """Return one run of the study, whether or not `models` and `n_seeds` ask for it."""
        settings = scaled_settings(self.settings_of(model), self.scale) | {"seed": seed}
        return Job(model=model, seed=seed, settings=settings, path=self.runs_path / f"{model}_seed{seed}")

    def jobs(self) -> list[Job]:
        """Return the runs asked for, by model and seed."""
        return [self.job(model, seed) for model in self.models for seed in range(self.n_seeds)]

    def found_jobs(self) -> list[Job]:
        """Return the runs whose folders exist, asked for or not, by model and seed."""
        names = [path.name for path in self.runs_path.iterdir()] if self.runs_path.is_dir() else []
        folder = re.compile(rf"({'|'.join(self.MODELS)})_seed(\d+)")
        found = [(match[1], int(match[2])) for match in map(folder.fullmatch, names) if match]
        return [
            self.job(model, seed)
            for model, seed in sorted(set(found), key=lambda one: (self.MODELS.index(one[0]), one))
        ]

    def _faults(self) -> list[str]:
        known = ", ".join(self.MODELS)
        faults = [
            f"--models {model!r} is unknown; use some of {known}" for model in self.models if model not in self.MODELS
        ]
        if not self.models:
            faults.append(f"--models is empty; give some of {known}")
        if len(set(self.models)) != len(self.models):
            faults.append(f"--models is {' '.join(self.models)}; give every model once")
        if self.n_seeds < 1:
            faults.append(f"--seeds is {self.n_seeds}; give at least 1")
        if not (math.isfinite(self.scale) and MIN_SCALE <= self.scale <= 1):
            faults.append(f"--scale is {self.scale:g}; give a number between {MIN_SCALE:g} and 1")
        return faults


def scaled_settings(settings: dict[str, Any], scale: float) -> dict[str, Any]:
    """Return the settings with all numbers of steps multiplied by `scale`; 1 changes nothing.

    Steps stay multiples of the checkpoint interval, so that runs of different length share their checkpoints.
    """
    if scale == 1:
        return dict(settings)

    def scaled(name: str) -> int:
        return max(1, round(int(settings[name]) * scale))

    checkpoint_interval = scaled("checkpoint_interval")
    num_steps = checkpoint_interval * (settings["num_steps"] // settings["checkpoint_interval"])
    return settings | {
        "num_steps": num_steps,
        "checkpoint_interval": checkpoint_interval,
        "eigen_interval": min(num_steps, max(scaled("eigen_interval"), math.ceil(num_steps / _MOST_SNAPSHOTS))),
        "log_interval": scaled("log_interval"),
    }


def differing_setting(job: Job, stored: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Return (name, stored, wanted) of the first setting in which a run differs from what the study asks for.

    Only what the study sets is compared: it sets everything that decides the training. A setting that the run was
    made before counts as its default.
    """
    wanted = job.config.to_dict()
    defaults = RunConfig().to_dict()
    for name in job.settings:
        found = stored.get(name, defaults[name])
        if found != wanted[name]:
            return name, found, wanted[name]
    return None
