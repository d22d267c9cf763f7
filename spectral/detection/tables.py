"""What calibration learnt, read from `calibration.json`: floors of the statistic, interval factors, online thresholds.

`python -m spectral.detection.calibration` writes the file from the calibration families alone; it records its seeds and
counts. Nothing here is fitted to a test family.
"""

import json
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np

from spectral.detection.statistic import Array

# Edges of the bins of the noise coefficient: the more a curve's noise wanders, the higher T climbs by chance.
PHI_EDGES = (0.5, 0.75, 0.9)
# Edges of the classes of the noise ratio (within the change over elsewhere): even, uneven, loud within.
NOISE_RATIO_EDGES = (1.3, 2.0)
FLOOR_LEVELS = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


@lru_cache(maxsize=1)
def tables() -> dict[str, Any]:
    """Return the content of calibration.json."""
    text = resources.files("spectral.detection").joinpath("calibration.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def calibration_id() -> str:
    """Return the name of the tables in use, written beside every verdict."""
    return str(tables()["calibration_id"])


def floor_p(statistic: float, phi: float, n_snapshots: int) -> float:
    """Return the share of null curves that reach T, for the worst calibration family, in (0, 1].

    Args:
        statistic: T.
        phi: estimated noise coefficient.
        n_snapshots: length of the curve; interpolated in log N, constant beyond the table.

    Curves that fail the size, edge or persistence gate count as not reaching it. Above the table's levels the answer is
    1, below them an exponential tail through its last two decades.
    """
    sizes, levels = _floor_rows(int(np.searchsorted(PHI_EDGES, phi, side="right")))
    log_n = np.log(np.clip(n_snapshots, sizes[0], sizes[-1]))
    heights = np.array([np.interp(log_n, np.log(sizes), levels[:, i]) for i in range(levels.shape[1])])
    log_p = np.log(np.array(FLOOR_LEVELS))
    if statistic < heights[0]:
        return 1.0
    if statistic <= heights[-1]:
        return float(np.exp(np.interp(statistic, heights, log_p)))
    decay = (log_p[0] - log_p[-1]) / max(float(heights[-1] - heights[0]), 1.0)
    return float(np.exp(max(log_p[-1] - decay * (statistic - heights[-1]), -300.0)))


def calibrated_p(statistic: float, phi: float, n_snapshots: int, jump_ratio: float) -> float:
    """Return the p-value of T against the calibration families, 1 where noise wanders and no jump stands out.

    Args:
        statistic: T.
        phi: estimated noise coefficient.
        n_snapshots: length of the curve.
        jump_ratio: see `statistic.jump_ratio`; from phi = 0.75 on it must reach the calibrated one.
    """
    if phi >= PHI_EDGES[1] and jump_ratio < least_jump_ratio(n_snapshots):
        return 1.0
    return floor_p(statistic, phi, n_snapshots)


def least_jump_ratio(n_snapshots: int) -> float:
    """Return the ratio that walks with heavy-tailed jumps hardly ever reach, interpolated in log N."""
    return _by_size(tables()["jump_ratio"], n_snapshots)


def widening(name: str, n_snapshots: int, noise_ratio: float) -> float:
    """Return the factor on the half-widths of one interval for the class of the noise ratio, interpolated in log N."""
    row = tables()["widening"][name]
    return _by_size({n: factors[noise_class(noise_ratio)] for n, factors in row.items()}, n_snapshots)


def noise_class(noise_ratio: float) -> int:
    """Return the class of a noise ratio: 0 below the first of `NOISE_RATIO_EDGES`, 1 from there on, and so on."""
    return int(np.searchsorted(NOISE_RATIO_EDGES, noise_ratio, side="right"))


def _by_size(row: dict[str, float], n_snapshots: int) -> float:
    sizes = sorted(int(n) for n in row)
    return float(np.interp(np.log(n_snapshots), np.log(np.array(sizes)), [row[str(n)] for n in sizes]))


@lru_cache(maxsize=8)
def _floor_rows(bin_index: int) -> tuple[Array, Array]:
    table = tables()["floor"]
    sizes = np.array(sorted(int(n) for n in table), dtype=np.float64)
    return sizes, np.array([table[str(int(n))][bin_index] for n in sizes], dtype=np.float64)
