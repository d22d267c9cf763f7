"""How much a set of parents tells about the next token: the modified chi-square mutual information.

With mu the law of (token, tokens at the offsets in S) along a chain with table pi, e the token and Z the others,

    I~(S) = E_pi sum_Z mu(Z)^2 chi2(mu(. | Z) || mu),  chi2(p || q) = sum_e p(e)^2 / q(e) - 1

The ordinary chi-square information has mu(Z) in place of mu(Z)^2. The extra factor penalises large subsets: they split
the chain into contexts too rare to be averaged over. The information set S* is the subset with the largest I~; training
finds it, because at small `a` the force on the share of a subset is this number (`spectral.gih.engine.subset_forces`).

Source: Chen et al. 2024, arXiv 2409.10559.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from spectral.data import dirichlet, longer_words, occupation_laws_by_start, word_rows

MAX_CELLS = 2**24  # numbers in one law of words, all chains of a block together
MAX_WORDS = 2**22


@dataclass(frozen=True, kw_only=True, eq=False)
class SubsetInformation:
    """Information of every subset, mean over chains.

    Attributes:
        subsets: [subset, offset] which offsets are in each subset.
        offsets: the offsets that the columns of `subsets` stand for.
        modified: [subset] I~(S), at least 0.
        modified_se: [subset] its standard error over chains; NaN for a single chain.
        ordinary: [subset] the same without the extra factor; it never decreases when a subset grows.
        per_chain: [chain, subset] I~ of every chain.
    """

    subsets: Bool[Tensor, "subset offset"]
    offsets: tuple[int, ...]
    modified: Float64[Tensor, " subset"]
    modified_se: Float64[Tensor, " subset"]
    ordinary: Float64[Tensor, " subset"]
    per_chain: Float64[Tensor, "chain subset"]

    @property
    def information_set(self) -> tuple[int, ...]:
        """Return the offsets of S*, the subset with the largest modified information."""
        best = self.subsets[int(self.modified.argmax())].tolist()
        return tuple(offset for offset, member in zip(self.offsets, best, strict=True) if member)

    @property
    def margin(self) -> tuple[float, float]:
        """Return by how much I~(S*) leads over the runner-up, and the standard error of that, paired by chain."""
        first, second = self.modified.topk(2).indices.tolist()
        lead = self.per_chain[:, first] - self.per_chain[:, second]
        return float(lead.mean()), float(lead.std() / math.sqrt(len(lead)))


def subset_information(
    tables: Float[Tensor, "chain context vocab"],
    *,
    parents: Sequence[int],
    subsets: Bool[Tensor, "subset offset"],
    offsets: Sequence[int] | None = None,
    n_positions: int | None = None,
) -> SubsetInformation:
    """Return the information of every subset of offsets about the token, exactly for each chain.

    The law of words is summed, nothing is sampled. mu is the mean over the first `n_positions` tokens that have all
    offsets behind them, or the long-run law; in both cases the law given the first words, and the information is the
    mean over uniform first words. That is what sequences show: each has one start, and a chain that is nearly reducible
    stays in its part. A mixture over starts would count knowing the part as information (0.238 in place of 0.218 for
    the default chains).

    Args:
        tables: transition tables as in `MarkovBatch`.
        parents: lags in the order of the tables.
        subsets: which offsets belong together, for example `head_subsets(3, 2)`.
        offsets: what the columns of `subsets` mean; None = 1, 2, .. as for the heads' target offsets.
        n_positions: length of the average; None = the long run. Chains drawn with a small concentration hardly forget
            their start, so the law of the training length describes them better.

    Raises:
        ValueError: offsets that do not match the columns, more than 2 ** 22 words, or n_positions below 1.
    """
    lags = tuple(range(1, subsets.shape[1] + 1)) if offsets is None else tuple(offsets)
    if len(lags) != subsets.shape[1] or min(lags, default=0) < 1 or len(set(lags)) != len(lags):
        msg = f"offsets={list(lags)} for {subsets.shape[1]} columns; give one offset of at least 1 per column"
        raise ValueError(msg)
    vocab_size, length = tables.shape[-1], max(lags) + 1
    if vocab_size**length > MAX_WORDS:
        msg = f"words of {length} tokens among {vocab_size} are {vocab_size**length}, more than {MAX_WORDS}; "
        raise ValueError(msg + "reduce the largest offset or vocab_size")
    n_starts = vocab_size ** max(parents)
    block = max(1, MAX_CELLS // (n_starts * vocab_size ** max(length, max(parents) + 1)))
    modified: list[Tensor] = []
    ordinary: list[Tensor] = []
    for part in tables.split(block):
        rows = word_rows(part, parents=parents)
        laws = occupation_laws_by_start(rows, n_words=n_positions).flatten(0, 1)
        words = longer_words(laws, rows.repeat_interleave(n_starts, 0), length=length)
        words = words.view(-1, *[vocab_size] * length)
        scores = [_chi_squares(words, [k for k, member in zip(lags, row, strict=True) if member]) for row in subsets]
        for found, kind in zip((modified, ordinary), zip(*scores, strict=True), strict=True):
            found.append(torch.stack(kind, dim=1).view(len(part), n_starts, -1).mean(1))
    per_chain = torch.cat(modified)
    return SubsetInformation(
        subsets=subsets,
        offsets=lags,
        modified=per_chain.mean(0),
        modified_se=per_chain.std(0, correction=1) / math.sqrt(len(per_chain))
        if len(per_chain) > 1
        else torch.full_like(per_chain[0], math.nan),
        ordinary=torch.cat(ordinary).mean(0),
        per_chain=per_chain,
    )


def dirichlet_tables(
    n_chains: int, *, vocab_size: int, n_parents: int, alpha: float, generator: torch.Generator
) -> Float64[Tensor, "chain context vocab"]:
    """Draw transition tables with independent Dirichlet(alpha) rows, to average the information over."""
    if not alpha > 0:
        msg = f"alpha is {alpha}; a Dirichlet concentration must be positive"
        raise ValueError(msg)
    shape = (n_chains, vocab_size**n_parents, vocab_size)
    return dirichlet(torch.full(shape, alpha, dtype=torch.float64), generator=generator)


def _chi_squares(law: Tensor, offsets: list[int]) -> tuple[Tensor, Tensor]:
    """Return modified and ordinary information of one subset, per chain; the last axis of the law is the token."""
    n_tokens = law.ndim - 1
    others = [d for d in range(1, n_tokens) if n_tokens - d not in offsets]
    joint = (law.sum(others) if others else law).flatten(1, -2) if offsets else law.sum(others)[:, None]
    context, token = joint.sum(-1), joint.sum(1)
    # Where a marginal is 0 the joint is 0 too, and 0 / 0 counts as 0.
    square = joint**2 / torch.where(token > 0, token, 1.0)[:, None]
    modified = (square.sum((1, 2)) - (context**2).sum(1)).clamp(min=0)
    ordinary = ((square.sum(2) / torch.where(context > 0, context, 1.0)).sum(1) - 1).clamp(min=0)
    return modified, ordinary
