"""What a model's outputs show: losses, accuracies and in-context learning, each beside its chance level and ceiling.

Logits are `[batch, position, vocab]`; logits at position t predict token t + 1, so the last position predicts nothing
and is never read, and every per-prediction tensor is `[batch, position - 1]`. Which predictions a rule makes possible
is given by the data as a boolean mask `predictable`; nothing here infers it. Losses are in nats, all results float64.

Two kinds of yardstick lie here too: loss levels of ideal predictors (`uniform_loss`, `context_copy_loss`,
`perfect_induction_loss`) and n-gram predictors (`unigram_log_probabilities`, `bigram_log_probabilities`), whose output
has the shape of logits and can be passed to every function of this module.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from spectral.errors import NonFiniteError
from spectral.result import MetricResult


def per_token_loss(
    logits: Float[Tensor, "batch position vocab"], tokens: Int[Tensor, "batch position"]
) -> Float64[Tensor, "batch position-1"]:
    """Return -log softmax(logits[b, t])[tokens[b, t + 1]] in nats; ln(vocab) for uniform logits, 0 for a sure hit.

    Raises:
        NonFiniteError: a logit is NaN or infinite.
        ValueError: shapes disagree or a token to be predicted lies outside the vocabulary.
    """
    return _predict(logits, tokens).loss


def loss_by_position(
    logits: Float[Tensor, "batch position vocab"], tokens: Int[Tensor, "batch position"]
) -> Float64[Tensor, " position-1"]:
    """Return the per-token loss averaged over sequences, in nats; entry t is the loss of predicting token t + 1.

    Range [0, inf); chance ln(vocab). With periods that differ between sequences position and period are confounded:
    compare at equal distance from the start of the second copy.
    """
    return per_token_loss(logits, tokens).mean(0)


def induction_accuracy(
    logits: Float[Tensor, "batch position vocab"],
    tokens: Int[Tensor, "batch position"],
    predictable: Bool[Tensor, "batch position-1"],
) -> MetricResult:
    """Tell how often the model's first choice is right where the context determines the next token.

    Formula: mean over predictable (b, t) of [argmax logits[b, t] = tokens[b, t + 1]]; exact ties count 1 / ties.
    Range:   [0, 1]; chance 1 / vocab; ceiling 1 with distinct tokens inside the block. With i.i.d. tokens a head that
             matches one token reaches E[1 / m^2], m = 1 + Binomial(L - 1, 1 / vocab): 0.946 at L = 20, vocab 256.
    Null:    `null_sd` is that of independent uniform guesses, sqrt(p (1 - p) / n) with p = 1 / vocab.
    Source:  Olsson et al. 2022, "In-context Learning and Induction Heads" (copying of repeated random tokens).
    """
    return _accuracy(_predict(logits, tokens), predictable, "induction_accuracy/argmax_ties_shared/v1")


def random_accuracy(
    logits: Float[Tensor, "batch position vocab"],
    tokens: Int[Tensor, "batch position"],
    predictable: Bool[Tensor, "batch position-1"],
) -> MetricResult:
    """Tell how often the model's first choice is right where nothing determines the next token: the control.

    Formula: as `induction_accuracy`, over the predictions that are not predictable.
    Range:   [0, 1]; chance 1 / vocab for i.i.d. tokens, 1 / (unused tokens) for a model that knows tokens are distinct.
             The boundary before a repeat is among these positions: a model that knows the period scores there.
    Null:    `null_sd` as for `induction_accuracy`.
    """
    return _accuracy(_predict(logits, tokens), ~predictable, "random_accuracy/argmax_ties_shared/v1")


def boundary_accuracy(
    logits: Float[Tensor, "batch position vocab"],
    tokens: Int[Tensor, "batch position"],
    boundary_mask: Bool[Tensor, "batch position-1"],
) -> MetricResult:
    """Tell how often the first token of a repeat is guessed: an alarm for shortcuts, as that needs the period.

    Formula: as `induction_accuracy`, over the predictions marked in `boundary_mask` (t = L - 1, or t = L with BOS).
    Range:   [0, 1]; chance 1 / vocab; about 1 / L for true induction; near 1 for a model that has memorised the period.
    Null:    `null_sd` as for `induction_accuracy`.
    """
    return _accuracy(_predict(logits, tokens), boundary_mask, "boundary_accuracy/argmax_ties_shared/v1")


def induction_loss(
    logits: Float[Tensor, "batch position vocab"],
    tokens: Int[Tensor, "batch position"],
    predictable: Bool[Tensor, "batch position-1"],
) -> MetricResult:
    """Return the mean loss where the context determines the next token.

    Formula: mean of `per_token_loss` over predictable positions, in nats.
    Range:   [0, inf); chance ln(vocab) (uniform logits); ceiling 0, so `corrected` is 1 - value / ln(vocab) and is
             negative for a model that is confidently wrong.
    """
    return _mean_loss(_predict(logits, tokens), predictable)


def in_context_accuracy(
    logits: Float[Tensor, "batch position vocab"],
    tokens: Int[Tensor, "batch position"],
    predictable: Bool[Tensor, "batch position-1"],
    *,
    bos_token: int | None = None,
) -> MetricResult:
    """Tell how often the model picks the right one among the tokens it has seen.

    Formula: mean over predictable (b, t) of [argmax over v in C(b, t) of logits[b, t, v] = tokens[b, t + 1]], C(b, t) =
             distinct tokens of tokens[b, :t + 1] other than BOS; exact ties count 1 / ties.
    Range:   [0, 1]; chance mean of 1 / |C|; ceiling 1. Positions with |C| = 1 enter `value` but not `corrected`.
    Source:  the plateau "knows it is a context token, not which one" of Singh et al. 2024, "What needs to go right for
             an induction head?".
    """
    prediction = _predict(logits, tokens)
    return _in_context_accuracy(prediction, _seen_tokens(prediction, tokens, bos_token), predictable)


def in_context_probability(
    logits: Float[Tensor, "batch position vocab"],
    tokens: Int[Tensor, "batch position"],
    predictable: Bool[Tensor, "batch position-1"],
    *,
    bos_token: int | None = None,
) -> MetricResult:
    """Tell how much probability the model puts on tokens it has seen, right or wrong.

    Formula: mean over predictable (b, t) of the softmax mass on C(b, t), as in `in_context_accuracy`.
    Range:   [0, 1]; chance mean of |C| / vocab; ceiling 1. Near 1 together with `in_context_accuracy` near 1 / |C| and
             a loss near ln |C|: the model knows that the next token is one of the context, not which.
    Source:  as `in_context_accuracy`.
    """
    prediction = _predict(logits, tokens)
    return _in_context_probability(prediction, _seen_tokens(prediction, tokens, bos_token), predictable)


def icl_score(
    logits: Float[Tensor, "batch position vocab"],
    tokens: Int[Tensor, "batch position"],
    *,
    t1: int,
    t2: int,
    window: int = 1,
) -> MetricResult:
    """Tell how much the loss falls along the context (in-context learning score).

    Formula: mean loss at predictions t2 - window + 1 .. t2, minus the same at t1; nats.
    Range:   (-inf, inf); negative = the loss falls; chance 0. `ceiling` is -ln(vocab), the fall from uniform guessing
             to certainty (a reference and no bound: a model can be worse than uniform at t1), so `corrected` is
             -value / ln(vocab).
    Holds:   as a statement about these two places only. Anything that makes late tokens easier lowers it, so by itself
             it is no evidence of in-context learning by induction.
    Source:  Olsson et al. 2022, "In-context Learning and Induction Heads": the 500th minus the 50th token. On short
             repeats take t1 inside the first block and t2 = positions - 2.

    Raises:
        ValueError: unless window - 1 <= t1 < t2 <= positions - 2 and window >= 1.
    """
    return _icl(_predict(logits, tokens), t1, t2, window)


def behaviour_scores(
    logits: Float[Tensor, "batch position vocab"],
    tokens: Int[Tensor, "batch position"],
    predictable: Bool[Tensor, "batch position-1"],
    *,
    t1: int,
    t2: int,
    window: int = 1,
    boundary_mask: Bool[Tensor, "batch position-1"] | None = None,
    bos_token: int | None = None,
) -> dict[str, MetricResult]:
    """Return every metric of this module at once, keyed by the name of its function; one log softmax for all.

    `loss_by_position` has a value per position; the others are scalar. Without `boundary_mask` the entry
    `boundary_accuracy` is NaN with n_pairs 0.
    """
    prediction = _predict(logits, tokens)
    seen = _seen_tokens(prediction, tokens, bos_token)
    boundary = torch.zeros_like(predictable) if boundary_mask is None else boundary_mask
    return {
        "induction_accuracy": _accuracy(prediction, predictable, "induction_accuracy/argmax_ties_shared/v1"),
        "random_accuracy": _accuracy(prediction, ~predictable, "random_accuracy/argmax_ties_shared/v1"),
        "boundary_accuracy": _accuracy(prediction, boundary, "boundary_accuracy/argmax_ties_shared/v1"),
        "induction_loss": _mean_loss(prediction, predictable),
        "in_context_accuracy": _in_context_accuracy(prediction, seen, predictable),
        "in_context_probability": _in_context_probability(prediction, seen, predictable),
        "icl_score": _icl(prediction, t1, t2, window),
        "loss_by_position": _loss_by_position(prediction),
    }


def uniform_loss(vocab_size: int) -> float:
    """Return ln(vocab_size), the loss in nats of guessing uniformly."""
    return math.log(vocab_size)


def context_copy_loss(n_context_tokens: int) -> float:
    """Return ln(n_context_tokens), the loss in nats of guessing uniformly among the distinct tokens of the context."""
    return math.log(n_context_tokens)


def perfect_induction_loss(
    *, vocab_size: int, seq_length: int, periods: Sequence[int], knows_periods: bool = False, bos: bool = False
) -> float:
    """Return the whole-sequence mean loss in nats of perfect induction on repeated blocks of random tokens.

    Formula: mean(L) ln V / (T - 1), or [(mean(L) - 1) ln V + ln N] / (T - 1) if `knows_periods`: the first block costs
    ln V per token, and so does the first token of the repeat unless the period is known or is one of N. The latter is
    the Bayes level for L uniform over `periods`. Chance tokens that recur inside a block are neglected.

    Args:
        vocab_size: V.
        seq_length: T, BOS included.
        periods: the block lengths L, equally likely; each at most T - 1 (T - 2 with BOS).
        knows_periods: whether the predictor knows the list of periods.
        bos: whether the sequence begins with BOS, so that the first token of the block is predicted too.
    """
    if not periods or min(periods) < 1 or max(periods) > seq_length - 1 - bos:
        msg = f"periods {list(periods)} with seq_length={seq_length}; give periods from 1 to {seq_length - 1 - bos}"
        raise ValueError(msg)
    n_unknown = sum(periods) / len(periods) + bos
    total = n_unknown * math.log(vocab_size)
    if knows_periods:
        total += math.log(len(periods)) - math.log(vocab_size)
    return total / (seq_length - 1)


def unigram_log_probabilities(
    tokens: Int[Tensor, "batch position"], *, n_states: int, alpha: float = 1.0
) -> Float64[Tensor, "batch position n_states"]:
    """Return the log predictions of an observer who counts tokens in the context.

    Formula: (n_j + alpha) / (N + n_states alpha), n_j = occurrences of j among the N = t + 1 tokens seen.
    Optimal for i.i.d. tokens from a Dirichlet(alpha) distribution drawn per sequence.
    Source: Edelman et al. 2024, "The Evolution of Statistical Induction Heads: In-Context Learning Markov Chains".
    """
    counts = _one_hot(tokens, n_states, alpha).cumsum(1)
    return _posterior_mean(counts, alpha).log()


def bigram_log_probabilities(
    tokens: Int[Tensor, "batch position"], *, n_states: int, alpha: float = 1.0, order: int = 1
) -> Float64[Tensor, "batch position n_states"]:
    """Return the log predictions of an observer who counts successors of the current context of `order` tokens.

    Formula: (n_cj + alpha) / (n_c + n_states alpha), n_cj = how often the context c = tokens[t - order + 1 .. t] was
    followed by j before, n_c = sum over j; the current occurrence has no successor yet. Uniform while there are fewer
    than `order` tokens. This is the Bayes predictor for Markov chains of that order whose rows are drawn from
    Dirichlet(alpha); alpha -> 0 is an ideal induction head that weighs all matches alike.
    Source: as `unigram_log_probabilities`.
    """
    if order < 1:
        msg = f"order={order}; a context has at least 1 token"
        raise ValueError(msg)
    successors = _one_hot(tokens, n_states, alpha)[:, 1:]
    n_positions = tokens.shape[1]
    match = torch.ones(tokens.shape[0], n_positions, n_positions, dtype=torch.bool, device=tokens.device).tril(-1)
    for lag in range(order):
        same = torch.zeros_like(match)
        shifted = tokens[:, : n_positions - lag]
        same[:, lag:, lag:] = shifted[:, :, None] == shifted[:, None, :]
        match &= same
    # The last column has no successor, and being last it is earlier than no position.
    counts = match[:, :, : n_positions - 1].double() @ successors
    return _posterior_mean(counts, alpha).log()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Prediction:
    """Checked logits with their log softmax, the tokens to predict and their loss; all [batch, position - 1, ...]."""

    logits: Float[Tensor, "batch prediction vocab"]
    log_probabilities: Float64[Tensor, "batch prediction vocab"]
    targets: Int[Tensor, "batch prediction"]
    loss: Float64[Tensor, "batch prediction"]

    @property
    def vocab_size(self) -> int:
        return self.logits.shape[-1]

    @cached_property
    def hits(self) -> Tensor:
        return _share_of_hits(self.logits, self.targets)


def _predict(logits: Tensor, tokens: Tensor) -> _Prediction:
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape or tokens.shape[1] < 1:
        msg = f"logits {tuple(logits.shape)} beside tokens {tuple(tokens.shape)}; "
        msg += "give logits [batch, position, vocab] for every token, the last included"
        raise ValueError(msg)
    used, targets = logits.detach()[:, :-1], tokens[:, 1:].long()
    if not bool(used.isfinite().all()):
        msg = "the logits hold NaN or infinite values; training diverged before this point"
        raise NonFiniteError(msg)
    if bool(((targets < 0) | (targets >= logits.shape[-1])).any()):
        msg = f"tokens up to {int(targets.max())} are to be predicted from {logits.shape[-1]} logits; "
        msg += "give logits over the whole vocabulary"
        raise ValueError(msg)
    log_probabilities = used.double().log_softmax(-1)
    loss = -log_probabilities.gather(-1, targets[..., None]).squeeze(-1)
    return _Prediction(logits=used, log_probabilities=log_probabilities, targets=targets, loss=loss)


def _seen_tokens(
    prediction: _Prediction, tokens: Tensor, bos_token: int | None
) -> Bool[Tensor, "batch prediction vocab"]:
    """Mark the distinct tokens of the context of each prediction, BOS left out."""
    context = tokens[:, :-1].long()
    n_batch, n_predictions = context.shape
    position = torch.arange(n_predictions, device=context.device)
    when = position.expand_as(context)
    if bos_token is not None:
        is_bos = context == bos_token
        when = when.masked_fill(is_bos, n_predictions)  # never seen; its id may lie outside the logits' vocabulary
        context = context.masked_fill(is_bos, 0)
    if bool(((context < 0) | (context >= prediction.vocab_size)).any()):
        msg = f"the context holds tokens outside 0..{prediction.vocab_size - 1}; name a BOS beyond them as bos_token"
        raise ValueError(msg)
    # why first occurrences: one scatter per token instead of a running count over [batch, position, vocab]
    first = torch.full((n_batch, prediction.vocab_size), n_predictions, device=context.device)
    first = first.scatter_reduce(1, context, when, "amin")
    return first[:, None, :] <= position[None, :, None]


def _share_of_hits(scores: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the target has the largest score, 1 / ties where it shares it, else 0."""
    largest = scores.amax(-1, keepdim=True)
    n_largest = (scores == largest).sum(-1)
    return (scores.gather(-1, targets[..., None]) == largest).squeeze(-1).double() / n_largest


