"""Models whose curvature and circuits the suite measures."""

from spectral.models.disentangled import (
    DisentangledTransformer,
    head_subsets,
    subset_products,
    window_offsets,
)
from spectral.models.disentangled_full import FullDisentangledTransformer
from spectral.models.last_token import LastTokenLoss, last_token_criterion, last_token_loss, last_token_losses
from spectral.models.transformer import (
    Transformer,
    next_token_criterion,
    next_token_logits,
    next_token_loss,
    rotary_angles,
)

__all__ = [
    "DisentangledTransformer",
    "FullDisentangledTransformer",
    "LastTokenLoss",
    "Transformer",
    "head_subsets",
    "last_token_criterion",
    "last_token_loss",
    "last_token_losses",
    "next_token_criterion",
    "next_token_logits",
    "next_token_loss",
    "rotary_angles",
    "subset_products",
    "window_offsets",
]
