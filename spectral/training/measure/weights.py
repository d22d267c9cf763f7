"""What the weights of every head and every pair of heads are built for, beside random weights of the same sizes."""

import functools
import math
from collections.abc import Mapping

import torch

from spectral.circuits import (
    MaximumNull,
    NullMoments,
    composition_z,
    fold_model,
    ov_top1_copying,
    qk_positional_previous,
    subspace_overlap,
    weight_score_maximum_null,
    weight_score_null,
    weight_scores,
)
from spectral.config import RunConfig
from spectral.models import Transformer
from spectral.training.row import Row

NULL_DRAWS = 100  # random pairs of heads behind mean and spread
MAXIMUM_DRAWS = 200  # random models behind the quantiles of the largest score
LEAST_DRAWS = 20  # fewer say nothing about a 95 % quantile
MAXIMUM_MULTIPLICATIONS = 2e10  # what all random models together may cost: seconds


def weight_row(model: Transformer, null: Mapping[str, NullMoments], *, top1: bool) -> Row:
    """Return what goes into `/circuits` from the weights, LayerNorm folded into them.

    Args:
        model: the model; left as it is.
        null: from `weight_nulls`, for the compositions in standard deviations.
        top1: whether `ov_top1_copying` is part of it.
    """
    folded = fold_model(model)
    weights = folded.circuit_weights()
    row: Row = {}
    for name, value in weight_scores(**weights).items():
        row[f"circuits/{name}"] = torch.view_as_real(value).numpy() if value.is_complex() else value.numpy()
    for letter, read in (("q", folded.W_Q), ("k", folded.W_K), ("v", folded.W_V)):
        moments = null[f"{letter}_composition"]
        raw = torch.from_numpy(row[f"circuits/{letter}_composition"])
        row[f"circuits/{letter}_composition_z"] = composition_z(raw, mean=moments.mean, sd=moments.sd or math.nan)
        row[f"circuits/{letter}_subspace_overlap"] = subspace_overlap(folded.W_O, read)
    if top1:
        row["circuits/ov_top1_copying"] = ov_top1_copying(folded.W_E, folded.W_V, folded.W_O, folded.W_U)
    if folded.W_pos is not None and len(folded.W_pos) > 1:
        row["circuits/qk_positional_previous"] = qk_positional_previous(folded.W_pos, folded.W_Q, folded.W_K)
    return row


def weight_nulls(config: RunConfig) -> Mapping[str, NullMoments]:
    """Return mean and spread of every weight score over random weights of the run's sizes, equally folded."""
    return _moments(config.d_model, config.d_head, config.vocab_size, config.seed, config.layer_norm)


def maximum_nulls(config: RunConfig) -> Mapping[str, MaximumNull]:
    """Return the null of the largest of each weight score; empty where enough random models would take too long."""
    pairs = config.n_heads**2 * config.n_layers * (config.n_layers - 1) // 2
    heads = config.n_heads * config.n_layers
    # 25 d^3 is the price of a general eigenvalue problem.
    one = (pairs + 2 * heads) * 25 * config.d_head**3 + 2 * (config.vocab_size + heads) * config.d_model**2
    n_draws = min(MAXIMUM_DRAWS, int(MAXIMUM_MULTIPLICATIONS / one))
    if n_draws < LEAST_DRAWS:
        return {}
    sizes = (config.d_model, config.d_head, config.n_layers, config.n_heads, config.vocab_size)
    return _maxima(sizes, config.seed, config.layer_norm, n_draws)


# Remembered, because the snapshots of a run and its results file need the same numbers.
@functools.lru_cache(maxsize=16)
def _moments(d_model: int, d_head: int, vocab_size: int, seed: int, layer_norm: bool) -> dict[str, NullMoments]:
    return weight_score_null(
        d_model,
        d_head,
        vocab_size=vocab_size,
        n_draws=NULL_DRAWS,
        seed=seed,
        ln_treatment="folded" if layer_norm else "none",
    )


@functools.lru_cache(maxsize=16)
def _maxima(sizes: tuple[int, int, int, int, int], seed: int, layer_norm: bool, n_draws: int) -> dict[str, MaximumNull]:
    d_model, d_head, n_layers, n_heads, vocab_size = sizes
    return weight_score_maximum_null(
        d_model,
        d_head,
        n_layers=n_layers,
        n_heads=n_heads,
        vocab_size=vocab_size,
        n_draws=n_draws,
        seed=seed,
        ln_treatment="folded" if layer_norm else "none",
    )
