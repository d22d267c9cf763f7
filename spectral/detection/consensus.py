"""From signals to a run: a run has a transition when two families of signals changed abruptly together.

One signal alone can be fooled by noise that wanders like a random walk; behaviour, circuits and spectrum rarely are at
the same moment. Several signals of one family count once.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral.detection.statistic import Array
from spectral.detection.transition import Curve, Interval, Transition, detect_transition
from spectral.randomness import numpy_generator

SCHEMA_VERSION = "1.0"
FAMILIES = ("spectrum", "circuits", "behaviour")  # order of lead/lag differences: first minus second
AGREEMENT = 0.05
MIN_FAMILIES = 2
REPLICATES = 2000

RUN_REASONS = ("one_family", "families_disagree", "no_signals")


@dataclass(frozen=True, kw_only=True)
class LeadLag:
    """How much later one signal changed than another of a different family.

    Attributes:
        first: name of the signal whose midpoint is taken.
        second: name of the signal whose midpoint is subtracted.
        first_family: family of `first`.
        second_family: family of `second`.
        difference: midpoint(first) - midpoint(second) in steps; positive: `first` came later.
        interval: nominal 90 % interval; independent errors assumed, so noise shared by both makes it too wide.
        resolved: whether the interval excludes 0. No correction for the number of pairs.
    """

    first: str
    second: str
    first_family: str
    second_family: str
    difference: float
    interval: Interval
    resolved: bool


@dataclass(frozen=True, kw_only=True)
class RunVerdict:
    """What a whole run did; times in optimizer steps.

    Attributes:
        detected: verdict is "abrupt".
        verdict: "abrupt", "gradual", "none" or "inconclusive".
        reason: why not, when not: a reason of a signal, or one_family (only one family changed abruptly),
            families_disagree (two did, more than 5 % of the run apart), no_signals; None when detected.
        onset: weighted median of the agreeing signals' onsets, None when not detected; likewise the next fields.
        midpoint: of their midpoints, with weights 1 / variance, no signal weighing more than its resolution allows.
        end: of their ends.
        interval: 90 % interval of the midpoint, from resampling signals and drawing each from its own interval.
        p_value: Holm-corrected, of the weaker of the two strongest families: both had to be significant.
        abruptness: weighted median of the agreeing signals.
        agreeing_signals: family -> names of the agreeing signals.
        signals: name -> its own verdict.
        families: name -> family.
        holm_p: name -> Holm-corrected p-value over all tested signals.
        lead_lag: one entry per pair of abrupt signals of different families.
        false_alarm_level: bound on the chance that any signal of a run without transition is significant (the run
            needs two, so its own rate is lower).
        n_snapshots: of the longest signal.
    """

    detected: bool
    verdict: str
    reason: str | None
    onset: float | None
    midpoint: float | None
    end: float | None
    interval: Interval | None
    p_value: float
    abruptness: float | None
    agreeing_signals: dict[str, list[str]]
    signals: dict[str, Transition]
    families: dict[str, str]
    holm_p: dict[str, float]
    lead_lag: list[LeadLag]
    false_alarm_level: float
    n_snapshots: int

    def to_dict(self) -> dict[str, Any]:
        """Return the content of transitions.json: plain JSON types, None for what is unknown, never NaN."""
        return {
            "schema_version": SCHEMA_VERSION,
            "consensus": {
                "detected": self.detected,
                "verdict": self.verdict,
                "reason": self.reason,
                "onset": self.onset,
                "midpoint": self.midpoint,
                "end": self.end,
                "interval": None if self.interval is None else list(self.interval),
                "p_value": self.p_value,
                "abruptness": self.abruptness,
                "agreeing_signals": {family: list(names) for family, names in self.agreeing_signals.items()},
                "false_alarm_level": self.false_alarm_level,
                "n_snapshots": self.n_snapshots,
            },
            "signals": {
                name: signal.to_dict() | {"family": self.families[name], "holm_p": self.holm_p[name]}
                for name, signal in self.signals.items()
            },
            "lead_lag": [vars(pair) | {"interval": list(pair.interval)} for pair in self.lead_lag],
            "false_alarm_level": self.false_alarm_level,
        }


def detect_run(
    steps: Curve,
    signals: Mapping[str, Curve],
    families: Mapping[str, str],
    *,
    significance: float = 0.01,
    seed: int = 0,
    log_signals: Collection[str] = (),
    n_surrogates: int | None = None,
) -> RunVerdict:
    """Judge every signal of a run, then the run.

    Args:
        steps: [n] snapshot steps, shared by all signals.
        signals: name -> [n] values.
        families: name -> family, for every signal; usually "behaviour", "circuits" or "spectrum".
        significance: level alpha of the Holm-corrected p-values.
        seed: fixes all random draws.
        log_signals: names to be analysed as logarithms.
        n_surrogates: curves behind each p-value; None takes max(999, 2 K / alpha), as the smallest possible p-value
            must survive the correction over K signals.

    Raises:
        ValueError: for a signal without family, an unknown log signal, or curves that `detect_transition` refuses.

    Rule: abrupt when at least two families hold an abrupt signal with Holm-corrected p <= alpha and all their
    midpoints lie within 5 % of the run.
    """
    missing = sorted(set(signals) - set(families))
    if missing:
        msg = f"no family given for {missing}; add for example families[{missing[0]!r}] = 'behaviour'"
        raise ValueError(msg)
    unknown = sorted(set(log_signals) - set(signals))
    if unknown:
        msg = f"log_signals names {unknown}, which are not among the signals {sorted(signals)}; fix the name"
        raise ValueError(msg)
    n_signals = len(signals)
    surrogates = max(999, math.ceil(2 * n_signals / significance)) if n_surrogates is None else n_surrogates
    found = {
        name: detect_transition(
            steps,
            values,
            significance=significance,
            n_surrogates=surrogates,
            seed=seed,
            signal=name,
            log=name in log_signals,
        )
        for name, values in signals.items()
    }
    corrected = holm({name: signal.p_value for name, signal in found.items()})
    belongs = {name: families[name] for name in found}
    span = float(np.ptp(np.asarray(steps, dtype=np.float64))) if len(steps) else 0.0
    abrupt = {name: signal for name, signal in found.items() if signal.detected}
    strong = {name: signal for name, signal in abrupt.items() if corrected[name] <= significance}
    agreeing = _largest_agreement(strong, belongs, corrected, AGREEMENT * span)
    shared: dict[str, Any] = {
        "signals": found,
        "families": belongs,
        "holm_p": corrected,
        "lead_lag": _lead_lag(abrupt, belongs),
        "false_alarm_level": significance,
        "n_snapshots": max((signal.n_snapshots for signal in found.values()), default=0),
    }
    if not agreeing:
        verdict, reason = _why_not(found, abrupt, strong, belongs)
        return RunVerdict(
            detected=False,
            verdict=verdict,
            reason=reason,
            onset=None,
            midpoint=None,
            end=None,
            interval=None,
            p_value=_second_family_p(corrected, belongs),
            abruptness=None,
            agreeing_signals={},
            **shared,
        )
    members = [strong[name] for name in agreeing]
    weights = np.array([1 / _sd(signal) ** 2 for signal in members])

    def consensus(field: str) -> float:
        return weighted_median(np.array([getattr(signal, field) for signal in members]), weights)

    return RunVerdict(
        detected=True,
        verdict="abrupt",
        reason=None,
        onset=consensus("onset"),
        midpoint=consensus("midpoint"),
        end=consensus("end"),
        interval=_joint_interval(members, weights, seed),
        p_value=_second_family_p({name: corrected[name] for name in agreeing}, belongs),
        abruptness=consensus("abruptness"),
        agreeing_signals=_by_family(agreeing, belongs),
        **shared,
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's step-down corrected p-values, in [0, 1].

    Formula: with p sorted ascending, max over j <= i of min(1, (K - j + 1) p_j). Source: Holm 1979.
    """
    corrected, running = {}, 0.0
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for i, name in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - i) * p_values[name]))
        corrected[name] = running
    return {name: corrected[name] for name in p_values}


