"""Shapes of a transition: how a curve may go from 0 to 1 between two levels.

A symmetric logistic is a convention, not a law: accuracies start late and saturate slowly, losses fall at once and
relax, interpolated schedules give straight ramps. Each shape is parametrised alike, by its 50 % point and its 10-90 %
width, so that its 10 % and 90 % points follow from the shape alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spectral.detection.statistic import KAPPA, Array


@dataclass(frozen=True)
class Shape:
    """One monotone rise F(u) from 0 to 1 with F(0) = 0.5 and a 10-90 % width of 1.

    Attributes:
        name: as in the field's literature.
        unit: F.
        onset: u where F = 0.1, in (-1, 0).
    """

    name: str
    unit: Callable[[Array], Array]
    onset: float

    def at(self, t: Array, midpoint: Array | float, width: Array | float) -> Array:
        """Return F((t - midpoint) / width)."""
        return self.unit((t - midpoint) / width)

    def ends(self, midpoint: Array, width: Array) -> tuple[Array, Array]:
        """Return the 10 % and 90 % points."""
        first = midpoint + self.onset * width
        return first, first + width


def _logistic(u: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(KAPPA * u, -60.0, 60.0))), dtype=np.float64)


def _ramp(u: Array) -> Array:
    return np.asarray(np.clip(0.5 + 0.8 * u, 0.0, 1.0), dtype=np.float64)


# Gompertz exp(-exp(-z)) at z = _G50 + _G_WIDTH u; relaxation 1 - exp(-z) for z = ln 2 + ln 9 u > 0.
_G10, _G50, _G90 = (-math.log(-math.log(level)) for level in (0.1, 0.5, 0.9))
_G_WIDTH = _G90 - _G10


def _gompertz(u: Array) -> Array:
    return np.asarray(np.exp(-np.exp(-np.clip(_G50 + _G_WIDTH * u, -4.0, 40.0))), dtype=np.float64)


def _relaxation(u: Array) -> Array:
    return np.asarray(-np.expm1(-np.clip(math.log(2.0) + math.log(9.0) * u, 0.0, 60.0)), dtype=np.float64)


def _mirrored(unit: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda u: 1.0 - unit(-u)


_GOMPERTZ_ONSET = (_G10 - _G50) / _G_WIDTH
_RELAXATION_ONSET = (-math.log(0.9) - math.log(2.0)) / math.log(9.0)

SHAPES = (
    Shape("logistic", _logistic, -0.5),
    Shape("ramp", _ramp, -0.5),
    Shape("Gompertz", _gompertz, _GOMPERTZ_ONSET),
    Shape("mirrored Gompertz", _mirrored(_gompertz), -1.0 - _GOMPERTZ_ONSET),
    Shape("relaxation", _relaxation, _RELAXATION_ONSET),
    Shape("mirrored relaxation", _mirrored(_relaxation), -1.0 - _RELAXATION_ONSET),
)
