"""The simulation behind the online thresholds.

The threshold h(N, alpha) bounds a whole run: on null curves with N planned snapshots, looked at after every snapshot
from `FIRST_LOOK` on, P(max over the run of T > h) <= alpha. It is the (1 - alpha) quantile of that maximum, and the
largest one over the null families, not the pooled one. Families of spikes and bumps are left out: such curves *do* rise
abruptly, so no threshold on T can stop them; the level test before `confirmed` does.

`python -m spectral.detection.calibration` prints the table of `thresholds.py` anew, in about 3 minutes.
"""

import argparse

import numpy as np

from spectral.detection.families import NULL
from spectral.detection.online_statistic import scan_online
from spectral.detection.statistic import Array
from spectral.detection.thresholds import FIRST_LOOK, LEVELS, THRESHOLDS
from spectral.randomness import numpy_generator

NOT_THRESHOLDED = ("spikes", "transient_bump")
CURVES = 1000
SEED = 2026


def run_maxima(family: str, n_snapshots: int, n_curves: int, seed: int = SEED) -> Array:
    """Return [n_curves] maxima over the run of T on null curves of one family, seen snapshot by snapshot."""
    t = np.linspace(0, 1, n_snapshots)
    rng = numpy_generator(seed, f"calibration/{family}", n_snapshots)
    rows = np.stack([NULL[family](t, rng)[0] for _ in range(n_curves)])
    highest = np.full(n_curves, -np.inf)
    for n in range(FIRST_LOOK, n_snapshots + 1):
        highest = np.maximum(highest, scan_online(t[:n], rows[:, :n]).statistic)
    return highest


def calibrate(n_snapshots: int, n_curves: int, seed: int = SEED) -> tuple[float, ...]:
    """Return the row of `THRESHOLDS` for one planned length, rounded to 0.1."""
    quantiles = [
        np.quantile(run_maxima(family, n_snapshots, n_curves, seed), 1 - np.array(LEVELS))
        for family in NULL
        if family not in NOT_THRESHOLDED
    ]
    return tuple(round(float(h), 1) for h in np.max(quantiles, axis=0))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--snapshots", type=int, nargs="+", default=sorted(THRESHOLDS))
    parser.add_argument("--curves", type=int, default=CURVES, help="null curves per family")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    for n_snapshots in options.snapshots:
        print(f"    {n_snapshots}: {calibrate(n_snapshots, options.curves, options.seed)},", flush=True)


if __name__ == "__main__":
    main()