def weighted_median(values: Array, weights: Array) -> float:
    """Return the value at which half of the weight is reached; the mean of two when exactly half lies below."""
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    cumulative = np.cumsum(weights) / np.sum(weights)
    i = int(np.searchsorted(cumulative, 0.5 - 1e-12))
    if abs(cumulative[i] - 0.5) < 1e-9 and i + 1 < len(values):
        return float((values[i] + values[i + 1]) / 2)
    return float(values[i])


def _sd(signal: Transition) -> float:
    """Return the midpoint's standard error in steps, at least what half a snapshot spacing allows."""
    low, high = _bounds(signal)
    return max((high - low) / 2 / 1.645, (signal.resolution_steps or 0.0) / 2 / 1.645, 1e-12)


def _bounds(signal: Transition) -> Interval:
    if signal.interval is None:
        msg = "an abrupt signal carries no interval; rebuild the transition with detect_transition"
        raise ValueError(msg)
    return signal.interval


def _largest_agreement(
    strong: Mapping[str, Transition], families: Mapping[str, str], p: Mapping[str, float], window: float
) -> list[str]:
    """Return the signals inside the window of midpoints that holds most families, then signals, then evidence."""
    best: list[str] = []
    rank = (MIN_FAMILIES - 1, 0, 0.0)
    midpoints = {name: float(signal.midpoint or 0.0) for name, signal in strong.items()}
    for start in midpoints.values():
        near = [name for name, m in midpoints.items() if 0 <= m - start <= window * (1 + 1e-12)]
        n_families = len({families[name] for name in near})
        this = (n_families, len(near), -sum(p[name] for name in near))
        if n_families >= MIN_FAMILIES and this > rank:
            best, rank = near, this
    return best


