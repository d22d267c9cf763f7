"""The simulations behind `calibration.json`; only calibration families take part, never a test family.

`python -m spectral.detection.calibration` writes the file anew, with its seed and counts, in a few minutes. Four
tables:

* floor: how high T climbs on null curves, by length and noise coefficient. Surrogates assume AR(1) noise around a
  smooth curve; where noise wanders or jumps, a signal must beat this as well. The largest quantile over the families.
* jump_ratio: where noise wanders, the height of a jump over the largest change elsewhere that a walk whose jumps have a
  Pareto tail, and T beyond the floor, reaches in 1.5 %. A floor of T instead would forbid half of all overshoots.
* widening: factor per interval that gives 90 % coverage, pooled over the calibration families of abrupt curves, one for
  each class of how much louder the noise is within the change than elsewhere (the loudest: for the worst family);
  onset and end share theirs, since each is the other of the mirrored curve.
* online: threshold h(N, alpha) with P(a confirmed alarm at any time of a null run) <= alpha, the largest over families.
"""

import argparse
import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from spectral.detection.curves.splits import ALL_ABRUPT, ALL_NULL, CALIBRATION_ABRUPT, CALIBRATION_NULL
from spectral.detection.gates import passes_shape_gates
from spectral.detection.intervals import LEVEL, bounds, half_width, quantities, refine, spacing_at
from spectral.detection.online_calibration import SIZES, online_rows
from spectral.detection.statistic import (
    MIDPOINTS,
    WIDTHS,
    Array,
    Scan,
    columns_of,
    hampel,
    jump_ratio,
    scan_rows,
)
from spectral.detection.tables import FLOOR_LEVELS, NOISE_RATIO_EDGES, PHI_EDGES, noise_class
from spectral.randomness import numpy_generator

SEED = 2027
FLOOR_SIZES = (40, 60, 100, 200, 400)
WIDENING_SIZES = (50, 100, 200)
FLOOR_CURVES = 4000
WIDENING_CURVES = 200

# The width gate decides about these, with an interval of its own; a floor would only cost power.
NOT_IN_FLOOR = ("gradual", "jumping_walk", "pareto_walk")
JUMPING = "jumping_walk"
JUMP_LEVEL, JUMP_SHARE = 0.01, 0.015
# A bin may use this share of the allowance even if fewer curves fall into it.
_SMALLEST_BIN = 1 / 8
# The 50 % point of a rise that overshoots and settles depends on which level counts as its end: no error to learn from.
NOT_IN_WIDENING = ("overshoot",)
# A family speaks for the loudest noise if this share of its curves is found so loud.
_LEAST_SHARE_LOUD = 1 / 4
_SHARED_FACTORS = {
    "midpoint": ("midpoint",),
    "onset": ("onset", "end"),
    "end": ("onset", "end"),
    "width": ("width",),
}


def floor_rows(n_snapshots: int, n_curves: int, seed: int) -> list[list[float]]:
    """Return one entry of the floor table: [len(PHI_EDGES) + 1, len(FLOOR_LEVELS)]."""
    t = np.linspace(0, 1, n_snapshots)
    highest = np.zeros((len(PHI_EDGES) + 1, len(FLOOR_LEVELS)))
    for name in CALIBRATION_NULL:
        if name in NOT_IN_FLOOR:
            continue
        rng = numpy_generator(seed, f"calibration/floor/{name}", n_snapshots)
        statistic, scan = gated_statistics(t, np.stack([ALL_NULL[name](t, rng)[0] for _ in range(n_curves)]))
        bins = np.searchsorted(PHI_EDGES, scan.phi, side="right")
        for b in range(len(PHI_EDGES) + 1):
            ordered = np.sort(statistic[bins == b])[::-1]
            for i, level in enumerate(FLOOR_LEVELS):
                allowed = int(level * max(len(ordered), _SMALLEST_BIN * n_curves))
                if allowed < len(ordered) and ordered[allowed] > highest[b, i]:
                    highest[b, i] = ordered[allowed]
    return [[round(float(x), 1) for x in row] for row in np.maximum.accumulate(highest, axis=1)]


