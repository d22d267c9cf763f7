"""Which runs the repeated-sequence study consists of: five models times seeds, at full length or scaled down."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from spectral.config import load_preset
from spectral.studies.plan import Plan

MODELS = ("1L_fixed", "1L_varied", "2L_fixed", "2L_varied_20000", "2L_varied_60000")
"""The five models, each the name of a preset."""

LONG_RUN, LONG_RUN_FACTOR = "2L_varied_60000", 3
"""The model that trains on where another one ends, and how many times as long: it passes through the same weights."""


@dataclass(frozen=True, kw_only=True)
class StudyPlan(Plan):
    """Everything that decides what the study computes; see `Plan`.

    Attributes:
        n_sequences: held-out sequences behind every measured number.
    """

    MODELS: ClassVar[tuple[str, ...]] = MODELS

    output: Path = Path("runs/repeated_study")
    models: tuple[str, ...] = MODELS
    n_sequences: int = 128

    def settings_of(self, model: str) -> dict[str, Any]:
        """Return the settings of one model's preset."""
        return load_preset(model)

    def _faults(self) -> list[str]:
        faults = super()._faults()
        if self.n_sequences < 8:
            faults.append(f"{self.n_sequences} sequences are too few to measure anything; give at least 8")
        return faults
