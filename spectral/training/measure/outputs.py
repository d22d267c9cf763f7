"""What the logits of one pass say about behaviour."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from torch import Tensor

from spectral.behaviour import (
    accuracy_by_copy,
    aligned_loss,
    ambiguity_scores,
    behaviour_scores,
    content_match_accuracy,
    icl_slope,
    induction_accuracy,
    reference_distances,
)
from spectral.data import ProbeBatch
from spectral.result import MetricResult
from spectral.training.measure.plan import ProbePlan
from spectral.training.measure.values import value_of
from spectral.training.row import Row

AMBIGUITY = ("ambiguous_accuracy", "unambiguous_accuracy", "successor_probability", "competitor_probability")


def behaviour_results(logits: Float[Tensor, "batch position vocab"], plan: ProbePlan) -> dict[str, MetricResult]:
    """Return the scores on the behaviour probe, keyed as in the results file."""
    probe, (t1, t2) = plan.behaviour, plan.icl_positions
    return behaviour_scores(logits, probe.tokens, probe.predictable, t1=t1, t2=t2, boundary_mask=probe.boundary)


def behaviour_row(logits: Float[Tensor, "batch position vocab"], plan: ProbePlan) -> Row:
    """Return what goes into `/behaviour` from a pass over the behaviour probe."""
    row: Row = {f"behaviour/{name}": value_of(result) for name, result in behaviour_results(logits, plan).items()}
    row["behaviour/loss"] = float(np.mean(row["behaviour/loss_by_position"]))
    row["behaviour/icl_slope"] = float(icl_slope(logits, plan.behaviour.tokens))
    return row | _reference_row(logits, plan)


def probe_results(
    kind: str, logits: Float[Tensor, "batch position vocab"], probe: ProbeBatch, plan: ProbePlan
) -> dict[str, MetricResult]:
    """Return the scores of one kind of circuit probe, keyed as in the results file."""
    found = {"induction_accuracy_probe": induction_accuracy(logits, probe.tokens, probe.predictable)}
    if kind == "repeat" and plan.n_copies:
        found["accuracy_by_copy"] = accuracy_by_copy(
            logits, probe.tokens, probe.predictable, probe.copy_index, n_copies=plan.n_copies
        )
    before, after = plan.aligned
    if kind == "repeat" and before + after:
        assert probe.start is not None
        assert probe.offset is not None
        start = probe.start + probe.offset
        found["aligned_loss"] = aligned_loss(logits, probe.tokens, start, before=before, after=after)
    if kind == "repeated_tokens":
        found |= ambiguity_scores(logits, probe.tokens, probe.predictable, probe.ambiguous, probe.competitor)
    return found


def probe_row(found: Mapping[str, Mapping[str, MetricResult]]) -> Row:
    """Return what goes into `/behaviour`, given the results of every kind of circuit probe."""
    accuracies = {kind: results["induction_accuracy_probe"] for kind, results in found.items()}
    row: Row = {
        "behaviour/induction_accuracy_probe": np.array([float(accuracy) for accuracy in accuracies.values()]),
        **{
            f"behaviour/{name}": value_of(result)
            for results in found.values()
            for name, result in results.items()
            if name != "induction_accuracy_probe"
        },
    }
    if "random_gap" in accuracies:
        row["behaviour/content_match_accuracy"] = content_match_accuracy(accuracies["random_gap"], accuracies["repeat"])
    return row


def _reference_row(logits: Tensor, plan: ProbePlan) -> Row:
    if not plan.references:
        return {}
    n = len(next(iter(plan.references.values())))
    found = reference_distances(logits[:n], plan.behaviour.tokens[:n], plan.references).values()
    return {
        "behaviour/excess_loss": np.array([float(distance.excess_loss.mean()) for distance in found]),
        "behaviour/reference_kl": np.stack([distance.kl.cpu().numpy() for distance in found]),
    }