def _masked_mean(
    score: Tensor, mask: Tensor, *, chance: Tensor | float, ceiling: float, definition: str, guesses: bool = False
) -> MetricResult:
    """Average score and (score - chance) / (ceiling - chance) over a mask; `guesses`: chance is a hit probability."""
    if mask.shape != score.shape:
        msg = f"mask of shape {tuple(mask.shape)}; give one entry per prediction, {tuple(score.shape)}"
        raise ValueError(msg)
    n_pairs = int(mask.sum())
    selected = score[mask]
    chances = torch.as_tensor(chance, dtype=torch.float64, device=score.device).expand_as(score)[mask]
    correctable = chances != ceiling  # where chance is already perfect there is nothing to correct for
    corrected = ((selected - chances) / (ceiling - chances))[correctable].mean()
    null_sd = float((chances * (1 - chances)).sum().sqrt()) / n_pairs if guesses and n_pairs else None
    return MetricResult(
        value=selected.mean(),  # the mean of nothing is NaN
        corrected=corrected,
        chance=float(chances.mean()) if isinstance(chance, Tensor) else chance,
        ceiling=ceiling,
        null_sd=null_sd,
        n_pairs=n_pairs,
        definition=definition,
    )


def _accuracy(prediction: _Prediction, mask: Tensor, definition: str) -> MetricResult:
    chance = 1 / prediction.vocab_size
    return _masked_mean(prediction.hits, mask, chance=chance, ceiling=1.0, definition=definition, guesses=True)


