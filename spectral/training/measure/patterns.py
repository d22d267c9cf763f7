"""What the attention patterns of one pass say about every head."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from spectral.circuits import attention_scores, content_match_fraction, successor_attention
from spectral.data import ProbeBatch
from spectral.result import MetricResult
from spectral.training.measure.values import corrected_of, value_of
from spectral.training.row import Row

SCORES = (
    "induction_score",
    "previous_token_score",
    "duplicate_token_score",
    "first_token_score",
    "current_token_score",
    "attention_entropy",
)
STORED = tuple(name for name in SCORES if name != "current_token_score")
STORED_CORRECTED = ("induction_score", "previous_token_score", "duplicate_token_score")
SUCCESSORS = ("right_successor_attention", "competing_successor_attention")


def pattern_results(
    kind: str, pattern: Float[Tensor, "batch *heads position position"], probe: ProbeBatch
) -> dict[str, MetricResult]:
    """Return the scores of one kind of probe, keyed as in the results file without the prefix `probe_`.

    Only predictable queries count where other tokens recur by chance; on `repeat` all that recur do so in its blocks,
    and on `no_repeat` nothing is predictable.
    """
    queries = None if kind in ("repeat", "no_repeat") else probe.predictable
    found = attention_scores(pattern, probe.tokens, queries=queries)
    if kind == "repeated_tokens":
        split = successor_attention(pattern, probe.tokens, probe.ambiguous, probe.competitor)
        found |= {f"{name}_attention": result for name, result in split.items()}
    return found


def pattern_row(found: Mapping[str, Mapping[str, MetricResult]]) -> Row:
    """Return what goes into `/circuits`, given the results of every kind of probe."""
    row: Row = {}
    for name in SCORES:
        results = [found[kind][name] for kind in found]
        row[f"circuits/probe_{name}"] = torch.stack([result.value.cpu() for result in results]).numpy()
        row[f"circuits/probe_{name}_corrected"] = torch.stack([result.corrected.cpu() for result in results]).numpy()
    repeat = found["repeat"]
    row |= {f"circuits/{name}": value_of(repeat[name]) for name in STORED}
    row |= {f"circuits/{name}_corrected": corrected_of(repeat[name]) for name in STORED_CORRECTED}
    if "random_gap" in found:
        shuffled = found.get("shuffled_segments")
        row["circuits/content_match_fraction"] = content_match_fraction(
            found["random_gap"]["induction_score"].corrected,
            repeat["induction_score"].corrected,
            corrected_shuffled=None if shuffled is None else shuffled["induction_score"].corrected,
        )
    if "repeated_tokens" in found:
        row |= {f"circuits/{name}": value_of(found["repeated_tokens"][name]) for name in SUCCESSORS}
    return row


def uniform_pattern(probe: ProbeBatch) -> Float[Tensor, "batch 1 position position"]:
    """Return the pattern of one head that attends to all visible keys alike, whose scores are the chance levels."""
    length = probe.tokens.shape[1]
    pattern = torch.ones(length, length).tril()
    return (pattern / pattern.sum(1, keepdim=True)).expand(len(probe), 1, length, length)
