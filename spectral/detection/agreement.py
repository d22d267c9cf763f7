"""Transitions that several families of signals share: which signals agree, and when the run as a whole changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral.detection.statistic import Array
from spectral.detection.transition import Interval, Transition, midpoint_bounds
from spectral.randomness import numpy_generator

AGREEMENT = 0.05  # of the run: largest distance of agreeing midpoints
REPLICATES = 2000


@dataclass(frozen=True, kw_only=True)
class RunTransition:
    """One transition that the families agree on; times in optimizer steps, meanings as in `RunVerdict`.

    Attributes:
        onset: weighted median of the agreeing signals; likewise midpoint, end and abruptness.
        midpoint: 50 % point.
        end: 90 % point.
        interval: 90 % interval of the midpoint.
        abruptness: peak slope over even slope.
        p_value: Holm-corrected, of the weaker of the two strongest families.
        agreeing_signals: family -> names.
        family_order: families by midpoint, earliest first: (family, midpoint, (low, high)).
    """

    onset: float
    midpoint: float
    end: float
    interval: Interval
    abruptness: float
    p_value: float
    agreeing_signals: dict[str, list[str]]
    family_order: list[tuple[str, float, Interval]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        order = [
            {"family": family, "midpoint": midpoint, "interval": list(interval)}
            for family, midpoint, interval in self.family_order
        ]
        return vars(self) | {"interval": list(self.interval), "family_order": order}


def agreements(
    strong: Mapping[str, Transition],
    families: Mapping[str, str],
    p: Mapping[str, float],
    window: float,
    significance: float,
    needed: int,
    seed: int,
) -> list[RunTransition]:
    """Return the transitions of a run: the largest agreement, then the largest among what is left."""
    items = [(name, signal) for name, signal in strong.items()]
    for name, signal in strong.items():
        # Bonferroni over the signals: these are tests beyond those that Holm's correction counted.
        items += [(name, other) for other in signal.further if len(p) * other.p_value <= significance]
    agreed = []
    while items:
        chosen = _largest_agreement(items, families, p, window, needed)
        if not chosen:
            break
        members = [items[i] for i in chosen]
        agreed.append(_run_transition(members, families, p, needed, seed))
        center = agreed[-1].midpoint
        items = [
            item
            for i, item in enumerate(items)
            if i not in chosen and abs(float(item[1].midpoint or 0.0) - center) > window
        ]
    return agreed


def _run_transition(
    items: list[tuple[str, Transition]], families: Mapping[str, str], p: Mapping[str, float], needed: int, seed: int
) -> RunTransition:
    members = [signal for _, signal in items]
    weights = np.array([1 / _sd(signal) ** 2 for signal in members])

    def consensus(name: str) -> float:
        return weighted_median(np.array([getattr(signal, name) for signal in members]), weights)

    names = list(dict.fromkeys(name for name, _ in items))
    order = []
    for family in dict.fromkeys(families[name] for name in names):
        mine = [i for i, (name, _) in enumerate(items) if families[name] == family]
        own = [members[i] for i in mine]
        middle = weighted_median(np.array([signal.midpoint for signal in own], dtype=np.float64), weights[mine])
        order.append((family, middle, _joint_interval(own, weights[mine], seed)))
    return RunTransition(
        onset=consensus("onset"),
        midpoint=consensus("midpoint"),
        end=consensus("end"),
        interval=_joint_interval(members, weights, seed),
        abruptness=consensus("abruptness"),
        p_value=second_family_p({name: p[name] for name in names}, families, needed),
        agreeing_signals=_by_family(names, families),
        family_order=sorted(order, key=lambda entry: entry[1]),
    )


def weighted_median(values: Array, weights: Array) -> float:
    """Return the value at which half of the weight is reached; the mean of two when exactly half lies below."""
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    cumulative = np.cumsum(weights) / np.sum(weights)
    i = int(np.searchsorted(cumulative, 0.5 - 1e-12))
    if abs(cumulative[i] - 0.5) < 1e-9 and i + 1 < len(values):
        return float((values[i] + values[i + 1]) / 2)
    return float(values[i])


def _largest_agreement(
    items: list[tuple[str, Transition]],
    families: Mapping[str, str],
    p: Mapping[str, float],
    window: float,
    needed: int,
) -> list[int]:
    """Return the items inside the window of midpoints that holds most families, then signals, then evidence."""
    best: list[int] = []
    rank = (needed - 1, 0, 0.0)
    midpoints = [float(signal.midpoint or 0.0) for _, signal in items]
    for start in midpoints:
        near = [i for i, m in enumerate(midpoints) if 0 <= m - start <= window * (1 + 1e-12)]
        n_families = len({families[items[i][0]] for i in near})
        this = (n_families, len(near), -sum(p[items[i][0]] for i in near))
        if n_families >= needed and this > rank:
            best, rank = near, this
    return best


def second_family_p(p: Mapping[str, float], families: Mapping[str, str], needed: int) -> float:
    """Return the best p-value of the `needed`-th strongest family, 1 when there are fewer families."""
    best: dict[str, float] = {}
    for name, value in p.items():
        best[families[name]] = min(best.get(families[name], 1.0), value)
    ordered = sorted(best.values())
    return ordered[needed - 1] if len(ordered) >= needed else 1.0


def _sd(signal: Transition) -> float:
    """Return the midpoint's standard error in steps, at least what half a snapshot spacing allows."""
    low, high = midpoint_bounds(signal)
    return max((high - low) / 2 / 1.645, (signal.resolution_steps or 0.0) / 2 / 1.645, 1e-12)


def _joint_interval(members: list[Transition], weights: Array, seed: int) -> Interval:
    rng = numpy_generator(seed, "detector/consensus")
    k = len(members)
    midpoints = np.array([signal.midpoint for signal in members], dtype=np.float64)
    low = midpoints - np.array([midpoint_bounds(signal)[0] for signal in members])
    high = np.array([midpoint_bounds(signal)[1] for signal in members]) - midpoints
    z = rng.standard_normal((REPLICATES, k))
    draws = midpoints + np.where(z < 0, low, high) / 1.645 * z
    chosen = rng.integers(0, k, (REPLICATES, k))
    medians = [weighted_median(row[pick], weights[pick]) for row, pick in zip(draws, chosen, strict=True)]
    center = weighted_median(midpoints, weights)
    half = min(float(signal.resolution_steps or 0.0) for signal in members) / 2
    bounds = np.quantile(medians, [0.05, 0.95])
    return min(float(bounds[0]), center - half), max(float(bounds[1]), center + half)


def _by_family(names: list[str], families: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(families[name], []).append(name)
    return grouped
