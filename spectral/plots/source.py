"""What figures take from a run: stored values, yardsticks and the choice of steps and heads. Missing data raises."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from spectral.errors import ResultsFileError
from spectral.storage import Run

Pair = tuple[int, int, int, int]
Head = tuple[int, int]


class MissingDataError(ResultsFileError):
    """A figure needs a dataset that the run does not hold; `dataset` names it and `reason` says why."""

    def __init__(self, run: Run, dataset: str, reason: str) -> None:
        self.dataset = dataset
        self.reason = reason
        super().__init__(f"{run.results_path} has no {dataset}: {reason}")


def values(run: Run, name: str) -> np.ndarray:
    """Return a dataset as float64 with NaN for everything that is not finite.

    Raises:
        MissingDataError: the run does not store it, has no rows yet, or never measured it.
    """
    return measured(run, name, stored(run, name))


def stored(run: Run, name: str) -> np.ndarray:
    """Return a dataset in its own type, unchecked for NaN: for datasets so large that only parts are drawn.

    Raises:
        MissingDataError: the run does not store it, or has no rows yet.
    """
    try:
        found = run.read(name)
    except KeyError:
        raise MissingDataError(run, name, "this run does not store it") from None
    if len(found) == 0:
        raise MissingDataError(run, name, _why_empty(run, name))
    return found


def measured(run: Run, name: str, found: np.ndarray) -> np.ndarray:
    """Return values of a dataset as float64 with NaN for everything that is not finite.

    Raises:
        MissingDataError: all of them are NaN.
    """
    found = np.asarray(found, dtype=np.float64)
    found = np.where(np.isfinite(found), found, np.nan)
    if np.all(np.isnan(found)):
        raise MissingDataError(run, name, "none of its values was measured")
    return found


def values_or_none(run: Run, name: str) -> np.ndarray | None:
    """Return `values`, or None where they would raise: for parts that a figure can do without."""
    try:
        return values(run, name)
    except MissingDataError:
        return None


def yardstick(run: Run, name: str, key: str) -> float | None:
    """Return one stored number beside a dataset (`chance`, `ceiling`, `null_sd`), or None where there is none."""
    try:
        found = run.attributes(name).get(key)
    except KeyError:
        return None
    number = np.asarray(np.nan if found is None else found)
    if number.size != 1 or number.dtype.kind not in "fiu" or not np.isfinite(number).all():
        return None
    return float(number.reshape(()))


def listed(run: Run, name: str, key: str, n: int) -> np.ndarray:
    """Return n stored numbers beside a dataset, one per entry of its axis: a single one for all, NaN where unknown."""
    try:
        found = run.attributes(name).get(key)
    except KeyError:
        found = None
    numbers = np.asarray(np.nan if found is None else found, dtype=np.float64)
    return np.broadcast_to(numbers, (n,)) if numbers.size in (1, n) else np.full(n, np.nan)


def setting(run: Run, name: str) -> Any:
    """Return one setting of the run, or None in runs of other programs that do not have it."""
    return run.config.get(name)


def trained_periods(run: Run) -> tuple[int, int] | None:
    """Return the shortest and longest block that training shows, or None where it has no blocks."""
    low, high = setting(run, "min_period"), setting(run, "max_period")
    if setting(run, "data") != "repeated" or not isinstance(low, int) or not isinstance(high, int):
        return None
    return low, high


def nearest(steps: np.ndarray, wanted: float) -> int:
    """Return the index of the snapshot nearest to a step."""
    return int(np.argmin(np.abs(steps - wanted)))


def stages(steps: np.ndarray, onset: float | None, midpoint: float | None, end: float | None) -> list[int]:
    """Return up to five snapshots: two before the transition, its midpoint, two after; evenly spaced without one.

    Before are the onset and one width ahead of it, after are the end and one width behind it; where snapshots are too
    sparse for that, the next ones outwards.
    """
    n = len(steps)
    if onset is None or midpoint is None or end is None:
        return sorted({round(i) for i in np.linspace(0, n - 1, min(5, n))})
    width = end - onset
    middle = nearest(steps, midpoint)
    chosen = [middle]
    for wanted in (onset, onset - width):
        i = min(nearest(steps, wanted), chosen[0] - 1)
        if i >= 0:
            chosen.insert(0, i)
    for wanted in (end, end + width):
        i = max(nearest(steps, wanted), chosen[-1] + 1)
        if i < n:
            chosen.append(i)
    return chosen


def highest(scores: np.ndarray) -> np.ndarray:
    """Return the largest value over the first axis, -inf where nothing was measured."""
    return np.asarray(np.where(np.isnan(scores), -np.inf, scores).max(axis=0))


def best_heads(scores: np.ndarray, n: int) -> list[Head]:
    """Return the n heads that score highest at any step, best first; heads never measured are left out.

    Args:
        scores: [step, layer, head].
        n: at most so many.
    """
    return [(layer, head) for layer, head in _best(scores, n)]


def best_pairs(scores: np.ndarray, n: int) -> list[Pair]:
    """Return the n (layer_from, head_from, layer_to, head_to) that score highest at any step, best first."""
    return [(a, b, c, d) for a, b, c, d in _best(scores, n)]


def head_name(layer: int, head: int) -> str:
    """Return the name of a head, such as L0H2."""
    return f"L{layer}H{head}"


def pair_name(pair: Pair) -> str:
    """Return the name of a composition, such as L0H2→L1H3."""
    return f"{head_name(*pair[:2])}→{head_name(*pair[2:])}"


def _best(scores: np.ndarray, n: int) -> Sequence[tuple[int, ...]]:
    peak = highest(scores)
    order = np.argsort(-peak, axis=None, kind="stable")[:n]
    indices = [np.unravel_index(int(i), peak.shape) for i in order if np.isfinite(peak.flat[i])]
    return [tuple(int(i) for i in index) for index in indices]


def _why_empty(run: Run, name: str) -> str:
    if name.startswith("train/"):
        return "no row of the training log was committed yet"
    if name.startswith("causal/") and setting(run, "causal") == "never":
        return "measuring causes was switched off (causal never)"
    if setting(run, "eigen_interval") == 0:
        return "measuring was switched off (eigen_interval 0)"
    return "no snapshot was committed yet"
