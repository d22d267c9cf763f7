"""Losses of models that predict one token per sequence, the one after the last position."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

LastTokenLoss = Literal["double_softmax", "nll"]

PROBABILITY_FLOOR = 1e-12  # without it, a target that never occurred in its sequence would have an infinite loss


def last_token_criterion(
    probabilities: Float[Tensor, "batch vocab"],
    targets: Int[Tensor, " batch"],
    *,
    loss: LastTokenLoss = "double_softmax",
    eps: float = 1e-4,
) -> Float[Tensor, ""]:
    """Return the mean loss of predicted probabilities, in nats.

    `nll`: -ln(y_target + eps), at least 1e-12 under the logarithm: the cross-entropy of the prediction.
    `double_softmax`: -y_target + ln sum_e exp(y_e), the cross-entropy that takes the probabilities y for logits. Range
    [ln(1 + (V - 1) / e), ...], ln V for the uniform vector. It is no proper score: the best y is nearly one-hot at the
    most probable token. The two are different quantities; never put them on one axis.

    Args:
        probabilities: rows that sum to 1.
        targets: the tokens that came.
        loss: which of the two.
        eps: added under the logarithm of `nll`.
    """
    return last_token_losses(probabilities, targets, loss=loss, eps=eps).mean()


def last_token_losses(
    probabilities: Float[Tensor, "batch vocab"],
    targets: Int[Tensor, " batch"],
    *,
    loss: LastTokenLoss = "double_softmax",
    eps: float = 1e-4,
) -> Float[Tensor, " batch"]:
    """Return the loss of every sequence; `last_token_criterion` is their mean."""
    if loss not in ("double_softmax", "nll"):
        msg = f"loss={loss!r} is unknown; use double_softmax or nll"
        raise ValueError(msg)
    chosen = probabilities.gather(1, targets.long()[:, None]).squeeze(1)
    if loss == "nll":
        return -(chosen + eps).clamp(min=PROBABILITY_FLOOR).log()
    return torch.logsumexp(probabilities, dim=1) - chosen


def last_token_loss(
    model: nn.Module,
    tokens: Int[Tensor, "batch position"],
    *,
    loss: LastTokenLoss = "double_softmax",
    eps: float = 1e-4,
) -> Float[Tensor, ""]:
    """Return the mean loss of predicting the last token of every sequence from all tokens before it."""
    return last_token_criterion(model(tokens[:, :-1]), tokens[:, -1], loss=loss, eps=eps)
