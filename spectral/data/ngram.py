"""Markov chains: every sequence has its own random transition table, to be learned in context.

The table of a sequence has one Dirichlet(alpha) row per context, a context being the tokens at fixed lags (the
parents). A training batch does not need the table itself. With the rows integrated out, the next token is a copy of
the successor at a uniformly chosen earlier visit of the same context with probability n / (n + V alpha), n = number of
earlier visits, and a uniform token otherwise (Blackwell and MacQueen 1973, "Ferguson distributions via Polya urn
schemes"). That gives exactly the same distribution of sequences at a cost that does not grow with the table. Where
the tables are asked for, they are drawn from their posterior Dirichlet(alpha + transition counts), which makes tables
and sequences jointly distributed as if the tables had been drawn first. A stationary start does depend on the table; it
alone is drawn the other way round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from spectral.data.batch import TokenBatch
from spectral.data.word_law import occupation_law, word_rows

Start = Literal["uniform", "stationary"]


@dataclass(frozen=True, kw_only=True, eq=False)
class MarkovBatch(TokenBatch):
    """A batch of Markov chains.

    Attributes:
        tables: [batch, context, vocab] transition probabilities, rows sum to 1; None unless asked for. The context
            number has the token at the first parent as its most significant digit in base vocab_size.
    """

    tables: Float64[Tensor, "batch context vocab"] | None = None


def markov_chains(
    *,
    batch_size: int,
    seq_length: int,
    vocab_size: int,
    parents: Sequence[int] = (1,),
    alpha: float,
    generator: torch.Generator,
    device: torch.device | str,
    return_tables: bool = False,
    start: Start = "uniform",
) -> MarkovBatch:
    """Draw sequences from Markov chains with one random transition table per sequence.

    `predictable` is True at t when the context of token t+1 has occurred before, so that its successor can be looked
    up; how often the look-up is right depends on alpha. `boundary` is all False, `period` None.

    Args:
        batch_size: number of sequences.
        seq_length: tokens per sequence.
        vocab_size: V, number of states.
        parents: lags that the next token depends on: token s depends on tokens s - lag.
        alpha: Dirichlet concentration of every row, > 0; small = nearly deterministic chains.
        generator: source of all draws.
        device: where the result lives.
        return_tables: also draw the tables, V ** (len(parents) + 1) numbers per sequence. The tokens do not depend on
            this option.
        start: law of the first max(parents) tokens: `uniform`, or `stationary`: the long-run law of the chain, see
            `spectral.data.word_law`, which needs V ** max(parents) <= 4096.

    Raises:
        ValueError: sizes that cannot be met; the message names the value, the rule and the remedy.
    """
    lags = tuple(parents)
    if not lags or min(lags) < 1 or len(set(lags)) != len(lags) or max(lags) >= seq_length:
        msg = f"parents are {list(lags)}; give different lags between 1 and seq_length - 1 = {seq_length - 1}"
        raise ValueError(msg)
    if not alpha > 0:
        msg = f"alpha is {alpha}; a Dirichlet concentration must be positive"
        raise ValueError(msg)
    if start not in ("uniform", "stationary"):
        msg = f"start is {start!r}; use uniform or stationary"
        raise ValueError(msg)
    # Drawn time first: the walk reads one contiguous row per step.
    shape = (seq_length, batch_size)
    uniform = torch.rand(shape, dtype=torch.float64, generator=generator, device=generator.device)
    fresh = torch.randint(0, vocab_size, shape, generator=generator, device=generator.device)
    # Why on the host: each step depends on the one before and does next to no work, so a kernel launch per operation
    # would cost several times as much as NumPy does.
    draws, tables = uniform.cpu().numpy(), None
    if start == "stationary":
        n_contexts = vocab_size ** len(lags)
        concentration = torch.full((batch_size, n_contexts, vocab_size), alpha, dtype=torch.float64)
        tables = dirichlet(concentration.to(generator.device), generator=generator).cpu()
        walked, seen = _table_walk(draws, tables, lags)
    else:
        walked, seen = _urn_walk(draws, fresh.cpu().numpy(), vocab_size, lags, alpha)
    tokens = torch.from_numpy(walked.T.copy())
    predictable = torch.from_numpy(seen[1:].T.copy()).to(device)
    if return_tables and tables is None:
        tables = _posterior_tables(tokens, vocab_size, lags, alpha, generator)
    tables = tables.to(device) if return_tables and tables is not None else None
    return MarkovBatch(
        tokens=tokens.to(device), predictable=predictable, boundary=torch.zeros_like(predictable), tables=tables
    )


def context_codes(
    tokens: Int64[Tensor, "batch position"], *, vocab_size: int, parents: Sequence[int]
) -> Int64[Tensor, "batch target"]:
    """Return the context number of every token from index max(parents) on, [batch, position - max(parents)]."""
    reach, seq_length = max(parents), tokens.shape[1]
    code: Tensor = torch.zeros_like(tokens[:, reach:])
    for lag in parents:
        code = code * vocab_size + tokens[:, reach - lag : seq_length - lag]
    return code


def dirichlet(
    concentration: Float64[Tensor, "*rows vocab"], *, generator: torch.Generator
) -> Float64[Tensor, "*rows vocab"]:
    """Draw Dirichlet rows, for any positive concentration however small.

    Rows sum to 1 to rounding and are never NaN; single entries may underflow to 0.
    """
    # Gamma(a) underflows to 0 in a whole row when a is about 0.01 or less. Its logarithm does not:
    # Gamma(a) = Gamma(a + 1) * U ** (1 / a), and softmax normalises logarithms.
    gamma = torch._standard_gamma(concentration + 1, generator=generator)
    uniform = torch.rand(
        concentration.shape, dtype=concentration.dtype, generator=generator, device=concentration.device
    )
    log_uniform = uniform.clamp_(min=torch.finfo(uniform.dtype).tiny).log()
    return torch.softmax(gamma.log() + log_uniform / concentration, dim=-1)


def stationary_distribution(P: Float[Tensor, "*rows vocab vocab"]) -> Float64[Tensor, "*rows vocab"]:
    """Return the distribution pi with pi P = pi: the left eigenvector of P to the eigenvalue 1.

    Args:
        P: row-stochastic matrices; P[i, j] = probability of j after i. The work is done in float64.

    Raises:
        ValueError: P is not row-stochastic, or it has more than one stationary distribution.
    """
    P = P.double()
    # 1e-5 lets rows through that were normalised in float32, V of them rounded.
    if P.shape[-1] != P.shape[-2] or bool((P < 0).any()) or not bool(((P.sum(dim=-1) - 1).abs() < 1e-5).all()):
        msg = "P is no transition matrix; rows must be non-negative and sum to 1 (is it transposed?)"
        raise ValueError(msg)
    # Right eigenvectors of the transpose are left eigenvectors of P. Averaging the rows of a power of P is not the
    # same thing: over the wrong axis that returns the uniform vector for every P.
    values, vectors = torch.linalg.eig(P.mT)
    distance = (values - 1).abs().sort(dim=-1)
    if P.shape[-1] > 1 and bool((distance.values[..., 1] < 1e-10).any()):
        msg = "P has more than one stationary distribution; join its closed classes, for example with a larger alpha"
        raise ValueError(msg)
    index = distance.indices[..., None, :1].expand(*P.shape[:-1], 1)
    vector = vectors.gather(-1, index).squeeze(-1)
    # The eigenvector comes with an arbitrary complex phase; dividing by the sum removes it.
    pi: Tensor = (vector / vector.sum(dim=-1, keepdim=True)).real.clamp(min=0)
    return pi / pi.sum(dim=-1, keepdim=True)


def entropy_rate(P: Float[Tensor, "*rows vocab vocab"]) -> Float64[Tensor, "*rows"]:
    """Return the loss of a model that knows P, in nats per token.

    Formula: sum_i pi_i H(P_i), pi = stationary distribution. Range: [0, ln V].
    """
    row_entropy: Tensor = torch.special.entr(P.double()).sum(dim=-1)
    return (stationary_distribution(P) * row_entropy).sum(dim=-1)


def _urn_walk(
    uniform: NDArray[np.float64], fresh: NDArray[np.int64], vocab_size: int, lags: tuple[int, ...], alpha: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Walk all sequences at once, one step per token.

    Returns:
        Tokens [position, batch], and whether the context that each token was drawn from had been visited before.
    """
    seq_length, batch_size = fresh.shape
    reach, n_contexts = max(lags), vocab_size ** len(lags)
    tokens, seen = fresh.copy(), np.zeros(fresh.shape, dtype=np.bool_)
    # A sequence visits at most seq_length contexts. Where there are more, visited ones are numbered as they appear,
    # which bounds the history. `number` holds number + 1; np.zeros of that size costs nothing until it is touched.
    renumber = n_contexts > seq_length
    n_cells = min(n_contexts, seq_length)
    number = np.zeros(batch_size * n_contexts if renumber else 0, dtype=np.int32)
    n_numbers = np.zeros(batch_size, dtype=np.int32)
    count = np.zeros(batch_size * n_cells, dtype=np.int64)
    history = np.empty(batch_size * n_cells * seq_length, dtype=np.min_scalar_type(vocab_size - 1))
    row = np.arange(batch_size)
    prior = vocab_size * alpha
    for s in range(reach, seq_length):
        context = tokens[s - lags[0]]
        for lag in lags[1:]:
            context = context * vocab_size + tokens[s - lag]
        if renumber:
            place = row * n_contexts + context
            known = number[place]
            n_numbers += known == 0
            number[place] = context = np.where(known == 0, n_numbers, known)
            context = context - 1
        cell = row * n_cells + context
        n_visits = count[cell]
        # The fresh token stands behind the n earlier successors; a pick beyond them all means "fresh".
        visit = np.minimum((uniform[s] * (n_visits + prior)).astype(np.int64), n_visits)
        first = cell * seq_length
        history[first + n_visits] = fresh[s]
        drawn = history[first + visit]
        history[first + n_visits] = drawn
        count[cell] = n_visits + 1
        tokens[s], seen[s] = drawn, n_visits > 0
    return tokens, seen


