"""What observers of the held-out chains achieve there: the lines beside the losses of a run."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from spectral.gih.config import GIHConfig
from spectral.gih.generalisation import last_posterior_mean, last_table_row
from spectral.gih.runner import draw_chains
from spectral.models import last_token_losses

MAX_TABLE_ENTRIES = 2**27


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One observer, mean over chains.

    Attributes:
        name: `uniform`, `unigram` (counts tokens), `bayes` (knows parents and alpha, not the table) or `truth` (knows
            the table).
        double_softmax: loss of its probabilities taken for logits, nats. No bound: the loss rewards sharper ones.
        nll: its cross-entropy, nats; that of `bayes` is the least that can be expected without the table.
        accuracy: share of chains whose target it finds most probable; ties with another token are no hit.
    """

    name: str
    double_softmax: float
    nll: float
    accuracy: float


def references(config: GIHConfig) -> list[Reference]:
    """Return the observers on the held-out chains of an experiment; on the training ones where none are held out.

    `truth` is left out where the tables of all chains have more than 2 ** 27 entries (1 GiB).
    """
    with_tables = config.n_sample * config.vocab_size ** (len(config.lags) + 1) <= MAX_TABLE_ENTRIES
    batch = draw_chains(config, return_tables=with_tables)
    held_out = slice(config.n_training, None) if config.n_validation else slice(None)
    tokens = batch.tokens[held_out]
    vocab_size, parents, alpha = config.vocab_size, config.lags, config.alpha
    counts = torch.stack([(tokens[:, :-1] == token).sum(1) for token in range(vocab_size)], dim=1) + alpha
    predictions = {
        "uniform": torch.full((len(tokens), vocab_size), 1 / vocab_size, dtype=torch.float64),
        "unigram": counts.double() / counts.sum(1, keepdim=True),
        "bayes": last_posterior_mean(tokens, vocab_size=vocab_size, parents=parents, alpha=alpha),
    }
    if batch.tables is not None:
        predictions["truth"] = last_table_row(tokens, batch.tables[held_out], parents=parents)
    return [_reference(name, y, tokens[:, -1]) for name, y in predictions.items()]


def _reference(name: str, y: Float64[Tensor, "batch vocab"], targets: Int[Tensor, " batch"]) -> Reference:
    best = y.topk(2, dim=1)
    hit = (best.indices[:, 0] == targets) & (best.values[:, 0] > best.values[:, 1])
    return Reference(
        name=name,
        double_softmax=last_token_losses(y, targets).mean().item(),
        nll=last_token_losses(y, targets, loss="nll", eps=0.0).mean().item(),
        # Guessing is right this often, though a tie counts as no hit.
        accuracy=1 / y.shape[1] if name == "uniform" else hit.double().mean().item(),
    )


def least_double_softmax(vocab_size: int) -> float:
    """Return the smallest possible double-softmax loss, nats: that of a one-hot prediction which is always right."""
    return math.log(1 + (vocab_size - 1) / math.e)
