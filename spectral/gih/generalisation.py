"""How a trained model does on longer and shorter sequences and on other chains, beside what could be known.

All lengths use the last tokens of the same long chains and the same targets, so that differences between lengths carry
little noise. A suffix of a long chain starts near its long-run law and not uniformly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from spectral.data import context_codes, markov_chains
from spectral.gih.compression import compress
from spectral.gih.engine import Engine
from spectral.models import DisentangledTransformer, last_token_losses
from spectral.randomness import torch_generator


@dataclass(frozen=True, kw_only=True)
class GeneralisationRow:
    """Mean losses over the chains of one concentration at one length, nats.

    Attributes:
        alpha: concentration of the chains.
        seq_length: tokens read.
        double_softmax, nll: of the model.
        accuracy: share of chains whose target the model finds most probable.
        double_softmax_se: standard error of `double_softmax` over chains.
        oracle_double_softmax: the true probabilities in place of the model's; the same at every length.
        oracle_nll: cross-entropy of the true probabilities: the entropy of the next token.
        bayes_double_softmax, bayes_nll: the same of the best observer who does not know the table.
        excess: double_softmax minus oracle_double_softmax, and `excess_se` its standard error, paired by chain.
    """

    alpha: float
    seq_length: int
    double_softmax: float
    nll: float
    accuracy: float
    double_softmax_se: float
    oracle_double_softmax: float
    oracle_nll: float
    bayes_double_softmax: float
    bayes_nll: float
    excess: float
    excess_se: float


def generalisation(
    model: DisentangledTransformer,
    *,
    parents: Sequence[int],
    alphas: Sequence[float] = (0.05, 0.1, 0.2),
    lengths: Sequence[int] = (10, 20, 50, 100, 200, 400, 700, 1000),
    n_chains: int = 10_000,
    eps: float = 1e-4,
    seed: int = 0,
) -> list[GeneralisationRow]:
    """Return one row per concentration and length, for the weights as they are.

    Args:
        model: trained at any length.
        parents: of the chains.
        alphas: concentrations.
        lengths: tokens read, each at least max(parents).
        n_chains: chains per concentration; their draws are the same for all lengths.
        eps: added under the logarithm of the model's `nll`.
        seed: of the chains.

    Raises:
        ValueError: a length below the largest parent, or no length.
    """
    if not lengths or min(lengths) < max(parents):
        msg = f"lengths={list(lengths)}; give lengths of at least the largest parent, {max(parents)}"
        raise ValueError(msg)
    rows = []
    for alpha in alphas:
        batch = markov_chains(
            batch_size=n_chains,
            seq_length=max(lengths) + 1,
            vocab_size=model.vocab_size,
            parents=parents,
            alpha=alpha,
            generator=torch_generator(seed, f"gih generalisation {alpha!r}"),
            device="cpu",
            return_tables=True,
        )
        assert batch.tables is not None
        targets = batch.tokens[:, -1]
        truth = last_table_row(batch.tokens, batch.tables, parents=parents)
        oracle = last_token_losses(truth, targets)
        oracle_nll = last_token_losses(truth, targets, loss="nll", eps=0.0).mean().item()
        for length in lengths:
            tokens = batch.tokens[:, -length - 1 :]
            engine = Engine(model, compress(tokens, model), training=[])
            losses = engine.losses().detach()
            bayes = last_posterior_mean(tokens, vocab_size=model.vocab_size, parents=parents, alpha=alpha)
            rows.append(
                GeneralisationRow(
                    alpha=alpha,
                    seq_length=length,
                    double_softmax=losses.mean().item(),
                    nll=engine.loss(loss="nll", eps=eps).item(),
                    accuracy=engine.hits().double().mean().item(),
                    double_softmax_se=_standard_error(losses),
                    oracle_double_softmax=oracle.mean().item(),
                    oracle_nll=oracle_nll,
                    bayes_double_softmax=last_token_losses(bayes, targets).mean().item(),
                    bayes_nll=last_token_losses(bayes, targets, loss="nll", eps=0.0).mean().item(),
                    excess=(losses - oracle).mean().item(),
                    excess_se=_standard_error(losses - oracle),
                )
            )
    return rows


def last_table_row(
    tokens: Int[Tensor, "batch position"],
    tables: Float[Tensor, "batch context vocab"],
    *,
    parents: Sequence[int],
) -> Float64[Tensor, "batch vocab"]:
    """Return the true probabilities of the last token: `spectral.behaviour.ngrams` for one position only."""
    code = context_codes(tokens, vocab_size=tables.shape[-1], parents=parents)[:, -1]
    return tables.double()[torch.arange(len(tokens)), code]


def last_posterior_mean(
    tokens: Int[Tensor, "batch position"], *, vocab_size: int, parents: Sequence[int], alpha: float
) -> Float64[Tensor, "batch vocab"]:
    """Return the Bayes probabilities of the last token given all before it, at a cost linear in the length.

    Formula: (n_cj + alpha) / (n_c + V alpha), c = the context of the last token; alpha -> 0 is the in-context n-gram.
             `spectral.behaviour.ngrams.bayes_log_probabilities` is the same at every position.
    """
    codes = context_codes(tokens, vocab_size=vocab_size, parents=parents)
    successors = tokens[:, max(parents) : -1]
    match = codes[:, :-1] == codes[:, -1:]
    counts = torch.stack([(match & (successors == token)).sum(1) for token in range(vocab_size)], dim=1).double()
    return (counts + alpha) / (counts.sum(1, keepdim=True) + vocab_size * alpha)


def _standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))
