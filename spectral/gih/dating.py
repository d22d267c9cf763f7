"""When each stage did what it does: the detector over the shares, the heads, `a` and the loss, stage by stage.

A stage spans several decades of time and most happens early, so its curves are judged over log10(1 + time); dates are
given back as times of the stage. Beside the verdict stand the times at which a tenth, half and nine tenths of the
change were done.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral.detection import Transition, detect_transition
from spectral.gih.results import GIHResults

SPACING = 0.02  # decades between rows that are judged; denser ones are no independent evidence


def stage_transitions(run: GIHResults, *, significance: float = 0.01) -> dict[str, Any]:
    """Return the content of `transitions.json`: per stage and signal a verdict with times of the stage.

    Signals: `share <S>` of the subset that leads at the end, where c moves; `own_offset <h>` of its heads, where w
    moves; `a`, where it moves; the training loss that is minimised. Times are None where nothing is dated.
    """
    winner = int(run.read("shares")[-1].argmax())
    name = str(run.dataset["subset"].values[winner])
    stages = []
    for stage, trained in enumerate(run.stage_names):
        rows = run.rows_of(stage)
        if len(rows) == 0:
            continue
        moved = trained.split("+")
        signals: dict[str, NDArray[np.float64]] = {}
        if "c" in moved:
            signals[f"share {name}"] = run.read("shares")[rows, winner]
        if "w" in moved:
            signals |= {
                f"own_offset {head + 1}": run.read("own_offset")[rows, head]
                for head, member in enumerate(name)
                if member == "1"
            }
        if "a" in moved:
            signals["a"] = run.read("a")[rows]
        signals["loss"] = run.read(f"train_{run.config.loss}")[rows]
        x = np.log10(1 + run.read("time")[rows])
        kept = _thinned(x)
        found = {
            key: _crossings(run.read("time")[rows], values)
            | _in_time(
                detect_transition(x[kept], values[kept], significance=significance, seed=run.config.seed, signal=key)
            )
            for key, values in signals.items()
        }
        stages.append({"stage": stage, "train": trained, "signals": found})
    return {"axis": "log10(1 + time)", "significance": significance, "stages": stages}


def _thinned(x: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return which points to keep so that neighbours are not closer than `SPACING`; the last one stays."""
    kept = [0]
    for i in range(1, len(x)):
        if x[i] - x[kept[-1]] >= SPACING or i == len(x) - 1:
            kept.append(i)
    return np.array(kept)


def _crossings(times: NDArray[np.float64], values: NDArray[np.float64]) -> dict[str, float | None]:
    """Return when a tenth, half and nine tenths of a stage's whole change were done first; None without a change.

    Full-batch training has no noise, so these times describe the curve whether the change was abrupt or not.
    """
    change = values[-1] - values[0]
    names = {"tenth": 0.1, "half": 0.5, "nine_tenths": 0.9}
    if not np.isfinite(change) or change == 0:
        return dict.fromkeys(names)
    done = (values - values[0]) / change
    found: dict[str, float | None] = {}
    for name, part in names.items():
        i = int(np.argmax(done >= part))
        within = (part - done[i - 1]) / (done[i] - done[i - 1])
        found[name] = float(times[i - 1] + within * (times[i] - times[i - 1]))
    return found


def _in_time(found: Transition) -> dict[str, Any]:
    def time(x: float | None) -> float | None:
        return None if x is None else 10**x - 1

    return {
        "detected": found.detected,
        "verdict": found.verdict,
        "reason": found.reason,
        "onset": time(found.onset),
        "midpoint": time(found.midpoint),
        "end": time(found.end),
        "interval": None if found.interval is None else [time(bound) for bound in found.interval],
        "p_value": found.p_value if math.isfinite(found.p_value) else None,
        "n_rows": found.n_snapshots,
    }
