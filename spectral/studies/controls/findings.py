"""Counts over the runs of each kind: alarms, detections, errors, delays, leads; and what should hold of them."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest

from spectral.detection.lead_lag import FAMILIES
from spectral.detection.scoring import wilson
from spectral.detection.tables import calibration_id
from spectral.storage.run_directory import plain_json
from spectral.studies.controls.outcomes import Outcome
from spectral.studies.controls.plan import KINDS, NO_INDUCTION, NOTHING
from spectral.version import __version__

MARGIN = 0.03  # of the run, between the midpoint and the half crossing of the accuracy
PAIRS = tuple((first, second) for i, first in enumerate(FAMILIES) for second in FAMILIES[i + 1 :])

_RATES = ("detected", "alarmed", "spectrum", "any_signal", "within")

Answer = Literal["yes", "no", "not measured"]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A count of runs with its 95 % Wilson interval."""

    hits: int
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the rate."""
        return wilson(self.hits, self.n)


@dataclass(frozen=True, kw_only=True)
class Lead:
    """How much later one family moved than another, over the runs in which both moved abruptly.

    Attributes:
        first, second: families.
        n: runs.
        median: of the differences in steps; negative: the first family led. NaN for no run.
        p_value: sign test, two-sided; runs with no difference are left out; 1 for no run.
    """

    first: str
    second: str
    n: int
    median: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All runs of one kind.

    Attributes:
        model: the kind.
        seeds: of its runs.
        detected: runs with a transition that two families agree on.
        alarmed: runs in which one was confirmed during training.
        spectrum: runs that the spectrum alone would call abrupt.
        any_signal: runs with at least one abrupt signal.
        within: detected runs whose midpoint lies within `MARGIN` of the half crossing, among those that have one.
        mechanisms: label -> runs.
        errors: (midpoint - half crossing) / run, by run; NaN where undefined.
        delays: (first alarm - midpoint) / run, by run; NaN where undefined.
        leads: for each pair of families.
    """

    model: str
    seeds: tuple[int, ...]
    detected: Rate
    alarmed: Rate
    spectrum: Rate
    any_signal: Rate
    within: Rate
    mechanisms: dict[str, int]
    errors: tuple[float, ...]
    delays: tuple[float, ...]
    leads: tuple[Lead, ...]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One statement that should hold, and whether it does.

    Attributes:
        text: the statement.
        rate: runs in which it holds.
        runs: names of those in which it does not.
    """

    text: str
    rate: Rate
    runs: tuple[str, ...]

    @property
    def answer(self) -> Answer:
        """Whether it holds in every run."""
        if self.rate.n == 0:
            return "not measured"
        return "yes" if self.rate.hits == self.rate.n else "no"


def summarise(outcomes: Mapping[str, Sequence[Outcome]]) -> list[Summary]:
    """Return one summary per kind that has runs, in the order of `KINDS`."""
    return [_summary(model, outcomes[model]) for model in KINDS if outcomes.get(model)]


def judge(outcomes: Mapping[str, Sequence[Outcome]]) -> list[Finding]:
    """Return every statement of the study with the runs for and against it."""

    def of(models: Sequence[str]) -> list[Outcome]:
        return [one for model in models for one in outcomes.get(model, ())]

    matched, nothing, positional = of(["matched"]), of(NOTHING), of(["fixed_period"])
    return [
        _finding("Where induction heads can form, a transition is detected", matched, lambda o: o.verdict.detected),
        _finding(
            f"Its midpoint lies within {MARGIN:.0%} of the run of the step where the accuracy crosses halfway",
            [one for one in matched if one.half_crossing is not None],
            lambda o: o.error is not None and abs(o.error) <= MARGIN,
        ),
        _finding("What formed there is labelled induction", matched, lambda o: o.mechanism.label == "induction"),
        _finding("Where nothing can be learned, no transition is detected", nothing, lambda o: not o.verdict.detected),
        _finding("Where nothing can be learned, none is confirmed during training", nothing, lambda o: not o.alarms),
        _finding(
            "Where nothing can be learned, the spectrum alone raises no alarm",
            [one for one in nothing if one.spectrum is not None],
            lambda o: o.spectrum is not None and not o.spectrum.detected,
        ),
        _finding(
            "Where no induction head can form, nothing is labelled induction",
            of(NO_INDUCTION),
            lambda o: o.mechanism.label != "induction",
        ),
        _finding("With one block length a transition is detected", positional, lambda o: o.verdict.detected),
        _finding(
            "With one block length what formed is labelled positional",
            positional,
            lambda o: o.mechanism.label == "positional",
        ),
    ]


def describe(findings: Sequence[Finding], summaries: Sequence[Summary]) -> str:
    """Return the findings, one a line, and one line per kind of run with its midpoint errors and delays."""
    lines = [
        f"{finding.answer:<13}{f'{finding.rate.hits} of {finding.rate.n}' if finding.rate.n else '':<10}{finding.text}"
        + (f"; not in {', '.join(finding.runs)}" if finding.runs else "")
        for finding in findings
    ]
    for one in summaries:
        labels = ", ".join(f"{n} {label}" for label, n in one.mechanisms.items())
        line = f"{one.model}: {one.detected.hits} of {one.detected.n} detected; formed: {labels}"
        if not all(map(math.isnan, one.errors)):
            line += f"; midpoint error {_spread(one.errors)} of the run"
        if not all(map(math.isnan, one.delays)):
            line += f"; announced {_spread(one.delays)} of the run after the midpoint"
        lines.append(line)
    return "\n".join(lines)


def to_json(
    findings: Sequence[Finding], summaries: Sequence[Summary], outcomes: Mapping[str, Sequence[Outcome]], scale: float
) -> dict[str, Any]:
    """Return everything found in JSON's terms; undefined numbers are null."""
    found: dict[str, Any] = plain_json(
        {
            "spectral_version": __version__,
            "calibration_id": calibration_id(),
            "scale": scale,
            "findings": [
                {"text": one.text, "answer": one.answer, **_rate(one.rate), "not_in": list(one.runs)}
                for one in findings
            ],
            "kinds": [
                {
                    "kind": one.model,
                    "role": KINDS[one.model].role,
                    "seeds": list(one.seeds),
                    "mechanisms": one.mechanisms,
                    "midpoint_errors": list(one.errors),
                    "delays": list(one.delays),
                    "leads": [vars(lead) for lead in one.leads],
                }
                | {
                    name: _rate(getattr(one, name))
                    for name in ("detected", "alarmed", "spectrum", "any_signal", "within")
                }
                for one in summaries
            ],
            "runs": [_run(one) for model in KINDS for one in outcomes.get(model, ())],
        }
    )
    return found