def _table_walk(
    uniform: NDArray[np.float64], tables: Float64[Tensor, "batch context vocab"], lags: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Walk all sequences through known tables from their long-run law; returns as `_urn_walk`."""
    seq_length, batch_size = uniform.shape
    reach, vocab_size = max(lags), tables.shape[-1]
    rows = word_rows(tables, parents=lags)
    word_cdf = occupation_law(rows).cumsum(-1).numpy()
    cdf, visited = tables.cumsum(-1).numpy(), np.zeros(tables.shape[:2], dtype=np.bool_)
    tokens, seen = np.empty(uniform.shape, dtype=np.int64), np.zeros(uniform.shape, dtype=np.bool_)
    row = np.arange(batch_size)
    # The last entry of a cumulated row may stand a rounding error below 1; a draw above it takes the last symbol.
    word = np.minimum((word_cdf <= uniform[0, :, None]).sum(-1), word_cdf.shape[1] - 1)
    for s in range(reach):
        tokens[s] = word // vocab_size ** (reach - 1 - s) % vocab_size
    for s in range(reach, seq_length):
        context = np.zeros(batch_size, dtype=np.int64)
        for lag in lags:
            context = context * vocab_size + tokens[s - lag]
        tokens[s] = np.minimum((cdf[row, context] <= uniform[s, :, None]).sum(-1), vocab_size - 1)
        seen[s] = visited[row, context]
        visited[row, context] = True
    return tokens, seen


def _posterior_tables(
    tokens: Int64[Tensor, "batch position"],
    vocab_size: int,
    lags: tuple[int, ...],
    alpha: float,
    generator: torch.Generator,
) -> Float64[Tensor, "batch context vocab"]:
    """Draw the transition tables given the sequences that they produced."""
    batch_size, n_contexts = tokens.shape[0], vocab_size ** len(lags)
    row = torch.arange(batch_size)[:, None] * n_contexts
    cell = (row + context_codes(tokens, vocab_size=vocab_size, parents=lags)) * vocab_size + tokens[:, max(lags) :]
    counts = torch.bincount(cell.flatten(), minlength=batch_size * n_contexts * vocab_size)
    concentration = counts.view(batch_size, n_contexts, vocab_size).to(generator.device, torch.float64) + alpha
    return dirichlet(concentration, generator=generator)
