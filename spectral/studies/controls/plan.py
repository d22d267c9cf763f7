"""Which runs the controls study consists of: the demo, and the demo with what an induction head needs taken away."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from spectral.config import FIELD_NAMES, RunConfig, load_preset
from spectral.studies.plan import Plan

Role = Literal["forms", "cannot", "positional"]

PRESET = "demo"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of run.

    Attributes:
        role: `forms` = an induction head forms; `cannot` = none can; `positional` = heads that look back a fixed way
            solve the task, as abruptly and earlier.
        text: in a few words, for tables.
        changes: settings that differ from the preset's.
    """

    role: Role
    text: str
    changes: dict[str, Any]


KINDS: dict[str, Kind] = {
    "matched": Kind(role="forms", text="2 layers, repeats of varying length", changes={}),
    "one_layer": Kind(role="cannot", text="1 layer: no head can build on another", changes={"n_layers": 1}),
    "no_repeats": Kind(role="cannot", text="independent tokens: nothing to look up", changes={"control": "no_repeats"}),
    "shuffled_targets": Kind(
        role="cannot", text="repeats, targets in random order", changes={"control": "shuffled_targets"}
    ),
    # Solved at step 90 or so: in 2,000 steps that lies at the edge of the run, where nothing can be dated.
    "fixed_period": Kind(
        role="positional",
        text="repeats of one length: a fixed look back is enough",
        changes={
            "min_period": 24,
            "max_period": 24,
            "num_steps": 500,
            "eigen_interval": 10,
            "log_interval": 5,
            "checkpoint_interval": 125,
        },
    ),
}
MODELS = tuple(KINDS)
CONTROLS = tuple(model for model, kind in KINDS.items() if kind.role == "cannot")

_TRAINING = FIELD_NAMES[: FIELD_NAMES.index("eigen_interval")]


@dataclass(frozen=True, kw_only=True)
class ControlsPlan(Plan):
    """Everything that decides what the study computes; see `Plan`."""

    MODELS: ClassVar[tuple[str, ...]] = MODELS

    output: Path = Path("runs/controls_study")
    models: tuple[str, ...] = MODELS
    n_seeds: int = 4

    def settings_of(self, model: str) -> dict[str, Any]:
        """Return the preset with the changes of one kind; everything that decides the training is written out."""
        given = load_preset(PRESET) | KINDS[model].changes
        whole = RunConfig.from_dict(given).to_dict()
        return {name: whole[name] for name in _TRAINING if name != "seed"} | given
