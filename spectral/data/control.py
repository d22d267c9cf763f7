"""Control data: repeated blocks with what an induction head could learn from taken out.

`no_repeats` trains on independent tokens: nothing in the context tells the next one. `shuffled_targets` shows the
blocks as they are but asks at every position for the token that follows at some other position of some other
sequence. Both keep the frequencies of tokens and targets. Shuffling within a sequence would not do: that still rewards
guessing among the tokens in the context, which a head learns, abruptly.
"""

import dataclasses

import torch
from jaxtyping import Int64
from torch import Tensor

from spectral.data.batch import TokenBatch


def without_repeats(
    *, batch_size: int, seq_length: int, vocab_size: int, generator: torch.Generator, device: torch.device | str
) -> TokenBatch:
    """Draw sequences of independent, uniform tokens; no position is predictable."""
    on = generator.device
    tokens = torch.randint(0, vocab_size, (batch_size, seq_length), generator=generator, device=on)
    nowhere = torch.zeros(batch_size, seq_length - 1, dtype=torch.bool, device=on)
    return TokenBatch(tokens=tokens, predictable=nowhere, boundary=nowhere.clone()).to(device)


def with_shuffled_targets(batch: TokenBatch, generator: torch.Generator) -> TokenBatch:
    """Return the batch with its targets permuted over all positions of all sequences; no position is predictable.

    A target then depends on its context only through the finite number of targets in a batch.
    """
    following = batch.tokens[:, 1:]
    order = torch.randperm(following.numel(), generator=generator, device=generator.device).to(following.device)
    targets: Int64[Tensor, "batch position-1"] = following.reshape(-1)[order].reshape(following.shape)
    nowhere = torch.zeros_like(batch.predictable)
    return dataclasses.replace(batch, targets=targets, predictable=nowhere, boundary=nowhere)
