"""What weight-space scores look like at random: mean and spread over Gaussian weights of a run's own sizes."""

from dataclasses import dataclass

import torch

from spectral.circuits.weights import weight_scores
from spectral.randomness import torch_generator

_SINGLE_HEAD = ("ov_copying_score", "qk_matching_score")
_PAIR_OF_HEADS = ("k_composition_matching", "q_composition", "k_composition", "v_composition")


@dataclass(frozen=True, kw_only=True)
class NullMoments:
    """Mean and standard deviation of one score over independent Gaussian weights.

    Attributes:
        mean: average over the draws, unit of the score.
        sd: standard deviation over the draws, unit of the score.
        n_draws: number of independent draws; the mean is known to sd / sqrt(n_draws).
    """

    mean: float
    sd: float
    n_draws: int


def weight_score_null(
    d_model: int, d_head: int, *, vocab_size: int = 256, n_draws: int = 200, seed: int = 0
) -> dict[str, NullMoments]:
    """Return the null of every weight-space score for one head, or one pair of heads, with random Gaussian weights.

    Keys: `ov_copying_score`, `qk_matching_score`, `k_composition_matching` (mean 0), `q_composition`, `k_composition`,
    `v_composition` (mean close to 1 / sqrt(d_model)). The scores ignore the scale of the weights, so unit variance
    stands for any initialisation of independent Gaussian entries.

    These are moments of one head, no p-values. The largest score over many heads or pairs must be compared with the
    null of that maximum.

    Args:
        d_model: width of the residual stream.
        d_head: width of one head.
        vocab_size: rows of the embedding; the null hardly depends on it.
        n_draws: number of draws.
        seed: the run's seed; the draws have a random stream of their own.
    """
    if min(d_model, d_head, vocab_size) < 1 or n_draws < 2:
        msg = f"d_model={d_model}, d_head={d_head}, vocab_size={vocab_size}, n_draws={n_draws}; "
        msg += "give sizes of at least 1 and at least 2 draws"
        raise ValueError(msg)
    generator = torch_generator(seed, "weight_score_null")
    shapes = {"W_E": (vocab_size, d_model), "W_U": (d_model, vocab_size), "W_O": (2, 1, d_head, d_model)}
    shapes |= {name: (2, 1, d_model, d_head) for name in ("W_Q", "W_K", "W_V")}
    draws: dict[str, list[float]] = {name: [] for name in (*_SINGLE_HEAD, *_PAIR_OF_HEADS)}
    for _ in range(n_draws):
        weights = {k: torch.randn(v, generator=generator, dtype=torch.float64) for k, v in shapes.items()}
        scores = weight_scores(**weights)  # two layers of one head: the code path of a real snapshot
        for name in _SINGLE_HEAD:
            draws[name].append(float(scores[name][0, 0]))
        for name in _PAIR_OF_HEADS:
            draws[name].append(float(scores[name][0, 0, 1, 0]))
    return {name: _moments(torch.tensor(values, dtype=torch.float64)) for name, values in draws.items()}


def _moments(values: torch.Tensor) -> NullMoments:
    return NullMoments(mean=float(values.mean()), sd=float(values.std()), n_draws=values.numel())
