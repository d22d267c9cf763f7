"""One row of the tables that define what a results file holds."""

import math
from dataclasses import dataclass

Attribute = str | int | float | list[int] | list[float]

CURVATURE = "nats / parameter_unit^2"
SLOPE = "nats / parameter_unit"
# Not "seconds": CF readers turn that unit into time differences.
SECONDS = "s"

SHARE = (0.0, 1.0)
SIGNED_SHARE = (-1.0, 1.0)
NATS = (0.0, math.inf)
UNBOUNDED = (-math.inf, math.inf)


@dataclass(frozen=True)
class Row:
    """One dataset of a group, before its axes have sizes; `dims` leaves out the growing axis.

    `range` is what the formula allows, infinite ends included; `extra` holds further attributes.
    """

    name: str
    long_name: str
    units: str = "1"
    dims: tuple[str, ...] = ()
    dtype: str = "float64"
    chance: float | None = None
    ceiling: float | None = None
    definition: str | None = None
    range: tuple[float, float] | None = None
    extra: tuple[tuple[str, Attribute], ...] = ()


def step_row(name: str = "step") -> Row:
    """Return the row of a group's own steps."""
    return Row(name, "Optimizer steps completed", "step", dtype="int64")
