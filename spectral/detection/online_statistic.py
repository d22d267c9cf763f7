"""Likelihood ratio of an abrupt change in a curve that is still growing.

The same T = n ln(RSS0 / RSS1) as offline, on the n snapshots seen so far, with time relative to the planned length.
Candidates are sigmoids among the last 40 snapshots whose midpoint has passed, followed by at least `SETTLED` snapshots,
so that no single outlier at the end counts. The rise need not be over: waiting for its 90 % point costs half a width.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from spectral.detection.gates import MIN_NOISE_SDS, MIN_SHARE_OF_RANGE, holds
from spectral.detection.statistic import (
    PHI_GRID,
    PHI_START,
    RSS_FLOOR,
    Array,
    Design,
    Indices,
    build_design,
    colour,
    columns_of,
    correlations,
    estimate_phi,
    fit_rows,
    hampel,
    ratio_to_elsewhere,
    sigmoid,
    sigmoid_grid,
)
from spectral.detection.tables import PHI_EDGES
from spectral.detection.thresholds import NARROWEST

Flags = npt.NDArray[np.bool_]

TAUS = np.geomspace(0.01, 1.5, 12)
POWERS = ((0.01, 0.3), (0.01, 0.8), (0.05, 0.3), (0.05, 0.8))
WIDE_WIDTHS = (0.25, 0.4, 0.6, 0.9)
WIDE_MIDPOINTS = np.linspace(0.1, 1.3, 25)  # beyond 1: the planned length may cut a slow rise short
WIDTHS = (NARROWEST, 0.03, 0.06, 0.1)
LOOK_BACK = 40
# Rises that are not over soon: wide sigmoids under way, and what a kink of a learning-rate schedule starts, a straight
# line (infinite time) or a relaxation whose 10-90 % width, 2.2 of these times, is no narrow one.
SLOW_WIDTHS = (0.16, 0.25, 0.4)
SLOW_TIMES = (0.08, 0.16, 0.4, np.inf)
WARM_UPS, WARM_TIMES = np.geomspace(0.02, 0.16, 7), np.geomspace(0.06, 0.5, 5)  # warm-ups, and relaxations after them
# Shares of the run: how long ago a slow rise may have begun, how far ahead its midpoint may lie.
SLOW_BACK, SLOW_AHEAD = 0.3, 0.1
SLOW_STARTS = 60
# Required of n ln(RSS_slow / RSS_abrupt): a likelihood ratio of e^3 for the abrupt curve.
LEAST_OVER_SLOW = 6.0
SETTLED = 1
PER_SNAPSHOT = 2
# How far a change must exceed the largest one elsewhere (`ratio_to_elsewhere`), by bin of phi: the more the noise
# wanders, the more a change must stand out, as walks jump too. In white noise a sustained low step does not stand out.
LEAST_JUMP_RATIO = (1.5, 3.0, 5.0, 5.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class OnlineScan:
    """The statistic of B rows at one moment, with the sigmoid behind it.

    Attributes:
        statistic: [B] T; NaN where no candidate exists yet.
        midpoint: [B] as fraction of the planned run.
        width: [B] 10-90 % width, as fraction of the planned run.
        amplitude: [B] signed height in units of the rows.
        noise_sd: [B] marginal noise sd in the same units.
        phi: [B] noise coefficient used, a value of `PHI_GRID`.
        filtered: [B, n] the rows without isolated outliers.
        residuals: [B, n] what the abrupt fit leaves of them, whitened.
    """

    statistic: Array
    midpoint: Array
    width: Array
    amplitude: Array
    noise_sd: Array
    phi: Array
    filtered: Array
    residuals: Array


def scan_online(t: Array, rows: Array, *, least: float = -np.inf) -> OnlineScan:
    """Scan the rows [B, n] (unfiltered, n >= 9) seen up to now.

    Args:
        t: [n] snapshot times as fractions of the planned run; may exceed 1 when the run goes on longer.
        rows: [B, n] the curves up to now.
        least: for simulations, where a low T does not count: rows whose T is lower on a quarter of the candidates,
            or in the first round, are not scanned further.

    phi comes from the residuals of the abrupt fit, as offline, in two rounds: differences of the curve itself would
    take a rise of many snapshots for wandering noise.
    """
    n = len(t)
    center = np.median(rows, axis=1, keepdims=True)
    scale = np.ptp(rows, axis=1)
    flat = scale <= 0
    unit = np.where(flat, 1.0, scale)[:, None]
    scaled = hampel((rows - center) / unit)
    filtered = scaled * unit + center
    midpoints, widths = _candidates(t)
    b = len(rows)
    empty = np.full(b, np.nan)
    if len(midpoints) == 0:
        return OnlineScan(
            statistic=empty,
            midpoint=empty,
            width=empty,
            amplitude=empty,
            noise_sd=empty,
            phi=empty,
            filtered=filtered,
            residuals=filtered,
        )
    out = {name: np.empty(b) for name in ("statistic", "midpoint", "width", "amplitude", "noise_sd")}
    residuals = np.empty_like(scaled)
    phi_index = np.full(b, int(np.argmin(np.abs(PHI_GRID - PHI_START))))
    stale = np.ones(b, dtype=bool)
    if least > -np.inf:
        rough = fit_rows(scaled, _rough_design(t.tobytes(), int(phi_index[0])))
        out["statistic"][:] = n * np.log(rough.rss0 / rough.rss1)
        stale = out["statistic"] >= least
    for last in (False, True):
        estimate = np.zeros(b)
        for index in np.unique(phi_index[stale]):
            mine: Indices = np.flatnonzero(stale & (phi_index == index))
            fit = fit_rows(scaled[mine], _design(t.tobytes(), int(index)))
            k = np.array([columns_of(int(basis)) for basis in fit.basis])
            out["statistic"][mine] = n * np.log(fit.rss0 / fit.rss1)
            out["midpoint"][mine] = midpoints[fit.candidate]
            out["width"][mine] = widths[fit.candidate]
            out["amplitude"][mine] = fit.amplitude * scale[mine]
            out["noise_sd"][mine] = np.sqrt(np.maximum(fit.rss1, RSS_FLOOR) / (n - k - 2)) * scale[mine]
            residuals[mine] = fit.residuals * scale[mine, None]
            if not last:
                estimate[mine] = estimate_phi(t, fit, phi_index[mine])
        if not last:
            rounded = np.argmin(np.abs(PHI_GRID[None, :] - estimate[:, None]), axis=1)
            again = stale & (rounded != phi_index) & (out["statistic"] >= least)
            stale, phi_index = again, np.where(stale, rounded, phi_index)
    out["statistic"][flat] = 0.0
    return OnlineScan(**out, phi=PHI_GRID[phi_index], filtered=filtered, residuals=residuals)


def under_way(t: Array, scan: OnlineScan, row: int) -> bool:
    """Tell whether the sigmoid of one row is large, kept up to now, and stands out as far as its noise asks for."""
    m, w, amplitude = (float(values[row]) for values in (scan.midpoint, scan.width, scan.amplitude))
    y = scan.filtered[row]
    spread = float(np.diff(np.quantile(y, [0.02, 0.98]))[0])
    large = abs(amplitude) >= max(MIN_SHARE_OF_RANGE * spread, MIN_NOISE_SDS * float(scan.noise_sd[row]))
    if not (large and holds(t, y, midpoint=m, width=w, amplitude=amplitude)):
        return False
    phi = float(scan.phi[row])
    rest = colour(scan.residuals[row], correlations(t, phi))
    ratio = ratio_to_elsewhere(t, rest, midpoint=m, width=w, amplitude=amplitude)
    return ratio >= LEAST_JUMP_RATIO[int(np.searchsorted(PHI_EDGES, phi, side="right"))]


def soon_over(t: Array, scan: OnlineScan, rows: Indices) -> Flags:
    """Tell of each of the given rows whether its rise is over soon: a slow one explains the curve much worse.

    While a change is under way, a kink and a wide rise look like the first half of a narrow one; that it slows down
    tells them apart. Formula: n ln(RSS_slow / RSS_abrupt) >= 6, where RSS_slow is the smallest over the smooth bases
    plus one slow rise that began in the last 30 % of the run, or one learning curve under a warm-up, at the same phi.
    """
    over = np.zeros(len(rows), dtype=bool)
    for phi in np.unique(scan.phi[rows]):
        mine: Indices = np.flatnonzero(scan.phi[rows] == phi)
        picked = scan.filtered[rows[mine]]
        unit = np.maximum(np.ptp(picked, axis=1), 1e-300)
        centered = (picked - np.median(picked, axis=1, keepdims=True)) / unit[:, None]
        slow = fit_rows(centered, _slow_design(t.tobytes(), float(phi))).rss1
        abrupt = np.maximum(np.sum(scan.residuals[rows[mine]] ** 2, axis=1) / unit**2, RSS_FLOOR * len(t))
        over[mine] = len(t) * np.log(slow / abrupt) >= LEAST_OVER_SLOW
    return over


def _candidates(t: Array) -> tuple[Array, Array]:
    """Return midpoints and widths of the sigmoids whose midpoint has passed by now."""
    n = len(t)
    if n < 6:
        return np.empty(0), np.empty(0)
    index = np.arange(max(n - 1 - LOOK_BACK, 2) * PER_SNAPSHOT, (n - 1 - SETTLED) * PER_SNAPSHOT + 1) / PER_SNAPSHOT
    places = np.interp(index, np.arange(n), t)
    m, w = np.tile(places, len(WIDTHS)), np.repeat(WIDTHS, len(places))
    over = (m <= t[-1 - SETTLED]) & (m - w / 2 >= t[1])
    return m[over], w[over]


@lru_cache(maxsize=24)
def _design(axis: bytes, phi_index: int) -> Design:
    return build_design(np.frombuffer(axis, dtype=np.float64), float(PHI_GRID[phi_index]), *_columns(axis))


@lru_cache(maxsize=2)
def _rough_design(axis: bytes, phi_index: int) -> Design:
    t = np.frombuffer(axis, dtype=np.float64)
    shapes, wide, candidates = _columns(axis)
    some = np.flatnonzero(np.isin(_candidates(t)[1], WIDTHS[1::2]))[::2]
    if len(some) == 0:  # so short an axis that the narrowest width alone fits into it
        some = np.arange(candidates.shape[1])
    return build_design(t, float(PHI_GRID[phi_index]), shapes, wide, candidates[:, some])


@lru_cache(maxsize=8)
def _slow_design(axis: bytes, phi: float) -> Design:
    t = np.frombuffer(axis, dtype=np.float64)
    shapes, wide, _ = _columns(axis)
    first = max(t[-1] - SLOW_BACK, t[2])
    sigmoids = sigmoid_grid(t, np.linspace(first, t[-1] + SLOW_AHEAD, SLOW_STARTS // 2), np.array(SLOW_WIDTHS))
    since = np.maximum(t[:, None] - np.linspace(first, t[-3], SLOW_STARTS), 0.0)
    kinks = [since if np.isinf(time) else -np.expm1(-since / time) for time in SLOW_TIMES]
    passed = [np.where(t < warm, t**2 / (2 * warm), t - warm / 2) for warm in WARM_UPS]
    warm_ups = np.stack([np.exp(-progress / time) for progress in passed for time in WARM_TIMES], axis=1)
    return build_design(t, phi, shapes, wide, np.concatenate([sigmoids, *kinks, warm_ups], axis=1))


@lru_cache(maxsize=2)
def _columns(axis: bytes) -> tuple[Array, Array, Array]:
    """Return smooth shapes, wide sigmoids and candidates, [n, number] each; signals of any phi share them."""
    t = np.frombuffer(axis, dtype=np.float64)
    midpoints, widths = _candidates(t)
    shapes = [np.exp(-t / tau) for tau in TAUS] + [(1 + t / u) ** -p for u, p in POWERS]
    wide = sigmoid_grid(t, WIDE_MIDPOINTS, np.array(WIDE_WIDTHS))
    return np.stack(shapes, axis=1), wide, sigmoid(t[:, None], midpoints[None, :], widths[None, :])
