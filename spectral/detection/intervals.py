"""Where the sigmoid lies, finer than the search grid, and how far that can be trusted.

Intervals come from a parametric bootstrap: the fitted abrupt curve plus AR(1) noise is filtered and fitted again.
Alone they are too short, since the noise coefficient is held fixed and real transitions are skewed. So each gets an
allowance for shape and snapshot spacing and a factor learnt on the calibration families.
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
    known_columns,
    sigmoid_grid,
    smooth_shapes,
)
from spectral.detection.tables import widening

LEVEL = 0.9
REPLICATES = 200
FINE_STEP = 0.0015
FINE_REACH = 0.06
FINE_WIDTHS = np.geomspace(0.004, 0.3, 32)
FINE_LIMITS = (0.01, 0.99)

# A real transition is no exact logistic, and between two snapshots nothing is seen: no bootstrap of the fitted logistic
# knows either. Allowances (share of the width, share of the snapshot spacing) are added in squares; chosen on the
# calibration families so that coverage differs least among them. `widening` then scales the sum to the nominal one.
ALLOWANCE = {"midpoint": (0.0, 0.3), "onset": (0.15, 0.1), "end": (0.15, 0.1), "width": (0.15, 0.2)}


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Refined:
    """The sigmoid on the fine grid and its bootstrap draws; times are fractions of the run.

    Attributes:
        midpoint: 50 % point.
        width: 10-90 % width.
        amplitude: signed height, in units of the curve.
        noise_sd: marginal sd of the noise around the fit, in the same units.
        midpoints: [REPLICATES] bootstrap draws.
        widths: [REPLICATES] bootstrap draws.
    """

    midpoint: float
    width: float
    amplitude: float
    noise_sd: float
    midpoints: Array
    widths: Array


def refine(
    t: Array, y: Array, *, phi: float, phi_index: int, near: float, rng: np.random.Generator, known: Array
) -> Refined:
    """Fit the sigmoid on a fine grid around `near` and fit it again to `REPLICATES` simulated curves.

    Args:
        t: [n] times as fractions of the run.
        y: [n] filtered curve.
        phi: noise coefficient of the bootstrap noise.
        phi_index: index into `PHI_GRID` of the coefficient to whiten with.
        near: midpoint found by the coarse search.
        rng: source of the bootstrap noise.
        known: [q, 2] transitions found before.
    """
    n = len(t)
    reach = np.arange(-FINE_REACH, FINE_REACH + FINE_STEP / 2, FINE_STEP)
    midpoints = near + reach
    midpoints = midpoints[(midpoints >= FINE_LIMITS[0]) & (midpoints <= FINE_LIMITS[1])]
    candidates = sigmoid_grid(t, midpoints, FINE_WIDTHS)
    white = float(PHI_GRID[phi_index])
    design = build_design(t, white, smooth_shapes(t), np.empty((n, 0)), candidates, known_columns(t, known))
    m = np.tile(midpoints, len(FINE_WIDTHS))
    w = np.repeat(FINE_WIDTHS, len(midpoints))

    fit = fit_rows(y[None], design)
    basis, best = int(fit.basis[0]), int(fit.candidate[0])
    noise_sd = float(np.sqrt(fit.rss1[0] / (n - columns_of(basis) - len(known) - 2)))
    curve = abrupt_curve(t, y, white, basis, float(m[best]), float(w[best]), known)
    noise = colour(rng.standard_normal((REPLICATES, n)), correlations(t, phi))
    refit = fit_rows(hampel(curve + noise_sd * noise), design)
    # Within a grid cell the fit cannot tell values apart, so each draw is spread over its cell: else ties understate.
    ratio = FINE_WIDTHS[1] / FINE_WIDTHS[0]
    return Refined(
        midpoint=float(m[best]),
        width=float(w[best]),
        amplitude=float(fit.amplitude[0]),
        noise_sd=noise_sd,
        midpoints=m[refit.candidate] + FINE_STEP * (rng.random(REPLICATES) - 0.5),
        widths=w[refit.candidate] * ratio ** (rng.random(REPLICATES) - 0.5),
    )


def quantities(fit: Refined) -> dict[str, tuple[float, Array]]:
    """Return name -> (estimate, bootstrap draws) of what an interval is given for."""
    m, w = fit.midpoint, fit.width
    return {
        "midpoint": (m, fit.midpoints),
        "onset": (m - w / 2, fit.midpoints - fit.widths / 2),
        "end": (m + w / 2, fit.midpoints + fit.widths / 2),
        "width": (w, fit.widths),
    }


def half_width(name: str, estimate: float, draws: Array, side: int, width: float, spacing: float) -> float:
    """Return the uncalibrated distance from the estimate to one end (side -1 or +1) of the interval `name`.

    Formula: hypot(bootstrap quantile distance, shape allowance x width, grain allowance x snapshot spacing).
    """
    shape, grain = ALLOWANCE[name]
    end = float(np.quantile(draws, (1 - LEVEL) / 2 if side < 0 else (1 + LEVEL) / 2))
    return float(np.sqrt(max(side * (end - estimate), 0.0) ** 2 + (shape * width) ** 2 + (grain * spacing) ** 2))


def date(fit: Refined, t: Array) -> Dating:
    """Turn bootstrap draws on the axis t [n] into calibrated intervals."""
    m0, w0 = fit.midpoint, fit.width
    spacing = spacing_at(t, m0)
    found = {}
    for name, (estimate, draws) in quantities(fit).items():
        factor = widening(name, len(t))
        below, above = (factor * half_width(name, estimate, draws, side, w0, spacing) for side in (-1, 1))
        found[name] = (estimate - below, estimate + above)
    inside = np.count_nonzero((t >= m0 - w0 / 2) & (t <= m0 + w0 / 2))
    return Dating(
        midpoint=m0,
        width=w0,
        amplitude=fit.amplitude,
        noise_sd=fit.noise_sd,
        midpoint_interval=_clipped(found["midpoint"]),
        onset_interval=_clipped(found["onset"]),
        end_interval=_clipped(found["end"]),
        width_interval=(0.0 if inside < 5 else max(found["width"][0], 0.0), found["width"][1]),
    )


def spacing_at(t: Array, position: float) -> float:
    """Return the distance between the two snapshots around `position`."""
    right = int(np.clip(np.searchsorted(t, position), 1, len(t) - 1))
    return float(t[right] - t[right - 1])


def _clipped(interval: tuple[float, float]) -> tuple[float, float]:
    return max(interval[0], 0.0), min(interval[1], 1.0)
