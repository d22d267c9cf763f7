"""Where the transition lies, finer than the search grid, and how far that can be trusted.

The search asks *whether* with a symmetric logistic; dating asks *where* with every shape of `shapes.py`, since the 10 %
point of a ramp and of a slow saturation lie elsewhere. The likelihood of each (shape, midpoint, width, smooth basis) on
a grid that zooms in on its mass gives weights; medians and 5-95 % quantiles under these weights are averages over
shapes. The noise may be louder before, within or after the change. Weights know neither other shapes than these nor
heavy tails nor how badly a few loud points tell their own noise, so each interval is scaled by a factor learnt on the
calibration families, for even noise and for noise that grows within the change.
"""

import math
from dataclasses import dataclass

import numpy as np

from spectral.detection.shapes import SHAPES, Shape
from spectral.detection.statistic import (
    PHI_GRID,
    RSS_FLOOR,
    Array,
    Indices,
    correlations,
    known_columns,
    smooth_shapes,
    whiten,
)
from spectral.detection.tables import widening
from spectral.detection.uneven_noise import noise_ratio, noise_scale

LEVEL = 0.9
REACH = 0.06
LIMITS = (0.01, 0.99)
WIDTH_LIMITS = (0.003, 0.3)
FIRST_GRID = (31, 13)  # midpoints, widths
NEXT_GRID = (19, 15)
ZOOMS = 2
_KEPT_LOG_WEIGHT = 9.0  # cells this far below the best hold less than 1e-4 of the mass each

# Between two snapshots nothing is seen: this share of their spacing is added in squares to each side of an interval.
GRAIN = 0.2


@dataclass(frozen=True, kw_only=True)
class Dating:
    """A dated transition; times are fractions of the run, `amplitude` and `noise_sd` in units of the curve.

    Attributes:
        onset: 10 % point.
        midpoint: 50 % point.
        end: 90 % point.
        width: 10-90 % width.
        amplitude: signed height.
        noise_sd: marginal sd of the noise around the fit, sqrt(RSS / (N - k - 2)).
        midpoint_interval: nominal 90 % interval.
        onset_interval: of the onset.
        end_interval: of the end.
        width_interval: of the width; its lower end is 0 when fewer than 5 snapshots lie inside the transition.
        shape: most probable shape, a name of `shapes.SHAPES`.
    """

    onset: float
    midpoint: float
    end: float
    width: float
    amplitude: float
    noise_sd: float
    midpoint_interval: tuple[float, float]
    onset_interval: tuple[float, float]
    end_interval: tuple[float, float]
    width_interval: tuple[float, float]
    shape: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Refined:
    """Weighted cells of the zoomed grids of all shapes; times are fractions of the run.

    Attributes:
        midpoint: [c] 50 % point of each cell.
        onset: [c] 10 % point.
        end: [c] 90 % point.
        width: [c] 10-90 % width.
        weight: [c] share of the mass, summing to 1.
        amplitude: signed height at the best cell, in units of the curve.
        noise_sd: marginal sd of the noise around the best fit, in the same units.
        noise_ratio: noise sd within the change over that elsewhere, around the best fit.
        shape: name of the shape with the largest mass.
    """

    midpoint: Array
    onset: Array
    end: Array
    width: Array
    weight: Array
    amplitude: float
    noise_sd: float
    noise_ratio: float
    shape: str


@dataclass(frozen=True, kw_only=True, eq=False)
class _Problem:
    """One whitened curve off the straight line, with its smooth bases."""

    t: Array
    rho: Array
    scale: Array
    line: Array
    bases: Array
    rest: Array
    degrees: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cells:
    """Log weight of the cells of one shape, summed over the smooth bases, and the best fit among them."""

    shape: Shape
    midpoint: Array
    width: Array
    log_weight: Array
    best_rss: float
    best: int
    best_basis: int
    amplitude: float


