"""Where the sigmoid lies, finer than the search grid, and how far that can be trusted.

Intervals come from a parametric bootstrap: the fitted abrupt curve plus AR(1) noise is filtered and fitted again.
Measured alone they are too short, since the noise coefficient is held fixed and real transitions are skewed. So each
is stretched by a factor (`WIDENING`) and an allowance for shape (`SHAPE`), and never reaches less than half a snapshot
spacing to either side.
"""

from dataclasses import dataclass

import numpy as np

from spectral.detection.statistic import (
    PHI_GRID,
    Array,
    abrupt_curve,
    build_design,
    colour,
    columns_of,
    correlations,
    fit_rows,
    hampel,
    sigmoid_grid,
    smooth_shapes,
)

LEVEL = 0.9
REPLICATES = 200
FINE_STEP = 0.0015
FINE_REACH = 0.06
FINE_WIDTHS = np.geomspace(0.004, 0.3, 32)
FINE_LIMITS = (0.01, 0.99)

# A real transition is no exact logistic. The 10 and 90 % points of a Gompertz curve lie 0.1 widths from those of the
# logistic that fits it best, its 50 % point about 0.05: no bootstrap of the fitted logistic can know that.
SHAPE = {"midpoint": 0.05, "onset": 0.1, "end": 0.1, "width": 0.1}

# Stretch of each side of the 90 % interval; see calibration.py for the families behind it.
WIDENING = {"midpoint": 1.15, "onset": 1.3, "end": 1.3, "width": 1.2}


@dataclass(frozen=True, kw_only=True)
class Dating:
    """A dated sigmoid; times are fractions of the run, `amplitude` and `noise_sd` in units of the curve.

    Attributes:
        midpoint: 50 % point.
        width: 10-90 % width.
        amplitude: signed height.
        noise_sd: marginal sd of the noise around the fit, sqrt(RSS / (N - k - 2)).
        midpoint_interval: nominal 90 % interval.
        onset_interval: of midpoint - width / 2.
        end_interval: of midpoint + width / 2.
        width_interval: of the width; its lower end is 0 when fewer than 5 snapshots lie inside the transition.
    """

    midpoint: float
    width: float
    amplitude: float
    noise_sd: float
    midpoint_interval: tuple[float, float]
    onset_interval: tuple[float, float]
    end_interval: tuple[float, float]
    width_interval: tuple[float, float]


def date(t: Array, y: Array, *, phi: float, phi_index: int, near: float, rng: np.random.Generator) -> Dating:
    """Refine the sigmoid around `near` and bootstrap its intervals.

    Args:
        t: [n] times as fractions of the run.
        y: [n] filtered curve.
        phi: noise coefficient of the bootstrap noise.
        phi_index: index into `PHI_GRID` of the coefficient to whiten with.
        near: midpoint found by the coarse search.
        rng: source of the bootstrap noise.
    """
    n = len(t)
    reach = np.arange(-FINE_REACH, FINE_REACH + FINE_STEP / 2, FINE_STEP)
    midpoints = near + reach
    midpoints = midpoints[(midpoints >= FINE_LIMITS[0]) & (midpoints <= FINE_LIMITS[1])]
    candidates = sigmoid_grid(t, midpoints, FINE_WIDTHS)
    design = build_design(t, float(PHI_GRID[phi_index]), smooth_shapes(t), np.empty((n, 0)), candidates)
    m = np.tile(midpoints, len(FINE_WIDTHS))
    w = np.repeat(FINE_WIDTHS, len(midpoints))

    fit = fit_rows(y[None], design)
    basis, best = int(fit.basis[0]), int(fit.candidate[0])
    noise_sd = float(np.sqrt(fit.rss1[0] / (n - columns_of(basis) - 2)))
    curve = abrupt_curve(t, y, float(PHI_GRID[phi_index]), basis, float(m[best]), float(w[best]))
    noise = colour(rng.standard_normal((REPLICATES, n)), correlations(t, phi))
    refit = fit_rows(hampel(curve + noise_sd * noise), design)
    # Within a grid cell the fit cannot tell values apart, so each draw is spread over its cell: else ties understate.
    m_star = m[refit.candidate] + FINE_STEP * (rng.random(REPLICATES) - 0.5)
    ratio = FINE_WIDTHS[1] / FINE_WIDTHS[0]
    w_star = w[refit.candidate] * ratio ** (rng.random(REPLICATES) - 0.5)

    m0, w0 = float(m[best]), float(w[best])
    half = 0.5 * spacing_at(t, m0)

    def interval(name: str, draws: Array, center: float) -> tuple[float, float]:
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        below, above = WIDENING[name] * (center - float(low)), WIDENING[name] * (float(high) - center)
        shape = SHAPE[name] * w0
        return center - max(max(below, 0) + shape, half), center + max(max(above, 0) + shape, half)

    width = interval("width", w_star, w0)
    inside = np.count_nonzero((t >= m0 - w0 / 2) & (t <= m0 + w0 / 2))
    return Dating(
        midpoint=m0,
        width=w0,
        amplitude=float(fit.amplitude[0]),
        noise_sd=noise_sd,
        midpoint_interval=_clipped(interval("midpoint", m_star, m0)),
        onset_interval=_clipped(interval("onset", m_star - w_star / 2, m0 - w0 / 2)),
        end_interval=_clipped(interval("end", m_star + w_star / 2, m0 + w0 / 2)),
        width_interval=(0.0 if inside < 5 else max(width[0], 0.0), width[1]),
    )


def spacing_at(t: Array, position: float) -> float:
    """Return the distance between the two snapshots around `position`."""
    right = int(np.clip(np.searchsorted(t, position), 1, len(t) - 1))
    return float(t[right] - t[right - 1])


def _clipped(interval: tuple[float, float]) -> tuple[float, float]:
    return max(interval[0], 0.0), min(interval[1], 1.0)
