"""From a fitted sigmoid to a verdict: what must hold beside a small p-value, and the reason when it does not."""

from dataclasses import dataclass

import numpy as np

from spectral.detection.statistic import Array

MIN_SNAPSHOTS = 40
MIN_SHARE_OF_RANGE = 0.2
MIN_NOISE_SDS = 3.0
MAX_WIDTH = 0.12
EDGE = 0.05
KEPT_SOON, KEPT_LATE = 0.4, 0.25
# The newest level, online: a spike decays while it waits to be confirmed, an overshoot keeps half of its peak.
KEPT_NOW = 0.5
LEVEL_SNAPSHOTS, LATE_SNAPSHOTS = 12, 8
# Snapshots beside the change; with fewer before it, 3 high ones at the start look like a level.
MIN_BEFORE, MIN_AFTER = 5, 3

VERDICTS = ("abrupt", "gradual", "none", "inconclusive")
REASONS = (
    "not_significant",
    "too_small",
    "too_wide",
    "not_persistent",
    "too_few_snapshots",
    "at_edge",
    "non_finite",
    "running_extreme",
)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the gates look at; times are fractions of the run, heights are in any one unit.

    Attributes:
        p_value: of the likelihood ratio, against surrogates.
        p_calibrated: of the likelihood ratio, against the calibration families.
        n_snapshots: length of the curve.
        midpoint: 50 % point of the sigmoid.
        width: its 10-90 % width.
        width_interval: bounds of the width.
        amplitude: signed height of the sigmoid.
        spread: 2-98 % range of the filtered curve.
        noise_sd: marginal sd of the noise around the abrupt fit.
        smooth_move: range of the fitted smooth curve.
    """

    p_value: float
    p_calibrated: float
    n_snapshots: int
    midpoint: float
    width: float
    width_interval: tuple[float, float]
    amplitude: float
    spread: float
    noise_sd: float
    smooth_move: float


def judge(t: Array, y: Array, evidence: Evidence, significance: float) -> tuple[str, str | None]:
    """Return (verdict, reason); reason is None exactly when the verdict is "abrupt".

    Args:
        t: [n] snapshot times as fractions of the run.
        y: [n] filtered curve.
        evidence: the fitted sigmoid and its p-value.
        significance: largest p-value that counts.

    The first gate that fails names the reason: surrogates, size, edge, calibration, width, persistence. With too few
    snapshots the verdict is "inconclusive" whatever the gates say. A significant change whose width interval spans the
    limit is "inconclusive" too; one that is surely wider is "gradual".
    """
    e = evidence
    moves = _counts(e.smooth_move, e)
    if e.n_snapshots < MIN_SNAPSHOTS:
        return "inconclusive", "too_few_snapshots"
    if e.p_value > significance:
        return ("gradual" if moves else "none"), "not_significant"
    if not _counts(e.amplitude, e):
        return ("gradual" if moves else "none"), "too_small"
    if _at_edge(t, e.midpoint, e.width):
        return "inconclusive", "at_edge"
    if e.p_calibrated > significance:
        if e.width <= MAX_WIDTH and not persists(t, y, midpoint=e.midpoint, width=e.width, amplitude=e.amplitude):
            return "none", "not_persistent"  # a bump also leaves residuals that wander: name what it is
        return ("gradual" if moves else "none"), "not_significant"
    if e.width_interval[0] > MAX_WIDTH:
        return "gradual", "too_wide"
    if e.width_interval[1] > MAX_WIDTH:
        return "inconclusive", "too_wide"
    if not persists(t, y, midpoint=e.midpoint, width=e.width, amplitude=e.amplitude):
        return "none", "not_persistent"
    return "abrupt", None


def passes_shape_gates(
    t: Array, y: Array, *, midpoint: float, width: float, amplitude: float, spread: float, noise_sd: float
) -> bool:
    """Tell whether a sigmoid of the coarse grid passes the size, edge and persistence gates; see `Evidence`."""
    return (
        abs(amplitude) >= MIN_SHARE_OF_RANGE * spread
        and abs(amplitude) >= MIN_NOISE_SDS * noise_sd
        and not _at_edge(t, midpoint, width)
        and persists(t, y, midpoint=midpoint, width=width, amplitude=amplitude)
    )


def persists(t: Array, y: Array, *, midpoint: float, width: float, amplitude: float) -> bool:
    """Tell whether the level after the sigmoid stays: 40 % of A soon after it, 25 % of A later.

    pre and post are medians of the 12 snapshots before the onset and after the end; late is the median of all after
    those, at least the last 8. This removes spikes and bumps; an overshoot that settles above 40 % passes.
    """
    before, after = y[t < midpoint - width / 2], y[t > midpoint + width / 2]
    if len(before) == 0 or len(after) == 0:
        return False
    pre = np.median(before[-LEVEL_SNAPSHOTS:])
    post = np.median(after[:LEVEL_SNAPSHOTS])
    late = np.median(after[min(LEVEL_SNAPSHOTS, max(len(after) - LATE_SNAPSHOTS, 0)) :])
    sign, size = np.sign(amplitude), abs(amplitude)
    return bool(sign * (post - pre) >= KEPT_SOON * size and sign * (late - pre) >= KEPT_LATE * size)


def holds(t: Array, y: Array, *, midpoint: float, width: float, amplitude: float) -> bool:
    """Tell whether a change that may still be under way has not turned back: the online form of `persists`.

    pre is the median of the 12 snapshots before the onset, post that of the first 12 after the midpoint, last that of
    the last 3. Formula: sign(A) (post - pre) >= 0.4 |A| and sign(A) (last - pre) >= 0.5 |A|; at least 2 snapshots after
    the midpoint, `MIN_BEFORE` before the onset.
    """
    before, after = y[t < midpoint - width / 2], y[t > midpoint]
    if len(before) < MIN_BEFORE or len(after) < 2:
        return False
    pre = np.median(before[-LEVEL_SNAPSHOTS:])
    post, last = np.median(after[:LEVEL_SNAPSHOTS]), np.median(after[-3:])
    sign, size = np.sign(amplitude), abs(amplitude)
    return bool(sign * (post - pre) >= KEPT_SOON * size and sign * (last - pre) >= KEPT_NOW * size)


def _at_edge(t: Array, midpoint: float, width: float) -> bool:
    after = np.count_nonzero(t > midpoint + width / 2)
    before = np.count_nonzero(t < midpoint - width / 2)
    return not EDGE <= midpoint <= 1 - EDGE or bool(before < MIN_BEFORE or after < MIN_AFTER)


def _counts(height: float, e: Evidence) -> bool:
    return abs(height) >= MIN_SHARE_OF_RANGE * e.spread and abs(height) >= MIN_NOISE_SDS * e.noise_sd
