"""From signals to a run: a run has a transition when two families of signals changed abruptly together.

One signal alone can be fooled by noise that wanders like a random walk; behaviour, circuits and spectrum rarely are at
the same moment. Several signals of one family count once. A single family can be asked for; then one signal decides,
and the verdict says so.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spectral.detection.agreement import AGREEMENT, RunTransition, agreements, second_family_p, weighted_median
from spectral.detection.lead_lag import FAMILIES, LeadLag, lead_lag_table
from spectral.detection.multiple import holm
from spectral.detection.tables import calibration_id
from spectral.detection.transition import Curve, Interval, Transition, detect_transition

__all__ = ["AGREEMENT", "FAMILIES", "LeadLag", "RunTransition", "RunVerdict", "detect_run", "holm", "weighted_median"]

SCHEMA_VERSION = "1.0"
MIN_FAMILIES = 2

RUN_REASONS = ("one_family", "families_disagree", "no_signals")
LOG_AXIS_SURROGATES = 199


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
        rule: "two_families", or "one_family" when only one was selected: then a single signal decides.
        transitions: every transition of the run, the one with most agreement first; it fills the fields above.
        log_axis_changes: name -> (verdict, verdict on a logarithmic step axis), where the two differ.
        calibration_id: names the tables behind the numbers.
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
    rule: str = "two_families"
    transitions: list[RunTransition] = field(default_factory=list)
    log_axis_changes: dict[str, tuple[str, str]] = field(default_factory=dict)
    calibration_id: str = field(default_factory=calibration_id)

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
                "rule": self.rule,
                "calibration_id": self.calibration_id,
            },
            "transitions": [one.to_dict() for one in self.transitions],
            "signals": {
                name: signal.to_dict() | {"family": self.families[name], "holm_p": self.holm_p[name]}
                for name, signal in self.signals.items()
            },
            "lead_lag": [vars(pair) | {"interval": list(pair.interval)} for pair in self.lead_lag],
            "log_axis_changes": {name: list(both) for name, both in self.log_axis_changes.items()},
            "bumps": {
                name: [vars(bump) for bump in signal.bumps] for name, signal in self.signals.items() if signal.bumps
            },
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
    select_families: Collection[str] | None = None,
    select_signals: Collection[str] | None = None,
    log_axis: bool = True,
) -> RunVerdict:
    """Judge every signal of a run, then the run.

    Args:
        steps: [n] snapshot steps, shared by all signals.
        signals: name -> [n] values.
        families: name -> family, for every signal; usually "behaviour", "circuits" or "spectrum".
        significance: level alpha of the Holm-corrected p-values.
        seed: fixes all random draws.
        log_signals: names to be analysed as logarithms.
        n_surrogates: curves behind each p-value; None takes max(999, K / alpha), as the smallest possible p-value
            must survive the correction over K signals.
        select_families: judge these families only; None takes all.
        select_signals: judge these signals only; None takes all.
        log_axis: also judge each signal on the axis log(1 + steps since the first / median spacing).

    Raises:
        ValueError: for a signal without family, an unknown log signal, family or selected signal, or curves that
            `detect_transition` refuses.

    Rule: abrupt when at least two families hold an abrupt signal with Holm-corrected p <= alpha and all their
    midpoints lie within 5 % of the run. If `select_families` names a single family, one such signal suffices, and the
    run's false-alarm rate is that of single signals.
    """
    signals = _selected(signals, families, select_families, select_signals)
    needed = 1 if select_families is not None and len(set(select_families)) == 1 else MIN_FAMILIES
    missing = sorted(set(signals) - set(families))
    if missing:
        msg = f"no family given for {missing}; add for example families[{missing[0]!r}] = 'behaviour'"
        raise ValueError(msg)
    unknown = sorted(set(log_signals) - set(families) - set(signals))
    if unknown:
        msg = f"log_signals names {unknown}, which are not among the signals {sorted(signals)}; fix the name"
        raise ValueError(msg)
    n_signals = len(signals)
    surrogates = max(999, math.ceil(n_signals / significance)) if n_surrogates is None else n_surrogates
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
    transitions = agreements(strong, belongs, corrected, AGREEMENT * span, significance, needed, seed)
    changes = _log_axis_changes(steps, signals, found, log_signals, significance, seed) if log_axis else {}
    shared: dict[str, Any] = {
        "signals": found,
        "families": belongs,
        "holm_p": corrected,
        "lead_lag": lead_lag_table(abrupt, belongs),
        "false_alarm_level": significance,
        "n_snapshots": max((signal.n_snapshots for signal in found.values()), default=0),
        "rule": "two_families" if needed > 1 else "one_family",
        "transitions": transitions,
        "log_axis_changes": changes,
    }
    if not transitions:
        verdict, reason = _why_not(found, abrupt, strong, belongs)
        return RunVerdict(
            detected=False,
            verdict=verdict,
            reason=reason,
            onset=None,
            midpoint=None,
            end=None,
            interval=None,
            p_value=second_family_p(corrected, belongs, needed),
            abruptness=None,
            agreeing_signals={},
            **shared,
        )
    first = transitions[0]
    return RunVerdict(
        detected=True,
        verdict="abrupt",
        reason=None,
        onset=first.onset,
        midpoint=first.midpoint,
        end=first.end,
        interval=first.interval,
        p_value=first.p_value,
        abruptness=first.abruptness,
        agreeing_signals=first.agreeing_signals,
        **shared,
    )


def _selected(
    signals: Mapping[str, Curve],
    families: Mapping[str, str],
    wanted_families: Collection[str] | None,
    wanted_signals: Collection[str] | None,
) -> dict[str, Curve]:
    for kind, wanted, known in (
        ("select_families", wanted_families, set(families.values())),
        ("select_signals", wanted_signals, set(signals)),
    ):
        unknown = sorted(set(wanted or ()) - known)
        if unknown:
            msg = f"{kind} names {unknown}, but this run has {sorted(known)}; choose among those"
            raise ValueError(msg)
    return {
        name: values
        for name, values in signals.items()
        if (wanted_signals is None or name in wanted_signals)
        and (wanted_families is None or families.get(name) in wanted_families)
    }


def _log_axis_changes(
    steps: Curve,
    signals: Mapping[str, Curve],
    found: Mapping[str, Transition],
    log_signals: Collection[str],
    significance: float,
    seed: int,
) -> dict[str, tuple[str, str]]:
    x = np.asarray(steps, dtype=np.float64)
    if len(x) < 2:
        return {}
    axis = np.log1p((x - x[0]) / float(np.median(np.diff(x))))
    changes = {}
    for name, values in signals.items():
        again = detect_transition(
            axis,
            values,
            significance=significance,
            n_surrogates=max(LOG_AXIS_SURROGATES, math.ceil(1 / significance)),
            seed=seed,
            signal=name,
            log=name in log_signals,
            several=False,
            bumps=False,
        )
        if again.verdict != found[name].verdict:
            changes[name] = (found[name].verdict, again.verdict)
    return changes


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
