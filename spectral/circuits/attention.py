"""What attention patterns show: how much mass each head puts where a known kind of head would put it.

Every score takes a causal pattern `[batch, *heads, query, key]` whose rows sum to 1, with any number of head axes
(`[batch, head, ...]`, `[batch, layer, head, ...]`), and returns a `MetricResult` over the head axes. Positions are
0-based and include the BOS token if there is one; which token is BOS need not be known. Query 0 never enters, since it
can only attend to itself.

Chance is what uniform attention over the visible keys gives: c = n / (q + 1) for n target keys of query q. The
corrected score averages (s - c) / (1 - c) over queries: 0 for uniform attention, 1 for a perfect head, -c / (1 - c)
where the targets get nothing. c = 1 cannot occur: from query 1 on at least one visible key is no target.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from spectral.errors import NonFiniteError
from spectral.result import MetricResult


def induction_score(
    pattern: Float[Tensor, "batch *heads position position"], tokens: Int[Tensor, "batch position"]
) -> MetricResult:
    """Tell how far each head attends to what followed earlier occurrences of the current token (prefix matching).

    Formula: mean over queries q with a target of the sum of A[q, k] over targets k in 1..q with x[k-1] = x[q].
    Shape:   [*heads].
    Range:   [0, 1]; the sum over targets, not their mean, so a perfect head has 1 for any number of copies.
    Chance:  mean of n(q) / (q + 1); about ln 2 / L on two copies of a block of L distinct tokens. Ceiling 1.
    Null:    no closed form; compare with the untrained model on the same tokens.
    Holds:   for any positions, with or without BOS. A positional head at a fixed offset also scores 1 on blocks of one
             fixed length: see `content_match_fraction`.
    Source:  Olsson et al. 2022, "In-context Learning and Induction Heads" (prefix matching score).
    """
    return _induction(_prepare(pattern, tokens))


def previous_token_score(
    pattern: Float[Tensor, "batch *heads position position"], tokens: Int[Tensor, "batch position"] | None = None
) -> MetricResult:
    """Tell how far each head attends to the token just before.

    Formula: mean over q >= 1 of A[q, q-1].
    Shape:   [*heads].
    Range:   [0, 1]; chance mean of 1 / (q + 1), q >= 1 (0.159 for 16 positions, 0.042 for 100); ceiling 1.
    Holds:   for any tokens; `tokens` is not used.
    Source:  Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
    """
    return _previous_token(_prepare(pattern, tokens))


def duplicate_token_score(
    pattern: Float[Tensor, "batch *heads position position"], tokens: Int[Tensor, "batch position"]
) -> MetricResult:
    """Tell how far each head attends to earlier occurrences of the current token itself.

    Formula: mean over queries q with a target of the sum of A[q, k] over k < q with x[k] = x[q].
    Shape:   [*heads].
    Range:   [0, 1]; chance mean of n(q) / (q + 1); ceiling 1.
    Source:  Wang et al. 2022, "Interpretability in the Wild" (duplicate-token heads).
    """
    return _duplicate_token(_prepare(pattern, tokens))


def first_token_score(
    pattern: Float[Tensor, "batch *heads position position"], tokens: Int[Tensor, "batch position"] | None = None
) -> MetricResult:
    """Tell how far each head rests on the first position (attention sink).

    Formula: mean over q >= 1 of A[q, 0].
    Shape:   [*heads].
    Range:   [0, 1]; chance mean of 1 / (q + 1), q >= 1; ceiling 1.
    Holds:   for any tokens, with or without BOS; `tokens` is not used.
    Source:  Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks".
    """
    return _first_token(_prepare(pattern, tokens))


def current_token_score(
    pattern: Float[Tensor, "batch *heads position position"], tokens: Int[Tensor, "batch position"] | None = None
) -> MetricResult:
    """Tell how far each head attends to its own position.

    Formula: mean over q >= 1 of A[q, q].
    Shape:   [*heads].
    Range:   [0, 1]; chance mean of 1 / (q + 1), q >= 1; ceiling 1.
    Holds:   for any tokens; `tokens` is not used.
    Source:  Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
    """
    return _current_token(_prepare(pattern, tokens))


def attention_entropy(
    pattern: Float[Tensor, "batch *heads position position"], tokens: Int[Tensor, "batch position"] | None = None
) -> MetricResult:
    """Tell how spread out each head's attention is, whatever it looks at.

    Formula: mean over q >= 1 of H(A[q]) / ln(q + 1), with 0 ln 0 = 0.
    Shape:   [*heads].
    Range:   [0, 1]; chance (uniform attention) 1. `ceiling` is 0, the value of a one-hot row, so `corrected` is
             1 - value: 0 for uniform and 1 for one-hot attention.
    Holds:   for any tokens; `tokens` is not used. The normaliser is ln(q + 1), the most a row can have; with ln(T)
             early rows would look focused.
    Source:  Shannon entropy of the attention row, as in Zhai et al. 2023, "Stabilizing Transformer Training by
             Preventing Attention Entropy Collapse", normalised per row.
    """
    return _entropy(_prepare(pattern, tokens))


def attention_scores(
    pattern: Float[Tensor, "batch *heads position position"], tokens: Int[Tensor, "batch position"]
) -> dict[str, MetricResult]:
    """Return every score of this module at once, keyed by the name of its function; masks are built only once."""
    prepared = _prepare(pattern, tokens)
    return {
        "induction_score": _induction(prepared),
        "previous_token_score": _previous_token(prepared),
        "duplicate_token_score": _duplicate_token(prepared),
        "first_token_score": _first_token(prepared),
        "current_token_score": _current_token(prepared),
        "attention_entropy": _entropy(prepared),
    }


def content_match_fraction(
    corrected_random_gap: Float[Tensor, "*heads"],
    corrected_repeat: Float[Tensor, "*heads"],
    *,
    min_repeat: float = 0.2,
) -> Float64[Tensor, "*heads"]:
    """Tell how much of an induction score comes from matching content rather than from a fixed offset.

    Formula: clip(corrected_random_gap / corrected_repeat, 0, 1); NaN where corrected_repeat < min_repeat.
    Shape:   [*heads].
    Range:   [0, 1]; 1 = the score survives unseen gaps (induction), 0 = a positional head.
    Null:    0 for a head that attends at a fixed offset.

    Args:
        corrected_random_gap: corrected `induction_score` on sequences whose gap differs from every training period.
        corrected_repeat: corrected `induction_score` on plain repeats.
        min_repeat: scores on plain repeats below this are too small for a ratio to mean anything.
    """
    gap, repeat = corrected_random_gap.detach().double(), corrected_repeat.detach().double()
    # why the negated comparison: it is also true for NaN
    return (gap / repeat).clamp(0, 1).masked_fill(~(repeat >= min_repeat), torch.nan)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Prepared:
    """A checked pattern with one head axis, and the token-equality mask (None when no tokens were given)."""

    pattern: Float[Tensor, "batch head position position"]
    heads: torch.Size
    same_token: Bool[Tensor, "batch position position"] | None


def _prepare(pattern: Tensor, tokens: Tensor | None) -> _Prepared:
    if pattern.ndim < 3 or pattern.shape[-1] != pattern.shape[-2]:
        msg = f"pattern of shape {tuple(pattern.shape)}; give [batch, *heads, query, key] with as many keys as queries"
        raise ValueError(msg)
    batch, n_positions = pattern.shape[0], pattern.shape[-1]
    if tokens is not None and tuple(tokens.shape) != (batch, n_positions):
        msg = f"tokens of shape {tuple(tokens.shape)} beside pattern of shape {tuple(pattern.shape)}; "
        msg += f"give tokens [{batch}, {n_positions}], BOS included"
        raise ValueError(msg)
    heads = pattern.shape[1:-2]
    eps = torch.finfo(pattern.dtype).eps
    flat = pattern.detach().reshape(batch, heads.numel(), n_positions, n_positions)
    if eps > 1e-6:  # 16-bit patterns: sums of their entries need more digits than they have
        flat = flat.float()
    visible = (flat * torch.ones(n_positions, n_positions, dtype=flat.dtype, device=flat.device).tril()).sum(-1)
    if not bool(visible.isfinite().all()):
        msg = "the attention pattern holds NaN or infinite entries; the weights or scores diverged before this point"
        raise NonFiniteError(msg)
    # why this size: 1e-4 is far above float32 softmax rounding and far below any masking or dropout mistake
    if bool(((visible - 1).abs() > max(1e-4, 4 * eps)).any()):
        worst = float(visible.flatten()[(visible - 1).abs().argmax()])
        msg = f"a pattern row has mass {worst:.4g} on its visible keys, not 1; "
        msg += "give causal softmax patterns recorded in eval mode (no attention dropout)"
        raise ValueError(msg)
    same = None if tokens is None else tokens[:, :, None] == tokens[:, None, :]
    return _Prepared(pattern=flat, heads=heads, same_token=same)


def _induction(prepared: _Prepared) -> MetricResult:
    same = _need_tokens(prepared)
    # Target (q, k) when x[q] = x[k-1]: the equality mask moved one key to the right, so key 0 is never a target and
    # key q is one when two equal tokens are adjacent.
    targets = torch.zeros_like(same)
    targets[:, :, 1:] = same[:, :, :-1]
    return _target_mass(prepared, targets.tril(), "induction/sum_targets/v1")


def _duplicate_token(prepared: _Prepared) -> MetricResult:
    return _target_mass(prepared, _need_tokens(prepared).tril(-1), "duplicate_token/sum_targets/v1")


def _previous_token(prepared: _Prepared) -> MetricResult:
    return _single_target(prepared, prepared.pattern.diagonal(-1, -2, -1), "previous_token/mean_mass/v1")


def _first_token(prepared: _Prepared) -> MetricResult:
    return _single_target(prepared, prepared.pattern[..., 1:, 0], "first_token/mean_mass/v1")


def _current_token(prepared: _Prepared) -> MetricResult:
    return _single_target(prepared, prepared.pattern.diagonal(0, -2, -1)[..., 1:], "current_token/mean_mass/v1")


def _entropy(prepared: _Prepared) -> MetricResult:
    entropy = torch.special.entr(prepared.pattern[..., 1:, :]).sum(-1).double()
    n_visible = torch.arange(2, prepared.pattern.shape[-1] + 1, dtype=torch.float64, device=entropy.device)
    value = (entropy / n_visible.log()).mean((0, 2))  # the mean of nothing is NaN
    value = value.clamp(0, 1).reshape(prepared.heads)  # rounding of float32 rows only
    n_pairs = entropy.shape[0] * entropy.shape[2]
    return MetricResult(
        value=value,
        corrected=1 - value,
        chance=1.0,
        ceiling=0.0,
        n_pairs=n_pairs,
        definition="attention_entropy/row_normalised/v1",
    )


def _need_tokens(prepared: _Prepared) -> Tensor:
    if prepared.same_token is None:
        msg = "tokens=None, but this score compares tokens; give tokens [batch, position]"
        raise ValueError(msg)
    return prepared.same_token


def _target_mass(
    prepared: _Prepared, targets: Bool[Tensor, "batch position position"], definition: str
) -> MetricResult:
    # why a product and not indexing: its cost does not depend on how often tokens recur
    mass = (prepared.pattern * targets[:, None].to(prepared.pattern.dtype)).sum(-1)
    return _mean_over_queries(
        mass, targets.sum(-1), torch.arange(targets.shape[-1], device=mass.device), prepared, definition
    )


def _single_target(prepared: _Prepared, mass: Float[Tensor, "batch head query"], definition: str) -> MetricResult:
    query = torch.arange(1, mass.shape[-1] + 1, device=mass.device)
    n_targets = torch.ones(mass.shape[0], mass.shape[-1], dtype=torch.int64, device=mass.device)
    return _mean_over_queries(mass, n_targets, query, prepared, definition)


def _mean_over_queries(
    mass: Float[Tensor, "batch head query"],
    n_targets: Int[Tensor, "batch query"],
    query: Int[Tensor, " query"],
    prepared: _Prepared,
    definition: str,
) -> MetricResult:
    """Average the target mass and its chance-corrected form over the queries that have a target."""
    # why float64 only from here: a row has few terms, the mean over rows has many
    eligible = (n_targets > 0).double()
    n_pairs = int(eligible.sum())
    chance = n_targets.double() / (query + 1)
    mass = mass.double()
    # why divided last: hits of exactly 1 then average to exactly 1; and no pairs give 0 / 0 = NaN
    value = torch.einsum("bhq,bq->h", mass, eligible) / n_pairs
    corrected = torch.einsum("bhq,bq->h", mass - chance[:, None], eligible / (1 - chance)) / n_pairs
    return MetricResult(
        # why clamped: float32 rows sum to 1 only up to rounding, and a score above 1 is no score
        value=value.clamp(0, 1).reshape(prepared.heads),
        corrected=corrected.clamp(max=1).reshape(prepared.heads),
        chance=float((chance * eligible).sum() / n_pairs),
        ceiling=1.0,
        n_pairs=n_pairs,
        definition=definition,
    )
