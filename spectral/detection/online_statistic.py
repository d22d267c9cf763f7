"""Likelihood ratio of an abrupt change in a curve that is still growing.

The same T = n ln(RSS0 / RSS1) as offline, on the n snapshots seen so far, with time relative to the planned length.
Candidates are sigmoids among the last 40 snapshots whose midpoint has passed, followed by at least `SETTLED` snapshots,
so that no single outlier at the end counts. The rise need not be over: waiting for its 90 % point costs half a width.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from spectral.detection.statistic import (
    PHI_GRID,
    PHI_MAX,
    RSS_FLOOR,
    Array,
    Design,
    Indices,
    build_design,
    columns_of,
    fit_rows,
    hampel,
    sigmoid_grid,
)

TAUS = np.geomspace(0.01, 1.5, 12)
POWERS = ((0.01, 0.3), (0.01, 0.8), (0.05, 0.3), (0.05, 0.8))
WIDE_WIDTHS = (0.25, 0.4, 0.6, 0.9)
WIDE_MIDPOINTS = np.linspace(0.1, 1.3, 25)  # beyond 1: the planned length may cut a slow rise short
WIDTHS = (0.01, 0.03, 0.06, 0.1)
LOOK_BACK = 40
SETTLED = 1
PER_SNAPSHOT = 2


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
    """

    statistic: Array
    midpoint: Array
    width: Array
    amplitude: Array
    noise_sd: Array
    phi: Array


def scan_online(t: Array, rows: Array) -> OnlineScan:
    """Scan the rows [B, n] (unfiltered, n >= 9) seen up to now.

    Args:
        t: [n] snapshot times as fractions of the planned run; may exceed 1 when the run goes on longer.
        rows: [B, n] the curves up to now.

    phi is 1 + 2c from the lag-1 autocorrelation c of the first differences (centred, clipped at 4 x median |d|), in
    [0, 0.95]: differencing removes the trend without a fit.
    """
    n = len(t)
    rows = rows - np.median(rows, axis=1, keepdims=True)
    scale = np.ptp(rows, axis=1)
    flat = scale <= 0
    rows = hampel(rows / np.where(flat, 1.0, scale)[:, None])
    phi_index = np.argmin(np.abs(PHI_GRID[None, :] - _phi_of_differences(rows)[:, None]), axis=1)
    midpoints, widths = _candidates(t)
    b = len(rows)
    empty = np.full(b, np.nan)
    if len(midpoints) == 0:
        return OnlineScan(statistic=empty, midpoint=empty, width=empty, amplitude=empty, noise_sd=empty, phi=empty)
    out = {name: np.empty(b) for name in ("statistic", "midpoint", "width", "amplitude", "noise_sd")}
    for index in np.unique(phi_index):
        mine: Indices = np.flatnonzero(phi_index == index)
        fit = fit_rows(rows[mine], _design(t.tobytes(), int(index)))
        k = np.array([columns_of(int(basis)) for basis in fit.basis])
        out["statistic"][mine] = n * np.log(fit.rss0 / fit.rss1)
        out["midpoint"][mine] = midpoints[fit.candidate]
        out["width"][mine] = widths[fit.candidate]
        out["amplitude"][mine] = fit.amplitude * scale[mine]
        out["noise_sd"][mine] = np.sqrt(np.maximum(fit.rss1, RSS_FLOOR) / (n - k - 2)) * scale[mine]
    out["statistic"][flat] = 0.0
    return OnlineScan(**out, phi=PHI_GRID[phi_index])


def _phi_of_differences(rows: Array) -> Array:
    d = np.diff(rows, axis=1)
    d = d - np.median(d, axis=1, keepdims=True)
    limit = 4 * np.median(np.abs(d), axis=1, keepdims=True)
    d = np.clip(d, -limit, limit)
    power = np.sum(d**2, axis=1)
    c = np.sum(d[:, 1:] * d[:, :-1], axis=1) / np.where(power > 0, power, 1.0)
    return np.asarray(np.clip(1 + 2 * np.where(power > 0, c, -0.5), 0.0, min(0.95, PHI_MAX)), dtype=np.float64)


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
    t = np.frombuffer(axis, dtype=np.float64)
    m, w = _candidates(t)
    candidates = np.concatenate([sigmoid_grid(t, m[w == x], np.array([x])) for x in WIDTHS], axis=1)
    shapes = [np.exp(-t / tau) for tau in TAUS] + [(1 + t / u) ** -p for u, p in POWERS]
    wide = sigmoid_grid(t, WIDE_MIDPOINTS, np.array(WIDE_WIDTHS))
    return build_design(t, float(PHI_GRID[phi_index]), np.stack(shapes, axis=1), wide, candidates)