def _second_family_p(p: Mapping[str, float], families: Mapping[str, str]) -> float:
    best: dict[str, float] = {}
    for name, value in p.items():
        best[families[name]] = min(best.get(families[name], 1.0), value)
    ordered = sorted(best.values())
    return ordered[1] if len(ordered) > 1 else 1.0


def _why_not(
    found: Mapping[str, Transition],
    abrupt: Mapping[str, Transition],
    strong: Mapping[str, Transition],
    families: Mapping[str, str],
) -> tuple[str, str]:
    if not found:
        return "inconclusive", "no_signals"
    if len({families[name] for name in strong}) >= MIN_FAMILIES:
        return "inconclusive", "families_disagree"
    if strong:
        return "inconclusive", "one_family"
    if abrupt:
        return "inconclusive", "not_significant"
    # No abrupt signal: the run is what at least half of its families are, the more committed verdict first.
    total = len(set(families.values()))
    for verdict in ("inconclusive", "gradual"):
        mine = [name for name, signal in found.items() if signal.verdict == verdict]
        holding = len({families[name] for name in mine})
        undecided = verdict == "inconclusive" and holding < total
        if mine and not undecided and 2 * holding >= total:
            reasons = [str(found[name].reason) for name in mine]
            return verdict, max(reasons, key=reasons.count)
    reasons = [str(signal.reason) for signal in found.values()]
    return "none", max(reasons, key=reasons.count)


def _joint_interval(members: list[Transition], weights: Array, seed: int) -> Interval:
    rng = numpy_generator(seed, "detector/consensus")
    k = len(members)
    midpoints = np.array([signal.midpoint for signal in members], dtype=np.float64)
    low = midpoints - np.array([_bounds(signal)[0] for signal in members])
    high = np.array([_bounds(signal)[1] for signal in members]) - midpoints
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


def _lead_lag(abrupt: Mapping[str, Transition], families: Mapping[str, str]) -> list[LeadLag]:
    def place(name: str) -> int:
        family = families[name]
        return FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)

    names = sorted(abrupt, key=place)
    table = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if families[first] == families[second]:
                continue
            a, b = abrupt[first], abrupt[second]
            difference = float(a.midpoint or 0.0) - float(b.midpoint or 0.0)
            (a_low, a_high), (b_low, b_high) = _bounds(a), _bounds(b)
            m_a, m_b = float(a.midpoint or 0.0), float(b.midpoint or 0.0)
            interval = (
                difference - math.hypot(m_a - a_low, b_high - m_b),
                difference + math.hypot(a_high - m_a, m_b - b_low),
            )
            table.append(
                LeadLag(
                    first=first,
                    second=second,
                    first_family=families[first],
                    second_family=families[second],
                    difference=difference,
                    interval=interval,
                    resolved=interval[0] > 0 or interval[1] < 0,
                )
            )
    return table