def least_jump(n_snapshots: int, heights: list[list[float]], n_curves: int, seed: int) -> float:
    """Return the ratio that `JUMP_SHARE` of the jumping walks reach together with the floor and phi >= 0.75."""
    level = FLOOR_LEVELS.index(JUMP_LEVEL)
    t = np.linspace(0, 1, n_snapshots)
    rng = numpy_generator(seed, f"calibration/jump/{JUMPING}", n_snapshots)
    statistic, scan = gated_statistics(t, np.stack([ALL_NULL[JUMPING](t, rng)[0] for _ in range(n_curves)]))
    bins = np.searchsorted(PHI_EDGES, scan.phi, side="right")
    high = (statistic > np.array(heights)[bins, level]) & (scan.phi >= PHI_EDGES[1])
    ratios = sorted((jump_ratio(t, scan, int(i)) for i in np.flatnonzero(high)), reverse=True)
    allowed = int(JUMP_SHARE * n_curves)
    return round(float(ratios[allowed]), 2) if allowed < len(ratios) else 1.0


def gated_statistics(t: Array, rows: Array) -> tuple[Array, Scan]:
    """Return [B] T and the scan of unfiltered rows; T is -inf where size, edge or persistence forbid a transition."""
    rows = rows - np.median(rows, axis=1, keepdims=True)
    rows = hampel(rows / np.ptp(rows, axis=1, keepdims=True))
    scan = scan_rows(t, rows)
    candidate = scan.fit.candidate
    spread = np.ptp(np.quantile(rows, [0.02, 0.98], axis=1), axis=0)
    k = np.array([columns_of(int(basis)) for basis in scan.fit.basis])
    noise_sd = np.sqrt(scan.fit.rss1 / (len(t) - k - 2))
    passes = [
        passes_shape_gates(
            t,
            rows[i],
            midpoint=float(MIDPOINTS[candidate[i] % len(MIDPOINTS)]),
            width=WIDTHS[candidate[i] // len(MIDPOINTS)],
            amplitude=float(scan.fit.amplitude[i]),
            spread=float(spread[i]),
            noise_sd=float(noise_sd[i]),
        )
        for i in range(len(rows))
    ]
    return np.where(passes, scan.statistic, -np.inf), scan


def widening_rows(n_snapshots: int, n_curves: int, seed: int) -> dict[str, list[float]]:
    """Return interval -> factor by noise class, the `LEVEL` quantile of |error| / uncalibrated half-width.

    Families are pooled, but for the loudest class, where the largest quantile of a family with many such curves holds:
    how noise rises and falls within a change differs too much for an average to say what an unseen form needs. On short
    curves no family is found loud often enough to speak for itself; there the pool's quantile holds.
    """
    families = [name for name in CALIBRATION_ABRUPT if name not in NOT_IN_WIDENING]
    loudest = len(NOISE_RATIO_EDGES)
    rows: dict[str, list[float]] = {}
    curves = {family: error_ratios(family, n_snapshots, n_curves, seed) for family in families}
    for noise in range(loudest + 1):
        mine = {family: [ratios for c, ratios in found if c == noise] for family, found in curves.items()}
        pools = [[ratios for found in mine.values() for ratios in found]]
        if noise == loudest:
            pools = [found for found in mine.values() if len(found) >= _LEAST_SHARE_LOUD * n_curves] or pools
        for name, together in _SHARED_FACTORS.items():
            known = rows.setdefault(name, [])
            levels = [_level([ratios[one] for one in together for ratios in pool]) for pool in pools if pool]
            known.append(round(max(levels), 3) if levels else known[-1])  # no curve so loud: as for less loud ones
    return rows


def _level(values: list[float]) -> float:
    return float(np.quantile(values, LEVEL))


def error_ratios(family: str, n_snapshots: int, n_curves: int, seed: int) -> list[tuple[int, dict[str, float]]]:
    """Return (noise class, interval -> |error| / half-width towards the truth) of each curve found within 3 %."""
    t = np.linspace(0, 1, n_snapshots)
    rng = numpy_generator(seed, f"calibration/widening/{family}", n_snapshots)
    found_ratios = []
    for _ in range(n_curves):
        y, truth = ALL_ABRUPT[family](t, rng)
        if truth is None:
            continue
        y = hampel(((y - np.median(y)) / np.ptp(y))[None])[0]
        scan = scan_rows(t, y[None])
        near = float(MIDPOINTS[int(scan.fit.candidate[0]) % len(MIDPOINTS)])
        fit = refine(t, y, phi_index=int(scan.phi_index[0]), near=near, known=np.empty((0, 2)))
        found = quantities(fit)
        midpoint = found["midpoint"][0]
        if abs(midpoint - truth[1]) > 0.03:
            continue
        right = {"onset": truth[0], "midpoint": truth[1], "end": truth[2], "width": truth[2] - truth[0]}
        spacing = spacing_at(t, midpoint)
        ratios = {}
        for name, (estimate, cells) in found.items():
            error = right[name] - estimate
            end = bounds(fit, cells)[int(error > 0)]
            ratios[name] = abs(error) / half_width(estimate, end, spacing)
        found_ratios.append((noise_class(fit.noise_ratio), ratios))
    return found_ratios


def calibrate(
    seed: int, floor_curves: int, widening_curves: int, online_curves: int, processes: int = 1
) -> dict[str, Any]:
    """Return the content of calibration.json; the number of processes does not change it."""
    with ProcessPoolExecutor(processes) as pool:
        # The longest curves first: they take as long as all others together.
        online = {n: pool.submit(online_rows, n, online_curves, seed) for n in sorted(SIZES, reverse=True)}
        floors = {n: pool.submit(floor_rows, n, floor_curves, seed) for n in sorted(FLOOR_SIZES, reverse=True)}
        widened = {n: pool.submit(widening_rows, n, widening_curves, seed) for n in WIDENING_SIZES}
        floor = {n: floors[n].result() for n in FLOOR_SIZES}
        jumps = {n: pool.submit(least_jump, n, floor[n], floor_curves, seed) for n in FLOOR_SIZES}
        content = {
            "made_by": "python -m spectral.detection.calibration",
            "seed": seed,
            "curves": {"floor": floor_curves, "widening": widening_curves, "online": online_curves},
            "null_families": list(CALIBRATION_NULL),
            "abrupt_families": list(CALIBRATION_ABRUPT),
            "phi_edges": list(PHI_EDGES),
            "floor_levels": list(FLOOR_LEVELS),
            "noise_ratio_edges": list(NOISE_RATIO_EDGES),
            "floor": {str(n): rows for n, rows in floor.items()},
            "jump_ratio": {str(n): jump.result() for n, jump in jumps.items()},
            "widening": {
                name: {str(n): rows.result()[name] for n, rows in widened.items()} for name in _SHARED_FACTORS
            },
            "online": {
                "scale": {str(n): online[n].result()[0] for n in SIZES},
                "threshold": {str(n): online[n].result()[1] for n in SIZES},
            },
        }
    # Named after its content: verdicts of other tables must not look alike.
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return {"calibration_id": f"calibration-{seed}-{digest}"} | content


def main() -> None:
    """Write calibration.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("calibration.json"))
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--floor_curves", type=int, default=FLOOR_CURVES, help="per family and length")
    parser.add_argument("--widening_curves", type=int, default=WIDENING_CURVES, help="per family and length")
    parser.add_argument("--online_curves", type=int, default=1000, help="per family and length")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    curves = (options.floor_curves, options.widening_curves, options.online_curves)
    content = calibrate(options.seed, *curves, processes=options.processes)
    options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