def _summary(model: str, runs: Sequence[Outcome]) -> Summary:
    def rate(holds: Callable[[Outcome], bool]) -> Rate:
        return Rate(hits=sum(map(holds, runs)), n=len(runs))

    dated = [one for one in runs if one.verdict.detected and one.half_crossing is not None]
    judged = [one for one in runs if one.spectrum is not None]
    return Summary(
        model=model,
        seeds=tuple(one.seed for one in runs),
        detected=rate(lambda o: o.verdict.detected),
        alarmed=rate(lambda o: bool(o.alarms)),
        spectrum=Rate(hits=sum(o.spectrum is not None and o.spectrum.detected for o in judged), n=len(judged)),
        any_signal=rate(lambda o: bool(o.abrupt_signals)),
        within=Rate(hits=sum(abs(o.error or 0.0) <= MARGIN for o in dated), n=len(dated)),
        mechanisms=dict(Counter(one.mechanism.label for one in runs).most_common()),
        errors=tuple(math.nan if one.error is None else one.error for one in runs),
        delays=tuple(_delay(one) for one in runs),
        leads=tuple(_lead(runs, first, second) for first, second in PAIRS),
    )


def _finding(text: str, runs: Sequence[Outcome], holds: Callable[[Outcome], bool]) -> Finding:
    failing = tuple(one.path.name for one in runs if not holds(one))
    return Finding(text=text, rate=Rate(hits=len(runs) - len(failing), n=len(runs)), runs=failing)


def _delay(outcome: Outcome) -> float:
    if outcome.verdict.midpoint is None or not outcome.alarms:
        return math.nan
    return (outcome.alarms[0].step - outcome.verdict.midpoint) / outcome.num_steps


def _lead(runs: Sequence[Outcome], first: str, second: str) -> Lead:
    found = [one.lead(first, second) for one in runs if one.verdict.detected]
    differences = [difference for difference in found if difference is not None]
    signs = [difference for difference in differences if difference != 0]
    return Lead(
        first=first,
        second=second,
        n=len(differences),
        median=float(np.median(differences)) if differences else math.nan,
        p_value=float(binomtest(sum(d < 0 for d in signs), len(signs)).pvalue) if signs else 1.0,
    )


def _spread(values: Sequence[float]) -> str:
    found = [value for value in values if not math.isnan(value)]
    return f"{np.median(found):+.1%} (median; {min(found):+.1%} to {max(found):+.1%})"


def _rate(rate: Rate) -> dict[str, Any]:
    return {"hits": rate.hits, "n": rate.n, "wilson_95": list(rate.interval)}


def _run(one: Outcome) -> dict[str, Any]:
    return {
        "run": f"runs/{one.path.name}",
        "kind": one.model,
        "seed": one.seed,
        "num_steps": one.num_steps,
        "verdict": one.verdict.verdict,
        "reason": one.verdict.reason,
        "midpoint": one.verdict.midpoint,
        "interval": one.verdict.interval,
        "p_value": one.verdict.p_value,
        "half_crossing": one.half_crossing,
        "error": one.error,
        "abrupt_signals": one.abrupt_signals,
        "spectrum_alone": None if one.spectrum is None else one.spectrum.verdict,
        "alarms": [vars(alarm) for alarm in one.alarms],
        "mechanism": one.mechanism.to_dict(),
        "leads": {f"{first} - {second}": one.lead(first, second) for first, second in PAIRS},
        "final_accuracy": float(one.accuracy[-1]),
        "largest_eigenvalue_range": [
            float(np.nanmin(one.largest_eigenvalue)),
            float(np.nanmax(one.largest_eigenvalue)),
        ],
    }
