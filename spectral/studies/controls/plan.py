"""Which runs the controls study consists of: the demo, and the demo with what an induction head needs taken away."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from spectral.config import FIELD_NAMES, RunConfig, load_preset
from spectral.studies.plan import Plan

Role = Literal["induction", "nothing", "other", "positional"]

PRESET = "demo"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of run.

    Attributes:
        role: what can be learned. `induction`: the task, by an induction head. `nothing`. `other`: no induction head
            can form, but a single layer learns which tokens its context holds, and may do so abruptly. `positional`:
            the task, by heads that look back a fixed way, as abruptly and earlier.
        text: in a few words, for tables.
        changes: settings that differ from the preset's.
    """

    role: Role
    text: str
    changes: dict[str, Any]


KINDS: dict[str, Kind] = {
    "matched": Kind(role="induction", text="2 layers, repeats of varying length", changes={}),
    "one_layer": Kind(role="other", text="1 layer: no head can build on another", changes={"n_layers": 1}),
    "no_repeats": Kind(
        role="nothing", text="independent tokens: nothing to look up", changes={"control": "no_repeats"}
    ),
    "shuffled_targets": Kind(
        role="nothing", text="repeats, targets in random order", changes={"control": "shuffled_targets"}
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
NOTHING = tuple(model for model, kind in KINDS.items() if kind.role == "nothing")
NO_INDUCTION = tuple(model for model, kind in KINDS.items() if kind.role in ("nothing", "other"))

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