def _mean_loss(prediction: _Prediction, mask: Tensor) -> MetricResult:
    chance = uniform_loss(prediction.vocab_size)
    return _masked_mean(prediction.loss, mask, chance=chance, ceiling=0.0, definition="induction_loss/mean_nats/v1")


def _in_context_accuracy(prediction: _Prediction, seen: Tensor, predictable: Tensor) -> MetricResult:
    n_seen = seen.sum(-1)
    hits = _share_of_hits(prediction.logits.masked_fill(~seen, -torch.inf), prediction.targets)
    return _masked_mean(
        hits,
        predictable & (n_seen > 0),
        chance=1 / n_seen.double(),
        ceiling=1.0,
        definition="in_context_accuracy/argmax_among_seen/v1",
        guesses=True,
    )


def _in_context_probability(prediction: _Prediction, seen: Tensor, predictable: Tensor) -> MetricResult:
    n_seen = seen.sum(-1)
    mass = (prediction.log_probabilities.exp() * seen).sum(-1)
    return _masked_mean(
        mass,
        predictable & (n_seen > 0),
        chance=n_seen.double() / prediction.vocab_size,
        ceiling=1.0,
        definition="in_context_probability/mass_on_seen/v1",
    )


def _icl(prediction: _Prediction, t1: int, t2: int, window: int) -> MetricResult:
    last = prediction.loss.shape[1] - 1
    if not 1 <= window <= t1 + 1 <= t2 <= last:
        msg = f"t1={t1}, t2={t2}, window={window} with predictions 0..{last}; choose window - 1 <= t1 < t2 <= {last}"
        raise ValueError(msg)
    late, early = (prediction.loss[:, t - window + 1 : t + 1].mean() for t in (t2, t1))
    value, reference = late - early, uniform_loss(prediction.vocab_size)
    return MetricResult(
        value=value,
        corrected=-value / reference if reference else torch.full_like(value, torch.nan),
        chance=0.0,
        ceiling=-reference,
        n_pairs=prediction.loss.shape[0] * window,
        definition=f"icl_score/loss_difference,t1={t1},t2={t2},window={window}/v1",
    )


def _loss_by_position(prediction: _Prediction) -> MetricResult:
    value, chance = prediction.loss.mean(0), uniform_loss(prediction.vocab_size)
    return MetricResult(
        value=value,
        corrected=1 - value / chance if chance else torch.full_like(value, torch.nan),
        chance=chance,
        ceiling=0.0,
        n_pairs=prediction.loss.numel(),
        definition="loss_by_position/mean_nats/v1",
    )


def _one_hot(tokens: Tensor, n_states: int, alpha: float) -> Tensor:
    if not alpha > 0:
        msg = f"alpha={alpha}; without a positive prior count unseen tokens have probability 0; give alpha > 0"
        raise ValueError(msg)
    if bool(((tokens < 0) | (tokens >= n_states)).any()):
        msg = f"tokens lie outside 0..{n_states - 1}; give n_states above the largest token"
        raise ValueError(msg)
    return torch.nn.functional.one_hot(tokens.long(), n_states).double()


def _posterior_mean(counts: Tensor, alpha: float) -> Tensor:
    return (counts + alpha) / (counts.sum(-1, keepdim=True) + alpha * counts.shape[-1])
