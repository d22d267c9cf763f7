"""One optimizer update of a run as a function of (weights, optimizer state, configuration, step)."""

import math

import torch

from spectral.config import RunConfig
from spectral.data import DataSource
from spectral.models import Transformer, next_token_loss
from spectral.randomness import derive_seed
from spectral.training.schedule import learning_rate


def training_update(
    model: Transformer, optimizer: torch.optim.Optimizer, source: DataSource, config: RunConfig, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do the update that follows `step` completed ones; the model is in training mode.

    Returns:
        The batch's loss before the update (nats, detached), and the gradient norm before clipping.
    """
    if config.dropout:
        torch.manual_seed(derive_seed(config.seed, "dropout", step))
    if config.use_lr_schedule:
        for group in optimizer.param_groups:
            group["lr"] = rate_of(config, step)
    batch = source.batch(step)
    loss = next_token_loss(model, batch.loss_input)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    largest = config.grad_clip or math.inf
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), largest)
    optimizer.step()
    return loss.detach(), norm


def rate_of(config: RunConfig, step: int) -> float:
    """Return the learning rate of the update that follows `step` completed ones."""
    return learning_rate(
        step,
        lr=config.lr,
        num_steps=config.num_steps,
        use_schedule=config.use_lr_schedule,
        warmup_steps=config.warmup_steps,
    )
