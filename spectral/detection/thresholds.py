"""Thresholds of the online detector, by planned snapshots and significance; `calibration.py` made the table."""

import numpy as np

FIRST_LOOK = 16
LEVELS = (0.2, 0.1, 0.05, 0.02, 0.01)

# Planned snapshots -> threshold per entry of LEVELS.
THRESHOLDS: dict[int, tuple[float, ...]] = {
    30: (11.8, 14.3, 16.2, 19.6, 21.6),
    50: (13.5, 15.6, 18.0, 20.9, 24.5),
    100: (15.9, 18.9, 22.6, 28.0, 31.6),
    200: (21.9, 28.7, 36.1, 48.3, 54.7),
}
ONLINE_CALIBRATION_ID = "online-1"


def threshold(planned_snapshots: int | float, significance: float) -> float:
    """Return h(N, alpha), linear in log N and log alpha between the table's entries, constant in N beyond them.

    Args:
        planned_snapshots: N, snapshots the whole run will have.
        significance: alpha, probability of any false candidate of one signal in a run, in [0.01, 0.2].

    Raises:
        ValueError: for a significance outside the calibrated range.
    """
    if not LEVELS[-1] <= significance <= LEVELS[0]:
        msg = f"significance={significance} lies outside the calibrated [0.01, 0.2]; use for example 0.05"
        raise ValueError(msg)
    sizes = np.array(sorted(THRESHOLDS), dtype=np.float64)
    log_levels = np.log(np.array(LEVELS[::-1]))
    per_size = [np.interp(np.log(significance), log_levels, THRESHOLDS[int(n)][::-1]) for n in sizes]
    return float(np.interp(np.log(max(planned_snapshots, 1.0)), np.log(sizes), per_size))