def refine(t: Array, y: Array, *, phi_index: int, near: float, known: Array) -> Refined:
    """Weigh shapes, midpoints and widths around `near`.

    Args:
        t: [n] times as fractions of the run.
        y: [n] filtered curve.
        phi_index: index into `PHI_GRID` of the coefficient to whiten with.
        near: midpoint found by the coarse search.
        known: [q, 2] transitions found before, free in height.

    Weight of a cell: area x sum over bases of RSS^(-(n - k) / 2), i.e. a flat prior in midpoint, log width, shape and
    basis, with the noise variance integrated out.
    """
    phi = float(PHI_GRID[phi_index])
    problem = _problem(t, y, phi, known, np.ones_like(t))
    first = _weighed(problem, SHAPES[0], *_first_grid(near))
    m, w, residual = _best_fit(problem, first)
    scale = noise_scale(t, residual, midpoint=m, width=w)
    problem = _problem(t, y, phi, known, scale)
    found = [_zoomed(problem, shape, near) for shape in SHAPES]
    top = max(float(np.max(cells.log_weight)) for cells in found)
    weight = np.concatenate([np.exp(cells.log_weight - top) for cells in found])
    ends = [cells.shape.ends(cells.midpoint, cells.width) for cells in found]
    best = min(found, key=lambda cells: cells.best_rss)
    m, w, residual = _best_fit(problem, best)
    mass = [float(np.sum(np.exp(cells.log_weight - top))) for cells in found]
    return Refined(
        midpoint=np.concatenate([cells.midpoint for cells in found]),
        width=np.concatenate([cells.width for cells in found]),
        onset=np.concatenate([end[0] for end in ends]),
        end=np.concatenate([end[1] for end in ends]),
        weight=weight / np.sum(weight),
        amplitude=best.amplitude,
        noise_sd=math.sqrt(max(best.best_rss, RSS_FLOOR) / problem.degrees),
        noise_ratio=noise_ratio(t, residual, midpoint=m, width=w),
        shape=found[int(np.argmax(mass))].shape.name,
    )


def quantities(fit: Refined) -> dict[str, tuple[float, Array]]:
    """Return name -> (estimate, [c] values of the cells) of what an interval is given for."""
    values = {"midpoint": fit.midpoint, "onset": fit.onset, "end": fit.end, "width": fit.width}
    return {name: (weighted_quantile(cells, fit.weight, 0.5), cells) for name, cells in values.items()}


def half_width(estimate: float, end: float, spacing: float) -> float:
    """Return the uncalibrated distance from the estimate to one end of its interval.

    Formula: hypot(distance to the 5 or 95 % quantile `end`, 0.2 x snapshot spacing).
    """
    return math.hypot(end - estimate, GRAIN * spacing)


