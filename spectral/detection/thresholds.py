"""Thresholds of the online detector, by planned snapshots and significance, from `calibration.json`."""

from functools import lru_cache

import numpy as np

from spectral.detection.statistic import Array, Indices
from spectral.detection.tables import PHI_EDGES, calibration_id, tables

# Five snapshots before the onset, a rise, two after its midpoint: what `gates.holds` asks for. Earlier looks find
# nothing, later ones raise the thresholds by nothing.
FIRST_LOOK = 10
# A spike of 3 snapshots looks like a new level for 3 looks, as the level is a median of 3; a bump stays up for as long
# as it is wide, and one of 4 % of the run is told from a step by waiting that long.
CONFIRM_AFTER = 3
CONFIRM_SHARE = 0.04
LEVELS = (0.2, 0.1, 0.05, 0.02, 0.01)
SHARP, NARROWEST = 2, 0.01
KINDS = 2 * (len(PHI_EDGES) + 1)


def threshold(planned_snapshots: int | float, significance: float) -> float:
    """Return h(N, alpha), linear in log N and log alpha between the table's entries, constant in N beyond them.

    Args:
        planned_snapshots: N, snapshots the whole run will have.
        significance: alpha, probability that one signal without transition is ever confirmed in a run, in [0.01, 0.2].

    Raises:
        ValueError: for a significance outside the calibrated range.
    """
    if not LEVELS[-1] <= significance <= LEVELS[0]:
        msg = f"significance={significance} lies outside the calibrated [0.01, 0.2]; use for example 0.05"
        raise ValueError(msg)
    rows = tables()["online"]["threshold"]
    log_levels = np.log(np.array(LEVELS[::-1]))
    per_size = {int(n): float(np.interp(np.log(significance), log_levels, row[::-1])) for n, row in rows.items()}
    return _between(per_size, planned_snapshots)


def confirm_after(planned_snapshots: int | float) -> int:
    """Return the number of looks a candidate must last: 3, or 4 % of the planned ones."""
    return max(CONFIRM_AFTER, round(CONFIRM_SHARE * planned_snapshots))


def kind_of(phi: Array, width: Array, spacing: float) -> Indices:
    """Return [B] the kind of each fitted change, 0-7: the bin of phi, plus 4 where the change is sharp.

    Sharp are those over within `SHARP` snapshots, and those of the narrowest width that is fitted. `width` and the
    snapshots' `spacing` are fractions of the run.

    Walks jump: within a snapshot or two a change as large as a transition is common where the noise wanders. A rise
    over many snapshots takes as many increments of one sign, which walks hardly ever have.
    """
    sharp = width <= max(SHARP * spacing, NARROWEST)
    return np.asarray(np.searchsorted(PHI_EDGES, phi, side="right") + sharp * (len(PHI_EDGES) + 1), dtype=np.intp)


@lru_cache(maxsize=8)
def kind_scales(planned_snapshots: int | float) -> Array:
    """Return [8] factors on T, in (0, 1], that make one threshold fit every kind of change.

    T climbs higher by chance where the noise wanders and where the change is sharp; the factor is the ratio of
    calibrated heights, 1 for wide rises in noise with phi < 0.5.
    """
    rows = {int(n): row for n, row in tables()["online"]["scale"].items()}
    return np.array([_between({n: float(row[k]) for n, row in rows.items()}, planned_snapshots) for k in range(KINDS)])


def online_calibration_id() -> str:
    """Return the name of the online tables, saved with a detector's state."""
    return f"online-{calibration_id()}"


def _between(by_size: dict[int, float], n: int | float) -> float:
    sizes = sorted(by_size)
    return float(np.interp(np.log(max(n, 1.0)), np.log(np.array(sizes)), [by_size[size] for size in sizes]))
