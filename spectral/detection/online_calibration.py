"""The simulation behind the online thresholds.

The threshold h(N, alpha) bounds a whole run: on null curves with N planned snapshots, looked at after every snapshot
from `FIRST_LOOK` on, the chance that a signal is ever confirmed is at most alpha. It is the (1 - alpha) quantile of
the largest value that T keeps for `CONFIRM_AFTER` + 1 looks while the gates hold, the largest one over the families.
"""

from typing import Any

import numpy as np

from spectral.detection.online_statistic import scan_online, under_way
from spectral.detection.splits import ALL_NULL, CALIBRATION_NULL
from spectral.detection.statistic import Array
from spectral.detection.tables import PHI_EDGES
from spectral.detection.thresholds import CONFIRM_AFTER, FIRST_LOOK, LEVELS, noise_scale
from spectral.randomness import numpy_generator

SIZES = (30, 50, 100, 200)
LOWEST = 5.0  # a lower T is no evidence, however rarely the gates let null curves through
SHAPE_LEVEL = 0.02  # where the heights of the noise bins are compared

# A wide sigmoid under way cannot be told from a narrow one: only its end shows the width. The offline verdict decides.
NOT_THRESHOLDED = ("gradual",)


def online_table(n_curves: int, seed: int) -> dict[str, Any]:
    """Return {"scale": size -> factor per bin of phi, "threshold": size -> h per entry of LEVELS}."""
    families = tuple(family for family in CALIBRATION_NULL if family not in NOT_THRESHOLDED)
    scales, thresholds = {}, {}
    for n in SIZES:
        kept = kept_statistics(families, n, n_curves, seed)
        heights = np.max([np.quantile(bins, 1 - SHAPE_LEVEL, axis=0) for bins in kept.values()], axis=0)
        heights = np.maximum.accumulate(np.maximum(heights, 1.0))
        scale = heights[0] / heights
        maxima = [np.max(bins * scale, axis=1) for bins in kept.values()]
        quantiles = np.max([np.quantile(values, 1 - np.array(LEVELS)) for values in maxima], axis=0)
        scales[str(n)] = [round(float(x), 3) for x in scale]
        thresholds[str(n)] = [round(max(float(x), LOWEST), 1) for x in quantiles]
    return {"scale": scales, "threshold": thresholds}


def kept_statistics(
    families: tuple[str, ...], n_snapshots: int, n_curves: int, seed: int, *, looks: int = CONFIRM_AFTER + 1
) -> dict[str, Array]:
    """Return family -> [n_curves, bins of phi]: the largest T, at least 0, that a null curve keeps, gates held.

    `looks` is how many looks in a row count as kept. The thresholds are set for the shortest wait; where the detector
    waits longer (`confirm_after`), fewer null curves last.
    """
    t = np.linspace(0, 1, n_snapshots)
    drawn = []
    for family in families:
        rng = numpy_generator(seed, f"calibration/online/{family}", n_snapshots)
        drawn += [ALL_NULL[family](t, rng)[0] for _ in range(n_curves)]
    rows = np.stack(drawn)
    highest = np.zeros((len(rows), len(PHI_EDGES) + 1))
    pick = np.arange(len(rows))
    recent: list[Array] = []
    for n in range(FIRST_LOOK, n_snapshots + 1):  # all families at one look share their designs
        statistic, phi = gated_online(t[:n], rows[:, :n])
        recent = [*recent, statistic][-looks:]
        if len(recent) == looks:
            kept = np.min(recent, axis=0)
            at = np.searchsorted(PHI_EDGES, phi, side="right")
            highest[pick, at] = np.maximum(highest[pick, at], kept)
    return {family: highest[i * n_curves : (i + 1) * n_curves] for i, family in enumerate(families)}


def gated_online(t: Array, rows: Array) -> tuple[Array, Array]:
    """Return ([B] T, [B] phi) of unfiltered rows seen up to now; T is -inf where a gate fails."""
    scan = scan_online(t, rows, least=LOWEST)
    statistic = np.where(scan.statistic > LOWEST, scan.statistic, -np.inf)
    for i in np.flatnonzero(np.isfinite(statistic)):
        if not under_way(t, scan, int(i)):
            statistic[i] = -np.inf
    return statistic, scan.phi


def run_maxima(family: str, n_snapshots: int, n_curves: int, seed: int) -> Array:
    """Return [n_curves] largest scaled T that null curves of one family keep; comparable with `threshold`."""
    edges = [0.0, *PHI_EDGES]
    scale = np.array([noise_scale(n_snapshots, edge) for edge in edges])
    kept = kept_statistics((family,), n_snapshots, n_curves, seed)[family]
    return np.asarray(np.max(kept * scale, axis=1), dtype=np.float64)