def bounds(fit: Refined, cells: Array) -> tuple[float, float]:
    """Return the quantiles that hold `LEVEL` of the mass between them."""
    low, high = (weighted_quantile(cells, fit.weight, q) for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return low, high


def weighted_quantile(values: Array, weight: Array, q: float) -> float:
    """Return the q quantile of weighted values, linear between the middles of their shares."""
    order = np.argsort(values, kind="stable")
    share = weight[order]
    middle = np.cumsum(share) - share / 2
    return float(np.interp(q, middle, values[order]))


def date(fit: Refined, t: Array) -> Dating:
    """Turn weighted cells on the axis t [n] into estimates with calibrated intervals."""
    estimates = quantities(fit)
    m0, w0 = estimates["midpoint"][0], estimates["width"][0]
    spacing = spacing_at(t, m0)
    found = {}
    for name, (estimate, cells) in estimates.items():
        factor = widening(name, len(t), fit.noise_ratio)
        below, above = (factor * half_width(estimate, end, spacing) for end in bounds(fit, cells))
        found[name] = (estimate - below, estimate + above)
    inside = np.count_nonzero((t >= estimates["onset"][0]) & (t <= estimates["end"][0]))
    return Dating(
        onset=estimates["onset"][0],
        midpoint=m0,
        end=estimates["end"][0],
        width=w0,
        amplitude=fit.amplitude,
        noise_sd=fit.noise_sd,
        midpoint_interval=_clipped(found["midpoint"]),
        onset_interval=_clipped(found["onset"]),
        end_interval=_clipped(found["end"]),
        width_interval=(0.0 if inside < 5 else max(found["width"][0], 0.0), found["width"][1]),
        shape=fit.shape,
    )


def spacing_at(t: Array, position: float) -> float:
    """Return the distance between the two snapshots around `position`."""
    right = int(np.clip(np.searchsorted(t, position), 1, len(t) - 1))
    return float(t[right] - t[right - 1])


def _clipped(interval: tuple[float, float]) -> tuple[float, float]:
    return max(interval[0], 0.0), min(interval[1], 1.0)


def _problem(t: Array, y: Array, phi: float, known: Array, scale: Array) -> _Problem:
    rho = correlations(t, phi)
    fixed = np.stack([np.ones_like(t), t, *known_columns(t, known).T])
    line, _ = np.linalg.qr((whiten(fixed, rho) / scale).T)
    rest = _off(whiten(y, rho) / scale, line)
    bases = _off(whiten(smooth_shapes(t).T, rho) / scale, line)
    norm = np.linalg.norm(bases, axis=1, keepdims=True)
    norm[norm < 1e-7 * math.sqrt(len(t))] = np.inf
    return _Problem(
        t=t,
        rho=rho,
        scale=scale,
        line=line,
        bases=bases / norm,
        rest=rest,
        degrees=max(len(t) - fixed.shape[0] - 4, 4),
    )


def _off(rows: Array, line: Array) -> Array:
    rows = rows - (rows @ line) @ line.T
    return np.asarray(rows - (rows @ line) @ line.T, dtype=np.float64)


def _first_grid(near: float) -> tuple[Array, Array]:
    midpoints = np.clip(np.linspace(near - REACH, near + REACH, FIRST_GRID[0]), *LIMITS)
    return np.unique(midpoints), np.geomspace(*WIDTH_LIMITS, FIRST_GRID[1])


def _weighed(p: _Problem, shape: Shape, midpoints: Array, widths: Array) -> _Cells:
    """Fit one shape on a grid, the width varying slowest."""
    m, w = np.tile(midpoints, len(widths)), np.repeat(widths, len(midpoints))
    columns = _off(whiten(shape.at(p.t[None, :], m[:, None], w[:, None]), p.rho) / p.scale, p.line)
    norm2 = np.einsum("cn,cn->c", columns, columns)
    along = p.bases @ p.rest
    overlap = np.concatenate([np.zeros((1, len(m))), p.bases @ columns.T])
    explained = np.concatenate([[0.0], along])
    left = norm2 - overlap**2
    inner = columns @ p.rest - explained[:, None] * overlap
    usable = left > 1e-9 * len(p.t)
    gain = np.where(usable, inner**2 / np.where(usable, left, 1.0), 0.0)
    total = float(p.rest @ p.rest)
    rss = np.maximum(total - explained[:, None] ** 2 - gain, RSS_FLOOR * len(p.t))
    log_weight = -0.5 * p.degrees * np.log(rss)
    basis, best = (int(i) for i in np.unravel_index(int(np.argmin(rss)), rss.shape))
    top = np.max(log_weight, axis=0)  # of each cell: those far below the best must not underflow to log 0
    cell = math.log(max(np.ptp(midpoints), 1e-9) / len(midpoints) * math.log(widths[-1] / widths[0]) / len(widths))
    return _Cells(
        shape=shape,
        midpoint=m,
        width=w,
        log_weight=top + np.log(np.sum(np.exp(log_weight - top), axis=0)) + cell,
        best_rss=float(rss[basis, best]),
        best=best,
        best_basis=basis,
        amplitude=float(inner[basis, best] / max(left[basis, best], 1e-300)),
    )


def _zoomed(p: _Problem, shape: Shape, near: float) -> _Cells:
    """Weigh a shape on a first grid, then on finer ones around what holds its mass."""
    midpoints, widths = _first_grid(near)
    cells = _weighed(p, shape, midpoints, widths)
    for _ in range(ZOOMS):
        kept: Indices = np.flatnonzero(cells.log_weight > np.max(cells.log_weight) - _KEPT_LOG_WEIGHT)
        low, high = _around(midpoints, cells.midpoint[kept])
        midpoints = np.linspace(low, high, NEXT_GRID[0])
        low, high = _around(widths, cells.width[kept])
        widths = np.geomspace(low, high, NEXT_GRID[1])
        cells = _weighed(p, shape, midpoints, widths)
    return cells


def _around(grid: Array, kept: Array) -> tuple[float, float]:
    first = int(np.searchsorted(grid, np.min(kept) * (1 - 1e-12)))
    last = int(np.searchsorted(grid, np.max(kept) * (1 - 1e-12)))
    return float(grid[max(first - 1, 0)]), float(grid[min(last + 1, len(grid) - 1)])


def _best_fit(p: _Problem, cells: _Cells) -> tuple[float, float, Array]:
    """Return midpoint, width and whitened residuals [n] of the best fit, in the units of the unscaled curve."""
    m, w = float(cells.midpoint[cells.best]), float(cells.width[cells.best])
    columns = [p.line, _off(whiten(cells.shape.at(p.t, m, w), p.rho) / p.scale, p.line)[:, None]]
    if cells.best_basis > 0:
        columns.append(p.bases[cells.best_basis - 1][:, None])
    basis, _ = np.linalg.qr(np.concatenate(columns, axis=1))
    return m, w, (p.rest - basis @ (basis.T @ p.rest)) * p.scale
