"""The simulation behind the online thresholds.

The threshold h(N, alpha) bounds a whole run: on null curves with N planned snapshots, looked at after every snapshot
from `FIRST_LOOK` on, the chance that a signal is ever confirmed is at most alpha. It is the (1 - alpha) quantile of
the largest value that T keeps for `confirm_after(N)` + 1 looks while the gates hold, the largest one over the families.
"""

import numpy as np

from spectral.detection.curves.splits import ALL_NULL, CALIBRATION_NULL
from spectral.detection.online_statistic import WIDTHS, OnlineScan, scan_online, soon_over, under_way
from spectral.detection.statistic import Array, Indices
from spectral.detection.thresholds import FIRST_LOOK, KINDS, LEVELS, SHARP, confirm_after, kind_of, kind_scales
from spectral.randomness import numpy_generator

SIZES = (30, 50, 100, 200, 400)
LOWEST = 5.0  # a lower T is no evidence, however rarely the gates let null curves through
LEAST_THRESHOLD, MAIN_LEVEL = 20.0, 0.05  # of a candidate: a likelihood ratio of e^10
SHAPE_LEVEL = 0.02  # where the heights of the kinds of change are compared

# A wide sigmoid under way cannot be told from a narrow one: only its end shows the width. The offline verdict decides.
NOT_THRESHOLDED = ("gradual",)


def online_rows(n_snapshots: int, n_curves: int, seed: int) -> tuple[list[float], list[float]]:
    """Return one entry of each online table: (factor per kind of change, h per entry of `LEVELS`)."""
    families = tuple(family for family in CALIBRATION_NULL if family not in NOT_THRESHOLDED)
    kept = kept_statistics(families, n_snapshots, n_curves, seed)
    heights = np.max([np.quantile(kinds, 1 - SHAPE_LEVEL, axis=0) for kinds in kept.values()], axis=0)
    wide, sharp = np.maximum(heights, LOWEST).reshape(2, -1)
    if max(WIDTHS) * (n_snapshots - 1) <= SHARP:
        wide = sharp  # so few snapshots that every change is sharp
    heights = np.stack([wide, sharp])
    heights = np.maximum.accumulate(np.maximum.accumulate(heights, axis=1), axis=0).ravel()
    scale = heights[0] / heights
    maxima = [np.max(kinds * scale, axis=1) for kinds in kept.values()]
    quantiles = np.max([np.quantile(values, 1 - np.array(LEVELS)) for values in maxima], axis=0)
    return raised([round(float(x), 3) for x in scale], [round(max(float(x), LOWEST), 1) for x in quantiles])


def raised(scale: list[float], thresholds: list[float]) -> tuple[list[float], list[float]]:
    """Lift all heights until no threshold lies below `LEAST_THRESHOLD`; false alarms can only become rarer.

    Where the gates hold back nearly all null curves, a low T would do for confirming. Candidates pass fewer gates, and
    each of them is announced and may call for dense snapshots.
    """
    factor = max(LEAST_THRESHOLD / thresholds[LEVELS.index(MAIN_LEVEL)], 1.0)
    lifted = [round(max(h * factor, LEAST_THRESHOLD), 1) for h in thresholds]
    return [round(min(s * factor, 1.0), 3) for s in scale], lifted


def kept_statistics(families: tuple[str, ...], n_snapshots: int, n_curves: int, seed: int) -> dict[str, Array]:
    """Return family -> [n_curves, KINDS]: the largest T, at least 0, that a null curve keeps, gates held.

    Kept means: for as many looks in a row as confirming takes.
    """
    looks = confirm_after(n_snapshots) + 1
    t = np.linspace(0, 1, n_snapshots)
    drawn = []
    for family in families:
        rng = numpy_generator(seed, f"calibration/online/{family}", n_snapshots)
        drawn += [ALL_NULL[family](t, rng)[0] for _ in range(n_curves)]
    rows = np.stack(drawn)
    highest = np.zeros((len(rows), KINDS))
    pick = np.arange(len(rows))
    recent: list[Array] = []
    for n in range(FIRST_LOOK, n_snapshots + 1):  # all families at one look share their designs
        statistic, kind, scan = gated_online(t[:n], rows[:, :n])
        recent = [*recent, statistic][-looks:]
        if len(recent) == looks:
            kept = np.min(recent, axis=0)
            higher = np.flatnonzero(kept > highest[pick, kind])
            higher = higher[soon_over(t[:n], scan, higher)]
            highest[higher, kind[higher]] = kept[higher]
    return {family: highest[i * n_curves : (i + 1) * n_curves] for i, family in enumerate(families)}


def gated_online(t: Array, rows: Array) -> tuple[Array, Indices, OnlineScan]:
    """Return ([B] T, [B] kind of change, the scan) of unfiltered rows up to now; T is -inf where a gate fails."""
    scan = scan_online(t, rows, least=LOWEST)
    statistic = np.where(scan.statistic > LOWEST, scan.statistic, -np.inf)
    for i in np.flatnonzero(np.isfinite(statistic)):
        if not under_way(t, scan, int(i)):
            statistic[i] = -np.inf
    return statistic, kind_of(scan.phi, scan.width, float(np.median(np.diff(t)))), scan


def run_maxima(family: str, n_snapshots: int, n_curves: int, seed: int) -> Array:
    """Return [n_curves] largest scaled T that null curves of one family keep; comparable with `threshold`."""
    kept = kept_statistics((family,), n_snapshots, n_curves, seed)[family]
    return np.asarray(np.max(kept * kind_scales(n_snapshots), axis=1), dtype=np.float64)
