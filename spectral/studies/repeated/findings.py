"""Whether each claim holds in the runs that were made: conditions evaluated seed by seed, and a verdict over them."""

import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from spectral.storage.run_directory import plain_json
from spectral.studies.repeated.claims import CLAIMS, Claim, Condition
from spectral.studies.repeated.measurements import Evidence, Measurements
from spectral.version import __version__

Verdict = Literal["yes", "no", "partly", "undecided", "not measured"]

VERDICTS: dict[Verdict, str] = {
    "yes": "every condition holds in every seed",
    "no": "what the claim presupposes is true, but none of its other conditions holds, in any seed",
    "partly": "anything between",
    "undecided": "what the claim presupposes is true in no seed",
    "not measured": "there is no finished run",
}
"""What a verdict means."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One claim in one run.

    Attributes:
        seed: of the run.
        step: at which its model was measured last.
        values: (condition, measured value), in the order of the claim.
    """

    seed: int
    step: int
    values: tuple[tuple[Condition, float], ...]

    @property
    def applies(self) -> bool:
        """Whether everything is true that the claim presupposes."""
        return all(condition.holds(value) for condition, value in self.values if condition.premise)

    @property
    def holds(self) -> bool:
        """Whether the claim holds in this run."""
        return all(condition.holds(value) for condition, value in self.values)

    @property
    def fails(self) -> bool:
        """Whether none of the judged conditions holds."""
        return not any(condition.holds(value) for condition, value in self.values if condition.judged)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One claim in all runs of its model."""

    claim: Claim
    judgements: tuple[Judgement, ...]

    @property
    def n_seeds(self) -> int:
        """Number of runs."""
        return len(self.judgements)

    @property
    def n_holding(self) -> int:
        """Number of runs in which the claim holds."""
        return sum(judgement.holds for judgement in self.judgements)

    @property
    def verdict(self) -> Verdict:
        """The answer; see `VERDICTS`."""
        if not self.judgements:
            return "not measured"
        if self.n_holding == self.n_seeds:
            return "yes"
        judged = [judgement for judgement in self.judgements if judgement.applies]
        if not judged:
            return "undecided"
        return "no" if all(judgement.fails for judgement in judged) else "partly"

    def by_condition(self) -> list[tuple[Condition, list[float]]]:
        """Return each condition with its values by seed."""
        return [
            (condition, [judgement.values[i][1] for judgement in self.judgements])
            for i, condition in enumerate(self.claim.conditions)
        ]


def judge(evidence: Mapping[str, Sequence[Evidence]], claims: Sequence[Claim] = CLAIMS) -> list[Finding]:
    """Evaluate claims on the finished runs of each model.

    Args:
        evidence: runs by model; models may be missing.
        claims: in the order wanted.
    """
    return [
        Finding(
            claim=claim,
            judgements=tuple(
                Judgement(
                    seed=one.final.seed,
                    step=one.final.step,
                    values=tuple((condition, float(condition.measure(one))) for condition in claim.conditions),
                )
                for one in evidence.get(claim.model, ())
            ),
        )
        for claim in claims
    ]


def threshold(condition: Condition) -> str:
    """Return the range of a condition in words."""
    if condition.at_least is None and condition.at_most is None:
        return "not judged"
    parts = [] if condition.at_least is None else [f"at least {condition.at_least:.3g}"]
    parts += [] if condition.at_most is None else [f"at most {condition.at_most:.3g}"]
    return ("presupposed: " if condition.premise else "") + " and ".join(parts)


def to_json(
    findings: Sequence[Finding], evidence: Mapping[str, Sequence[Evidence]], *, scale: float, n_sequences: int
) -> dict[str, Any]:
    """Return everything measured and found in JSON's terms; undefined numbers are null.

    Numbers keep six digits. Attention maps, and how far heads look at earlier checkpoints, are left out: they are in
    the figures, and a checkpoint gives them again.
    """
    return {
        "spectral_version": __version__,
        "torch_version": str(torch.__version__),
        "python_version": platform.python_version(),
        "scale": scale,
        "n_sequences": n_sequences,
        "findings": [_finding(finding) for finding in findings],
        "runs": [
            {
                "run": f"runs/{one.path.name}",
                "final": _measurements(one.final),
                "earlier": [_measurements(earlier, "offset_profile") for earlier in one.earlier],
            }
            for runs in evidence.values()
            for one in runs
        ],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "claim": finding.claim.name,
        "text": finding.claim.text,
        "model": finding.claim.model,
        "verdict": finding.verdict,
        "n_seeds": finding.n_seeds,
        "n_seeds_holding": finding.n_holding,
        "runs": [
            {
                "seed": judgement.seed,
                "step": judgement.step,
                "conditions": [
                    {
                        "text": condition.text,
                        "value": _short(value),
                        "at_least": condition.at_least,
                        "at_most": condition.at_most,
                        "premise": condition.premise,
                        "judged": condition.judged,
                        "holds": condition.holds(value),
                    }
                    for condition, value in judgement.values
                ],
            }
            for judgement in finding.judgements
        ],
    }


def _measurements(one: Measurements, *left_out: str) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(one) if field.name not in ("maps", *left_out)]
    fields = {name: getattr(one, name) for name in names}
    fields["doubled"] = {name: dataclasses.asdict(value) for name, value in one.doubled.items()}
    found: dict[str, Any] = _short(fields)
    return found


def _short(value: Any) -> Any:
    """Return a value in JSON's terms with six digits: more are noise, and would make up most of the file."""
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_short(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else plain_json(value)
