"""How loud the noise is before, within and after a change, from the residuals of a fit.

Instabilities make the noise of a signal grow where it changes: weights that take it for even would trust these points
too much. Four stretches have a variance of their own: before m - w, from there to m + w, after that, and within the
second its core, m +- w / 2. Few points tell a variance badly, so each is drawn towards a coarser one: the core to the
whole change, the stretches to the whole curve.
"""

import math

import numpy as np
import numpy.typing as npt

from spectral.detection.statistic import RSS_FLOOR, Array

# A variance is drawn towards the coarser one as if its stretch had this many more points with that variance.
PRIOR_POINTS = 3.0
NOISE_REACH = 1.0  # of a width to either side of the midpoint counts as within: instabilities outlast the change
CORE_REACH = 0.5
_FITTED_WITHIN = 2.0  # parameters that the points within the change determine: midpoint and width

Mask = npt.NDArray[np.bool_]


def noise_scale(t: Array, residual: Array, *, midpoint: float, width: float) -> Array:
    """Return [n] noise sd relative to the whole curve's, from the independent residuals [n] of a fit."""
    square = _relative_squares(residual)
    place = (t > midpoint - NOISE_REACH * width).astype(int) + (t > midpoint + NOISE_REACH * width)
    within = place == 1
    variance = np.ones_like(t)
    for stretch in range(3):
        mine = place == stretch
        variance[mine] = _drawn(square[mine], _FITTED_WITHIN if stretch == 1 else 1.0, towards=1.0)
    core = within & (np.abs(t - midpoint) < CORE_REACH * width)
    coarse = variance[within]
    for mine in (core, within & ~core):
        if np.any(mine):
            fitted = _FITTED_WITHIN * np.count_nonzero(mine) / len(coarse)
            variance[mine] = _drawn(square[mine], fitted, towards=float(coarse[0]))
    return np.sqrt(variance)


def noise_ratio(t: Array, residual: Array, *, midpoint: float, width: float) -> float:
    """Return the noise sd within the change over that elsewhere, drawn towards 1 where few points tell."""
    square = _relative_squares(residual)
    within: Mask = np.abs(t - midpoint) <= NOISE_REACH * width
    inside = _drawn(square[within], _FITTED_WITHIN, towards=1.0)
    return math.sqrt(inside / _drawn(square[~within], _FITTED_WITHIN, towards=1.0))


def _relative_squares(residual: Array) -> Array:
    square = residual**2
    overall = float(np.mean(square))
    if overall < RSS_FLOOR:  # rounding alone: no noise to compare
        return np.ones_like(residual)
    return np.asarray(square / overall, dtype=np.float64)


def _drawn(square: Array, fitted: float, *, towards: float) -> float:
    freedom = max(len(square) - fitted, 0.0)
    return (float(np.sum(square)) + PRIOR_POINTS * towards) / (freedom + PRIOR_POINTS)
