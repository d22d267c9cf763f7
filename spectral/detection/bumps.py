"""Events that come and go: loss spikes and curvature bursts, with a template and a list of their own.

A bump is no transition: the level afterwards is that from before. It is sought in the unfiltered curve, as the outlier
filter would remove it, and never makes a run or a signal `detected`.
"""

import math
from dataclasses import dataclass

import numpy as np

from spectral.detection.statistic import (
    PHI_GRID,
    RSS_FLOOR,
    Array,
    colour,
    correlations,
    known_columns,
    smooth_only_shapes,
    smooth_shapes,
    whiten,
)

SHAPES = ("gaussian", "decay")
GAUSSIAN_WIDTHS = (0.004, 0.01, 0.02, 0.035)
DECAY_TIMES = (0.005, 0.015, 0.04)
MAX_BUMPS = 3
MIN_NOISE_SDS = 4.0
MIN_SHARE_OF_RANGE = 0.2
KEPT = 0.4  # of the height: a level that stays this high afterwards is a step
BESIDE = 10


@dataclass(frozen=True, kw_only=True)
class Bump:
    """A passing event. Times in optimizer steps.

    Attributes:
        peak: step of the peak.
        shape: "gaussian" (symmetric) or "decay" (sharp rise, exponential return).
        height: signed, in units of the signal.
        width_steps: full width at half height of the template.
        statistic: T = N ln(RSS0 / RSS1).
        p_value: against surrogates without bump.
    """

    peak: float
    shape: str
    height: float
    width_steps: float
    statistic: float
    p_value: float


def find_bumps(
    t: Array,
    y: Array,
    *,
    smooth_index: int,
    phi: float,
    known: Array,
    significance: float,
    n_surrogates: int,
    rng: np.random.Generator,
) -> list[Bump]:
    """Return the bumps of one unfiltered curve, strongest first, times as fractions of the run.

    Args:
        t: [n] times as fractions of the run.
        y: [n] unfiltered curve.
        smooth_index: `Fit.smooth` of the smooth hypothesis.
        phi: noise coefficient.
        known: [q, 2] transitions of the curve, free in height.
        significance: largest p-value that counts.
        n_surrogates: noise curves behind the p-value; T does not depend on the smooth part, which is projected out.
        rng: source of the noise.

    Search: h(t) in {exp(-((t - m) / w)^2), [t >= m] exp(-(t - m) / tau)} at every snapshot m; T as for steps, with one
    smooth shape fixed. A found bump joins the nuisance columns and the search goes on, with Holm's factor per round.
    """
    n = len(t)
    rho = correlations(t, float(PHI_GRID[np.argmin(np.abs(PHI_GRID - min(phi, 0.9)))]))
    fixed = [np.ones_like(t), t, *known_columns(t, known).T]
    if smooth_index > 0:
        fixed.append(np.concatenate([smooth_shapes(t), smooth_only_shapes(t)], axis=1)[:, smooth_index - 1])
    heights, labels = _templates(t)
    peaks = np.array([label[0] for label in labels])
    found: list[Bump] = []
    noise = colour(rng.standard_normal((n_surrogates, n)), rho)
    spread = float(np.diff(np.quantile(y, [0.02, 0.98]))[0])
    while len(found) < MAX_BUMPS:
        basis, _ = np.linalg.qr(whiten(np.stack(fixed), rho).T)
        white = _off(whiten(heights.T, rho), basis)
        norm = np.linalg.norm(white, axis=1)
        usable = norm > 1e-6
        for bump in found:  # what a template leaves of a bump of another shape must not be found again
            usable &= np.abs(peaks - bump.peak) > 2 * bump.width_steps
        unit = white[usable] / norm[usable, None]
        rest = _off(whiten(y[None], rho), basis)[0]
        total = max(float(rest @ rest), RSS_FLOOR * n)
        gain = (unit @ rest) ** 2
        best = int(np.argmax(gain))
        statistic = -n * math.log(max(1 - float(gain[best]) / total, RSS_FLOOR))
        index = int(np.flatnonzero(usable)[best])
        at, shape, size = labels[index]
        height = float(unit[best] @ rest / norm[usable][best])
        sd = math.sqrt(max(total - float(gain[best]), RSS_FLOOR) / (n - basis.shape[1] - 3))
        if abs(height) < max(MIN_NOISE_SDS * sd, MIN_SHARE_OF_RANGE * spread) or _stays(t, y, at, size, height):
            break
        null = _off(whiten(noise, rho), basis)
        null_gain = np.max((null @ unit.T) ** 2, axis=1) / np.sum(null**2, axis=1)
        p = (1 + int(np.count_nonzero(null_gain >= gain[best] / total))) / (1 + n_surrogates)
        p = min(1.0, MAX_BUMPS * p)  # as strict as Holm's first step: it holds whatever later rounds find
        if p > significance:
            break
        found.append(Bump(peak=at, shape=shape, height=height, width_steps=size, statistic=statistic, p_value=p))
        fixed.append(heights[:, index])
    return found


def _off(rows: Array, basis: Array) -> Array:
    return np.asarray(rows - (rows @ basis) @ basis.T, dtype=np.float64)


def _templates(t: Array) -> tuple[Array, list[tuple[float, str, float]]]:
    """Return [n, c] templates and (peak, shape, full width at half height) of each."""
    columns, labels = [], []
    for m in t[1:-1]:
        for w in GAUSSIAN_WIDTHS:
            columns.append(np.exp(-(((t - m) / w) ** 2)))
            labels.append((float(m), "gaussian", 2 * math.sqrt(math.log(2)) * w))
        for tau in DECAY_TIMES:
            columns.append(np.where(t >= m, np.exp(-np.maximum(t - m, 0) / tau), 0.0))
            labels.append((float(m), "decay", math.log(2) * tau))
    return np.stack(columns, axis=1), labels


def _stays(t: Array, y: Array, at: float, size: float, height: float) -> bool:
    before, after = y[t < at - size][-BESIDE:], y[t > at + 4 * size][:BESIDE]
    if len(before) == 0 or len(after) == 0:
        return True
    return bool(np.sign(height) * (np.median(after) - np.median(before)) >= KEPT * abs(height))
