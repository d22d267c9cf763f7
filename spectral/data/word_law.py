"""Exact laws of the words (runs of tokens) that a Markov chain with a known transition table writes.

A chain whose largest parent lag is r moves on words of r tokens, of which there are V ** r. A word is a number in base
V with its oldest token as the most significant digit, so a step drops the front digit and appends the new token.

Chains drawn with a small Dirichlet concentration are nearly reducible or periodic: the power P^t then does not
converge and the eigenvalue 1 is nearly degenerate. The long-run law is therefore taken as the limit of
((I + P) / 2)^t from the uniform start, which exists for every chain and is the stationary law where that is unique.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

SQUARINGS = 40  # 2 ** 40 lazy steps
MAX_WORDS = 4096


def word_rows(
    tables: Float[Tensor, "batch context vocab"], *, parents: Sequence[int] = (1,)
) -> Float64[Tensor, "batch word vocab"]:
    """Return the law of the next token after every word of max(parents) tokens, [batch, V ** max(parents), V].

    Args:
        tables: as in `MarkovBatch`.
        parents: lags in the order of the tables.

    Raises:
        ValueError: the tables do not belong to these parents, or there are more than 4096 words.
    """
    vocab_size, reach = tables.shape[-1], max(parents)
    n_words = vocab_size**reach
    if tables.shape[1] != vocab_size ** len(parents):
        msg = f"tables have {tables.shape[1]} contexts, parents {list(parents)} make {vocab_size ** len(parents)}; "
        raise ValueError(msg + "give the parents that the tables were drawn with")
    if n_words > MAX_WORDS:
        msg = f"vocab_size ** max(parents) is {n_words} words; exact laws need at most {MAX_WORDS}: reduce either"
        raise ValueError(msg)
    word = torch.arange(n_words, device=tables.device)
    context = torch.zeros_like(word)
    for lag in parents:
        context = context * vocab_size + word // vocab_size ** (lag - 1) % vocab_size
    return tables.double()[:, context]


def occupation_law(
    rows: Float64[Tensor, "batch word vocab"], *, n_words: int | None = None
) -> Float64[Tensor, "batch word"]:
    """Return the share of every word among the words of a chain that starts with a uniform one.

    Args:
        rows: from `word_rows`.
        n_words: how many successive words to average over, at least 1; None = the long-run law (module docstring).
    """
    uniform = rows.new_full((rows.shape[0], 1, rows.shape[1]), 1 / rows.shape[1])
    return _occupation(rows, uniform, n_words).squeeze(1)


def occupation_laws_by_start(
    rows: Float64[Tensor, "batch word vocab"], *, n_words: int | None = None
) -> Float64[Tensor, "batch start word"]:
    """Return the share of every word in a chain that starts with a given one; their mean is `occupation_law`.

    What one sequence shows is close to the law of its own start: a chain that is nearly reducible stays where it is.
    """
    size = rows.shape[1]
    starts = torch.eye(size, dtype=torch.float64, device=rows.device).repeat(rows.shape[0], 1, 1)
    return _occupation(rows, starts, n_words)


def longer_words(
    law: Float64[Tensor, "batch word"], rows: Float64[Tensor, "batch word vocab"], *, length: int
) -> Float64[Tensor, "batch longer"]:
    """Return the law of words of `length` tokens, given the law of the words that the rows refer to.

    Formula: mu(x_1..x_m) = mu(x_1..x_r) prod_{s > r} pi(x_s | x_{s-r}..x_{s-1}); for m < r the oldest tokens of the law
    of r tokens are the ones kept, so that every word starts where the law's words start.
    Shape: [batch, V ** length], numbered like the words.
    """
    size, vocab_size = rows.shape[1:]
    n_tokens = _word_length(size, vocab_size)
    if length <= n_tokens:
        return law.view(law.shape[0], vocab_size**length, -1).sum(-1)
    for _ in range(length - n_tokens):
        law = (law.view(law.shape[0], -1, size, 1) * rows[:, None]).reshape(law.shape[0], -1)
    return law


def chain_entropy_rate(
    tables: Float[Tensor, "batch context vocab"], *, parents: Sequence[int] = (1,), n_words: int | None = None
) -> Float64[Tensor, " batch"]:
    """Return the loss of an observer who knows the table, in nats per token, for parents at any lags.

    Formula: sum_word mu(word) H(pi(. | word)), mu = `occupation_law`. Range: [0, ln V].

    Args:
        tables: as in `MarkovBatch`.
        parents: lags in the order of the tables.
        n_words: average over that many first tokens instead of the long run.
    """
    rows = word_rows(tables, parents=parents)
    entropy: Tensor = torch.special.entr(rows).sum(-1)
    return (occupation_law(rows, n_words=n_words) * entropy).sum(-1)


def _occupation(rows: Tensor, law: Tensor, n_words: int | None) -> Float64[Tensor, "batch start word"]:
    if n_words is None:
        return law @ _long_run_matrix(rows)
    if n_words < 1:
        msg = f"n_words={n_words}; average over at least 1 word"
        raise ValueError(msg)
    size, vocab_size = rows.shape[1:]
    total = law.clone()
    for _ in range(n_words - 1):
        joint = law[..., None] * rows[:, None]
        law = joint.view(*law.shape[:2], vocab_size, size // vocab_size, vocab_size).sum(2).view_as(law)
        total += law
    return total / n_words


def _long_run_matrix(rows: Tensor) -> Float64[Tensor, "batch start word"]:
    batch, size, vocab_size = rows.shape
    word = torch.arange(size, device=rows.device)
    follower = (word % (size // vocab_size) * vocab_size)[:, None] + torch.arange(vocab_size, device=rows.device)
    lazy = torch.eye(size, dtype=torch.float64, device=rows.device).repeat(batch, 1, 1) / 2
    lazy.scatter_add_(2, follower.expand(batch, -1, -1), rows / 2)
    for _ in range(SQUARINGS):
        lazy = lazy @ lazy
        lazy /= lazy.sum(-1, keepdim=True)  # rounding would otherwise double with every squaring
    return lazy


def _word_length(size: int, vocab_size: int) -> int:
    length, words = 1, vocab_size
    while words < size:
        words, length = words * vocab_size, length + 1
    return length
