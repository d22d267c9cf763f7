"""Likelihood ratio of "smooth curve plus one abrupt sigmoid" against "smooth curve", with AR(1) noise in both.

T = N ln(RSS0 / RSS1). RSS0 is the smallest whitened residual sum of squares over smooth curves: a straight line, alone
or with one further shape (exponential, power law, stretched exponential, root, wide sigmoid). RSS1 is the smallest over
a coarser set of these bases with one narrow sigmoid added. T is unbounded; it may be negative, because the finest
shapes and the wide sigmoids are never combined with a narrow one.

Everything works on rows: one observed curve, or hundreds of surrogates, in a few matrix products. Every basis
contains the straight line, so curves and candidates are projected off the line once, and each further basis costs one
rank-one correction instead of a projection of its own.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

KAPPA = 2.0 * np.log(9.0)  # a logistic of slope kappa / w goes from 10 to 90 % within w

TAUS = np.geomspace(0.01, 1.5, 12)
POWERS = [(u, p) for u in (0.01, 0.05) for p in (0.3, 0.8)]
STRETCHED = (0.05, 0.2)
WIDE_WIDTHS = (0.25, 0.4, 0.6, 0.9)
WIDE_MIDPOINTS = np.linspace(0.1, 0.9, 17)
WIDTHS = (0.005, 0.01, 0.02, 0.03, 0.045, 0.065, 0.09, 0.12)
MIDPOINTS = np.linspace(0.05, 0.95, 91)

# Shapes of the smooth hypothesis alone, so fine that no curve falls between them. With the coarse bases only, the
# residue of an exponential between two time constants passes, at N = 200 and little noise, for a step at the left edge
# (p < 0.01 in 25 of 25 curves). The abrupt hypothesis does without: 728 candidates on each would cost 20 times as much.
FINE_TAUS = np.geomspace(0.008, 2.0, 140)
FINE_POWERS = [(u, p) for u in (0.005, 0.01, 0.02, 0.04, 0.08, 0.15) for p in (0.15, 0.3, 0.5, 0.8, 1.2, 1.8)]
FINE_STRETCHED = [(tau, p) for p in (0.45, 0.6, 0.75, 1.2, 1.4) for tau in np.geomspace(0.03, 1.0, 16)]

# Why a grid: curves that share a coefficient share their projections. Observed curve and surrogates round alike.
PHI_GRID = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97])
PHI_START = 0.3
PHI_MAX = 0.97

# Curves have range 1 here. Stored as float32 they carry relative errors near 1e-7, so no fit is better than that.
RSS_FLOOR = 1e-14
N_SHAPES = len(TAUS) + len(POWERS) + len(STRETCHED)
_CHUNK = 64  # rows per block: [64, 728] doubles stay in the second-level cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """Everything about one time axis and one noise coefficient that does not depend on the data.

    Attributes:
        rho: [n] correlation of each point with the one before it (first entry unused).
        line: [n, 2 + q] orthonormal basis of the whitened straight line and of q known columns.
        shapes: [n, b] whitened shape of each curved basis, off the line, norm 1.
        smooth_only: [n, s] whitened shapes of the smooth hypothesis alone, off the line, norm 1.
        candidates: [n, c] whitened abrupt sigmoids, off the line.
        overlap: [b, c] inner products of `shapes` and `candidates`.
        inverse_norm2: [1 + b, c] one over the squared norm of a candidate off basis 0 (line) or 1 + b.
        quick: `candidates`, `overlap` over the norm, and one over the norm, in single precision, for the search.
    """

    rho: Array
    line: Array
    shapes: Array
    smooth_only: Array
    candidates: Array
    overlap: Array
    inverse_norm2: Array
    quick: tuple[Single, Single, Single]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """Best smooth and best abrupt fit of each of B rows.

    Attributes:
        rss0: [B] whitened residual sum of squares of the best smooth curve, in squared marginal noise units.
        smooth: [B] its index: 0 the line, 1..b a curved basis, beyond that a shape of its own.
        rss1: [B] the same with an abrupt sigmoid.
        basis: [B] basis of the abrupt fit: 0 the line, 1..b a curved basis.
        candidate: [B] index of its sigmoid.
        amplitude: [B] its coefficient, in units of the rows.
        residuals: [B, n] whitened residuals of the abrupt fit.
    """

    rss0: Array
    smooth: Indices
    rss1: Array
    basis: Indices
    candidate: Indices
    amplitude: Array
    residuals: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """The whole path (noise coefficient, then T) for each of B rows.

    Attributes:
        statistic: [B] T = N ln(RSS0 / RSS1).
        phi: [B] estimated lag-1 coefficient before rounding to the grid, in [0, 0.97].
        phi_index: [B] index into `PHI_GRID` at which T was taken.
        fit: the fits behind T; residuals are whitened at each row's own coefficient.
    """

    statistic: Array
    phi: Array
    phi_index: Indices
    fit: Fit


def sigmoid(t: Array, midpoint: Array | float, width: Array | float) -> Array:
    """Return the logistic S(t; m, w) = 1 / (1 + exp(-kappa (t - m) / w)) whose 10-90 % width is w."""
    z = np.clip(KAPPA * (t - midpoint) / width, -60.0, 60.0)
    return np.asarray(1.0 / (1.0 + np.exp(-z)), dtype=np.float64)


def sigmoid_grid(t: Array, midpoints: Array, widths: Array) -> Array:
    """Return [n, len(widths) * len(midpoints)] sigmoids, the width varying slowest."""
    m = np.tile(midpoints, len(widths))
    w = np.repeat(widths, len(midpoints))
    return sigmoid(t[:, None], m[None, :], w[None, :])


def smooth_shapes(t: Array) -> Array:
    """Return [n, b] curved shapes of the smooth hypothesis: exponentials, power laws, stretched exponentials."""
    shapes = [np.exp(-t / tau) for tau in TAUS]
    shapes += [(1.0 + t / u) ** -p for u, p in POWERS]
    shapes += [np.exp(-((t / tau) ** 0.6)) for tau in STRETCHED]
    return np.stack(shapes, axis=1)


def smooth_only_shapes(t: Array) -> Array:
    """Return [n, s] shapes of the smooth hypothesis alone, each on a straight line: a fine grid, then wide sigmoids."""
    shapes = [np.exp(-t / tau) for tau in FINE_TAUS]
    shapes += [(1.0 + t / u) ** -p for u, p in FINE_POWERS]
    shapes += [np.exp(-((t / tau) ** p)) for tau, p in FINE_STRETCHED]
    shapes += [np.sqrt(t)]
    wide = sigmoid_grid(t, WIDE_MIDPOINTS, np.array(WIDE_WIDTHS))
    return np.concatenate([np.stack(shapes, axis=1), wide], axis=1)


def correlations(t: Array, phi: float) -> Array:
    """Return [n] correlations of neighbouring points: phi at the median spacing, phi^(dt / median) elsewhere."""
    if phi == 0.0:
        return np.zeros_like(t)
    gaps = np.diff(t)
    return np.concatenate([[0.0], phi ** (gaps / np.median(gaps))])


def whiten(rows: Array, rho: Array) -> Array:
    """Turn AR(1) rows [..., n] into independent ones of the same marginal variance.

    Formula: x_0, then (x_i - rho_i x_{i-1}) / sqrt(1 - rho_i^2). On an even axis this is the textbook form divided by
    sqrt(1 - phi^2); T is the same, and the residual sum of squares measures the marginal variance.
    """
    out = rows.copy()
    out[..., 1:] -= rho[1:] * rows[..., :-1]
    out[..., 1:] /= np.sqrt(1.0 - rho[1:] ** 2)
    return out


def colour(rows: Array, rho: Array) -> Array:
    """Invert `whiten`: turn independent rows [..., n] into AR(1) rows of the same marginal variance."""
    out = rows.copy()
    scale = np.sqrt(1.0 - rho**2)
    for i in range(1, rows.shape[-1]):
        out[..., i] = rho[i] * out[..., i - 1] + scale[i] * rows[..., i]
    return out


def hampel(rows: Array) -> Array:
    """Replace isolated outliers of rows [B, n] by the median of the 9 points around them.

    A point is an outlier when it lies 5 x 1.4826 MAD from that median. It is replaced only if the medians of the (up
    to) 4 points left and right of it differ by less than half of its deviation: at a true step they do not, so a step
    survives. The two points at each end stay as they are, since nothing beyond them could vouch for them.
    """
    if rows.shape[1] < 9:
        return rows.copy()
    return np.concatenate([_hampel_block(rows[i : i + _CHUNK]) for i in range(0, len(rows), _CHUNK)])


def _hampel_block(rows: Array) -> Array:
    n = rows.shape[1]
    out = rows.copy()
    windows = np.stack([rows[:, i : n - 8 + i] for i in range(9)])
    median = _median_of_nine(windows.copy())
    mad = _median_of_nine(np.abs(windows - median))
    at = np.clip(np.arange(n) - 4, 0, n - 9)
    deviation = np.abs(rows - median[:, at])
    flagged = deviation > 5 * 1.4826 * mad[:, at]
    flagged[:, :2] = flagged[:, -2:] = False
    r, c = np.nonzero(flagged)
    if len(r):
        padded = np.pad(rows, ((0, 0), (4, 4)), constant_values=np.nan)
        left = _median_of_four(padded[r[:, None], c[:, None] + np.arange(4)])
        right = _median_of_four(padded[r[:, None], c[:, None] + np.arange(5, 9)])
        isolated = np.abs(left - right) < 0.5 * deviation[r, c]
        r, c = r[isolated], c[isolated]
        out[r, c] = median[r, at[c]]
    return out


def build_design(
    t: Array, phi: float, shapes: Array, smooth_only: Array, candidates: Array, known: Array | None = None
) -> Design:
    """Whiten all columns at coefficient `phi` and project them off the straight line (and off `known` [n, q])."""
    rho = correlations(t, phi)
    fixed = np.stack([np.ones_like(t), t])
    if known is not None and known.size:
        fixed = np.concatenate([fixed, known.T])
    line, _ = np.linalg.qr(whiten(fixed, rho).T)

    def off_line(columns: Array) -> Array:
        white = whiten(columns.T, rho).T
        white = white - line @ (line.T @ white)
        return white - line @ (line.T @ white)  # again: rounding of the first pass matters for nearly straight shapes

    def unit(columns: Array) -> Array:
        white = off_line(columns)
        norm = np.linalg.norm(white, axis=0)
        # A shape that a short axis cannot tell from the line must not add a direction of rounding noise.
        norm[norm < 1e-7 * np.sqrt(len(t))] = np.inf
        return np.asarray(white / norm, dtype=np.float64)

    shapes, smooth_only, candidates = unit(shapes), unit(smooth_only), off_line(candidates)
    overlap = shapes.T @ candidates
    norm2 = np.sum(candidates**2, axis=0)
    left = np.concatenate([norm2[None], norm2[None] - overlap**2])
    usable = left > 1e-9 * len(t)
    inverse = np.where(usable, 1.0 / np.where(usable, left, 1.0), 0.0)
    return Design(
        rho=rho,
        line=line,
        shapes=shapes,
        smooth_only=smooth_only,
        candidates=candidates,
        overlap=overlap,
        inverse_norm2=inverse,
        quick=(
            candidates.astype(np.float32),
            (overlap * np.sqrt(inverse[1:])).astype(np.float32),
            np.sqrt(inverse).astype(np.float32),
        ),
    )


def fit_rows(rows: Array, design: Design) -> Fit:
    """Fit both hypotheses to each row of [B, n] (not yet whitened)."""
    parts = [_fit_block(rows[i : i + _CHUNK], design) for i in range(0, len(rows), _CHUNK)]
    return _joined(parts)


def scan_rows(t: Array, rows: Array, known: Array | None = None) -> Scan:
    """Estimate the noise coefficient of each (filtered) row and take T there.

    Args:
        t: [n] times as fractions of the run.
        rows: [B, n] filtered curves.
        known: [q, 2] midpoints and widths of transitions found before, free in height under both hypotheses.

    phi is the lag-1 autocorrelation r of the abrupt fit's residuals, corrected to r + (1 + 3r)(1 + k/2)/N with k
    columns, cut to [0, 0.97]; two rounds, starting at 0.3.
    """
    n = len(t)
    at = np.full(len(rows), int(np.argmin(np.abs(PHI_GRID - PHI_START))))
    phi = np.full(len(rows), PHI_START)
    known = np.empty((0, 2)) if known is None else known
    fit = _fit_grouped(t, rows, at, known)
    for _ in range(2):
        phi = estimate_phi(t, fit, at)
        rounded = np.argmin(np.abs(PHI_GRID[None, :] - phi[:, None]), axis=1)
        changed = np.flatnonzero(rounded != at)
        at = rounded
        if len(changed):
            fit = _updated(fit, changed, _fit_grouped(t, rows[changed], at[changed], known))
    return Scan(statistic=n * np.log(fit.rss0 / fit.rss1), phi=phi, phi_index=at, fit=fit)


def screen_rows(t: Array, rows: Array, *, phi_index: int, smooth: int, known: Array) -> Array:
    """Return a rough T [B] of (filtered) rows that scatter around one smooth curve with one noise coefficient.

    Costs a tenth of `scan_rows` and tells which surrogates cannot come near an observed T: that coefficient, every
    third midpoint, half of the widths, and of the fine smooth shapes only the curve's own, `smooth` (`Fit.smooth`).
    """
    own = smooth if smooth > N_SHAPES else 0
    fit = fit_rows(rows, _cached_screen_design(t.tobytes(), int(phi_index), known.tobytes(), own))
    return np.asarray(len(t) * np.log(fit.rss0 / fit.rss1), dtype=np.float64)


def jump_ratio(t: Array, scan: Scan, row: int) -> float:
    """Return `ratio_to_elsewhere` of the sigmoid and the residuals of one row."""
    candidate = int(scan.fit.candidate[row])
    m, w = float(MIDPOINTS[candidate % len(MIDPOINTS)]), WIDTHS[candidate // len(MIDPOINTS)]
    rest = colour(scan.fit.residuals[row], correlations(t, float(PHI_GRID[scan.phi_index[row]])))
    return ratio_to_elsewhere(t, rest, midpoint=m, width=w, amplitude=float(scan.fit.amplitude[row]))


def ratio_to_elsewhere(t: Array, rest: Array, *, midpoint: float, width: float, amplitude: float) -> float:
    """Return the height of a sigmoid over the largest change of the residuals [n] elsewhere within as many snapshots.

    Where noise wanders, the largest of many increments is followed closely by the next, unless something happened: for
    increments with a Pareto tail of index a the chance of a ratio r is r^-a. Windows that touch [m - w, m + w] do not
    count; infinite when none is left.
    """
    size = max(1, round(width / float(np.median(np.diff(t)))))
    change = np.abs(rest[size:] - rest[:-size])
    elsewhere = (t[size:] < midpoint - width) | (t[:-size] > midpoint + width)
    if not np.any(elsewhere):
        return float("inf")
    return abs(amplitude) / max(float(np.max(change[elsewhere])), 1e-300)


def offline_design(t: Array, phi_index: int, known: Array) -> Design:
    """Return the (cached) design of the offline statistic for one axis, one grid coefficient, known transitions."""
    return _cached_offline_design(t.tobytes(), int(phi_index), known.tobytes())


def known_columns(t: Array, known: Array) -> Array:
    """Return [n, q] sigmoids of the known transitions [q, 2]."""
    return sigmoid(t[:, None], known[None, :, 0], known[None, :, 1])


def smooth_curve(t: Array, row: Array, phi: float, index: int, known: Array) -> Array:
    """Return the fitted smooth curve [n] of one row, by generalised least squares; `index` is `Fit.smooth`."""
    columns = [np.ones_like(t), t, *known_columns(t, known).T]
    shapes = np.concatenate([smooth_shapes(t), smooth_only_shapes(t)], axis=1)
    if index > 0:
        columns.append(shapes[:, index - 1])
    return _regress(np.stack(columns), row, correlations(t, phi))


def abrupt_curve(t: Array, row: Array, phi: float, basis: int, midpoint: float, width: float, known: Array) -> Array:
    """Return the fitted curve [n] of one row with an abrupt sigmoid on basis `basis`."""
    columns = [np.ones_like(t), t, sigmoid(t, midpoint, width), *known_columns(t, known).T]
    if basis > 0:
        columns.append(smooth_shapes(t)[:, basis - 1])
    return _regress(np.stack(columns), row, correlations(t, phi))


def abrupt_heights(t: Array, row: Array, phi: float, basis: int, midpoint: float, width: float, known: Array) -> Array:
    """Return the fitted heights [q] of the known transitions in the abrupt model of one row."""
    columns = [np.ones_like(t), t, sigmoid(t, midpoint, width), *known_columns(t, known).T]
    if basis > 0:
        columns.append(smooth_shapes(t)[:, basis - 1])
    rho = correlations(t, phi)
    beta, *_ = np.linalg.lstsq(whiten(np.stack(columns), rho).T, whiten(row, rho), rcond=None)
    return np.asarray(beta[3 : 3 + len(known)], dtype=np.float64)


def columns_of(basis: int) -> int:
    """Return the number of linear coefficients of the abrupt model on one basis."""
    return 3 if basis == 0 else 4


def _regress(columns: Array, row: Array, rho: Array) -> Array:
    beta, *_ = np.linalg.lstsq(whiten(columns, rho).T, whiten(row, rho), rcond=None)
    return np.asarray(beta @ columns, dtype=np.float64)


@lru_cache(maxsize=36)
def _cached_offline_design(axis: bytes, phi_index: int, known: bytes) -> Design:
    t = np.frombuffer(axis, dtype=np.float64)
    found = np.frombuffer(known, dtype=np.float64).reshape(-1, 2)
    narrow = _narrow(t, MIDPOINTS, np.array(WIDTHS), found)
    phi = float(PHI_GRID[phi_index])
    return build_design(t, phi, smooth_shapes(t), smooth_only_shapes(t), narrow, known_columns(t, found))


@lru_cache(maxsize=36)
def _cached_screen_design(axis: bytes, phi_index: int, known: bytes, smooth: int) -> Design:
    t = np.frombuffer(axis, dtype=np.float64)
    found = np.frombuffer(known, dtype=np.float64).reshape(-1, 2)
    narrow = _narrow(t, MIDPOINTS[::3], np.array(WIDTHS[::2]), found)
    own = smooth_only_shapes(t)[:, smooth - 1 - N_SHAPES, None] if smooth else np.empty((len(t), 0))
    return build_design(t, float(PHI_GRID[phi_index]), smooth_shapes(t), own, narrow, known_columns(t, found))


def _narrow(t: Array, midpoints: Array, widths: Array, found: Array) -> Array:
    narrow = sigmoid_grid(t, midpoints, widths)
    for m, w in found:  # what is left of a known transition must not be found again
        narrow[:, np.tile(np.abs(midpoints - m) < 1.5 * w + 0.02, len(widths))] = 0.0
    return narrow


# Sorting network for the middle of nine (Devillard 1998): whole arrays at a time it is 3 times as fast as a sort.
_NETWORK = (
    (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3), (5, 8), (4, 7), (3, 6), (1, 4),
    (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
)  # fmt: skip


def _median_of_nine(values: Array) -> Array:
    """Return the median over the first axis of [9, ...]; overwrites the input."""
    v = list(values)
    for low, high in _NETWORK:
        v[low], v[high] = np.minimum(v[low], v[high]), np.maximum(v[low], v[high])
    return np.asarray(v[4], dtype=np.float64)


def _median_of_four(values: Array) -> Array:
    """Return the medians of [k, 4] without their NaNs (1-4 numbers each); 8 times as fast as `np.nanmedian`."""
    ordered = np.sort(values, axis=1)  # NaNs last
    count = 4 - np.count_nonzero(np.isnan(ordered), axis=1)
    pick = np.arange(len(values))
    return np.asarray((ordered[pick, (count - 1) // 2] + ordered[pick, count // 2]) / 2, dtype=np.float64)


def _fit_block(rows: Array, d: Design) -> Fit:
    n = rows.shape[1]
    floor = RSS_FLOOR * n
    rest = whiten(rows, d.rho)
    rest = rest - (rest @ d.line) @ d.line.T
    rss_line = np.sum(rest**2, axis=1)
    along = rest @ d.shapes
    only_gain = (rest @ d.smooth_only) ** 2
    smooth_rss = rss_line[:, None] - np.concatenate([np.zeros((len(rows), 1)), along**2, only_gain], axis=1)
    smooth = np.argmin(smooth_rss, axis=1)
    pick = np.arange(len(rows))

    # The search runs in single precision, at half the cost; what it picks is evaluated in double below. Gains are
    # relative to the row, so their rounding moves the pick among equals only.
    size = np.sqrt(np.maximum(rss_line, floor))
    candidates, overlap, inverse_norm = d.quick
    projected = (rest / size[:, None]).astype(np.float32) @ candidates
    along_unit = (along / size[:, None]).astype(np.float32)
    smooth_unit = smooth_rss[:, : 1 + d.shapes.shape[1]] / (size**2)[:, None]
    best = np.full(len(rows), np.inf)
    basis = np.zeros(len(rows), dtype=np.intp)
    candidate = np.zeros(len(rows), dtype=np.intp)
    root, shift = np.empty_like(projected), np.empty_like(projected)  # signed square root of the gain
    for b in range(1 + d.shapes.shape[1]):
        np.multiply(projected, inverse_norm[b], out=root)
        if b > 0:
            np.multiply(along_unit[:, b - 1, None], overlap[b - 1], out=shift)
            np.subtract(root, shift, out=root)
        highest, lowest = np.argmax(root, axis=1), np.argmin(root, axis=1)
        top = np.where(root[pick, highest] >= -root[pick, lowest], highest, lowest)
        rss = smooth_unit[:, b] - root[pick, top].astype(np.float64) ** 2
        better = rss < best
        best[better], basis[better], candidate[better] = rss[better], b, top[better]

    curved = basis > 0
    column = np.maximum(basis - 1, 0)
    shape = np.where(curved[:, None], d.shapes.T[column], 0.0)
    c = np.where(curved, along[pick, column], 0.0)
    g = np.where(curved, d.overlap[column, candidate], 0.0) if d.overlap.shape[0] else np.zeros(len(rows))
    chosen = d.candidates.T[candidate]
    amplitude = (np.sum(rest * chosen, axis=1) - c * g) * d.inverse_norm2[basis, candidate]
    residuals = rest - c[:, None] * shape - amplitude[:, None] * (chosen - g[:, None] * shape)
    # Why not `best`: it is a difference of large numbers when the fit is nearly perfect.
    rss1 = np.maximum(np.sum(residuals**2, axis=1), floor)
    rss0 = np.maximum(smooth_rss[pick, smooth], floor)
    return Fit(
        rss0=rss0,
        smooth=smooth,
        rss1=rss1,
        basis=basis,
        candidate=candidate,
        amplitude=amplitude,
        residuals=residuals,
    )


def _fit_grouped(t: Array, rows: Array, phi_index: Indices, known: Array) -> Fit:
    """Fit rows of [B, n], each at its own grid coefficient."""
    order = np.argsort(phi_index, kind="stable")
    parts = [
        fit_rows(rows[phi_index == index], offline_design(t, int(index), known))
        for index in np.unique(phi_index[order])
    ]
    joined = _joined(parts)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return Fit(**{name: getattr(joined, name)[back] for name in Fit.__dataclass_fields__})


def estimate_phi(t: Array, fit: Fit, phi_index: Indices) -> Array:
    """Return [B] the corrected lag-1 autocorrelation of the abrupt fits' residuals, in [0, 0.97]; see `scan_rows`."""
    n = len(t)
    residuals = np.empty_like(fit.residuals)
    for index in np.unique(phi_index):
        mine = phi_index == index
        residuals[mine] = colour(fit.residuals[mine], correlations(t, float(PHI_GRID[index])))
    residuals -= residuals.mean(axis=1, keepdims=True)
    power = np.maximum(np.sum(residuals**2, axis=1), RSS_FLOOR * n)
    r = np.sum(residuals[:, 1:] * residuals[:, :-1], axis=1) / power
    k = np.where(fit.basis > 0, 4, 3)
    return np.asarray(np.clip(r + (1 + 3 * r) * (1 + k / 2) / n, 0.0, PHI_MAX), dtype=np.float64)


def _joined(parts: list[Fit]) -> Fit:
    return Fit(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in Fit.__dataclass_fields__})


def _updated(fit: Fit, rows: Indices, new: Fit) -> Fit:
    fields = {}
    for name in Fit.__dataclass_fields__:
        fields[name] = getattr(fit, name).copy()
        fields[name][rows] = getattr(new, name)
    return Fit(**fields)
