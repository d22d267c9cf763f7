"""Planted patterns: short token patterns that recur at random places in random tokens.

Unlike repeated blocks there is no period: the gap between two occurrences is random, so attention at a fixed offset
is of no use and only a match of content predicts the next token.
"""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from spectral.data.batch import TokenBatch


def planted_patterns(
    *,
    batch_size: int,
    seq_length: int,
    vocab_size: int,
    n_patterns: int,
    min_pattern_length: int,
    max_pattern_length: int,
    n_repeats_per_seq: int,
    generator: torch.Generator,
    device: torch.device | str,
) -> TokenBatch:
    """Draw sequences of random tokens in which each of several patterns occurs at least twice.

    Every sequence has its own patterns of independent uniform tokens, with lengths uniform in
    min_pattern_length..max_pattern_length and wanted occurrences uniform in 2..n_repeats_per_seq. Where the wanted
    total exceeds seq_length, surplus occurrences (third and later) are dropped in random order until the rest fits.
    Occurrences lie in random order, without overlap, at uniform gaps; uniform random tokens fill the rest.

    `predictable` is True at t when tokens t and t+1 lie in the same occurrence and that pattern has occurred earlier
    in the sequence. The last token of an occurrence predicts nothing. `boundary` is all False, `period` None.

    Args:
        batch_size: number of sequences.
        seq_length: tokens per sequence; at least 2 * n_patterns * max_pattern_length.
        vocab_size: tokens are drawn from 0..vocab_size-1.
        n_patterns: different patterns per sequence.
        min_pattern_length: shortest pattern, in tokens; at least 2.
        max_pattern_length: longest pattern, in tokens.
        n_repeats_per_seq: most occurrences of one pattern; at least 2.
        generator: source of all draws; the work is done on its device.
        device: where the result lives.

    Raises:
        ValueError: sizes that cannot be met; the message names the value, the rule and the remedy.
    """
    if not 2 <= min_pattern_length <= max_pattern_length:
        msg = f"pattern lengths {min_pattern_length}..{max_pattern_length} are no range; give 2 <= min <= max"
        raise ValueError(msg)
    if n_patterns < 1 or n_repeats_per_seq < 2:
        msg = f"n_patterns {n_patterns} must be at least 1 and n_repeats_per_seq {n_repeats_per_seq} at least 2"
        raise ValueError(msg)
    if 2 * n_patterns * max_pattern_length > seq_length:
        msg = (
            f"two occurrences of {n_patterns} patterns of {max_pattern_length} tokens do not fit into seq_length "
            f"{seq_length}; give at least {2 * n_patterns * max_pattern_length}"
        )
        raise ValueError(msg)
    on = generator.device
    pair = (batch_size, n_patterns)
    length = torch.randint(min_pattern_length, max_pattern_length + 1, pair, generator=generator, device=on)
    wanted = torch.randint(2, n_repeats_per_seq + 1, pair, generator=generator, device=on)
    patterns = torch.randint(0, vocab_size, (*pair, max_pattern_length), generator=generator, device=on)
    background = torch.randint(0, vocab_size, (batch_size, seq_length), generator=generator, device=on)

    # One slot per (pattern, occurrence), flattened; `kept` says which slots exist in this sequence.
    n_slots = n_patterns * n_repeats_per_seq
    slot_length = length.repeat_interleave(n_repeats_per_seq, dim=1)
    kept = _fitting_slots(slot_length, wanted, n_repeats_per_seq, seq_length, generator)
    key = torch.rand(batch_size, n_slots, generator=generator, device=on).masked_fill_(~kept, 2.0)
    order = key.argsort(dim=1)  # sequence order of the kept slots, the others behind them
    kept, slot_length = kept.gather(1, order), slot_length.gather(1, order)
    slot_pattern = order // n_repeats_per_seq

    # Sorted uniform cuts through the free tokens leave random gaps. The cuts of slots that do not exist go to the
    # end before sorting; left in, they would push all existing ones towards the start of the sequence.
    occupied = (slot_length * kept).cumsum(dim=1)
    n_free = seq_length - occupied[:, -1:]
    cut = (torch.rand(batch_size, n_slots, dtype=torch.float64, generator=generator, device=on) * (n_free + 1)).long()
    cut = cut.masked_fill_(~kept, seq_length).sort(dim=1).values
    start = torch.where(kept, cut + occupied - slot_length, seq_length)

    # The slot that position p belongs to, if any, is the last one to start at or before p.
    position = torch.arange(seq_length, device=on).expand(batch_size, seq_length).contiguous()
    slot = torch.searchsorted(start, position, right=True) - 1
    at = slot.clamp(min=0)
    offset = position - start.gather(1, at)
    rest = slot_length.gather(1, at) - offset  # tokens of the occurrence from here on
    inside = (slot >= 0) & (rest > 0)
    cell = slot_pattern.gather(1, at) * max_pattern_length + offset.clamp(0, max_pattern_length - 1)
    tokens = torch.where(inside, patterns.flatten(1).gather(1, cell), background)

    later = _is_later_occurrence(order, n_patterns)
    predictable = (inside & (rest > 1) & later.gather(1, at))[:, :-1]
    return TokenBatch(tokens=tokens, predictable=predictable, boundary=torch.zeros_like(predictable)).to(device)


def _fitting_slots(
    slot_length: Int64[Tensor, "batch slot"],
    wanted: Int64[Tensor, "batch pattern"],
    n_repeats: int,
    seq_length: int,
    generator: torch.Generator,
) -> Bool[Tensor, "batch slot"]:
    """Keep two slots of each pattern, then the other wanted ones in random order for as long as they fit."""
    occurrence = torch.arange(slot_length.shape[1], device=slot_length.device) % n_repeats
    required = occurrence < 2
    surplus = (occurrence < wanted.repeat_interleave(n_repeats, dim=1)) & ~required
    room = seq_length - (slot_length * required).sum(dim=1, keepdim=True)
    key = torch.rand(slot_length.shape, generator=generator, device=slot_length.device)
    order = key.masked_fill_(~surplus, 2.0).argsort(dim=1)
    spent = (slot_length * surplus).gather(1, order).cumsum(dim=1)
    fits = torch.empty_like(surplus).scatter_(1, order, spent <= room)
    return required | (surplus & fits)


def _is_later_occurrence(order: Int64[Tensor, "batch slot"], n_patterns: int) -> Bool[Tensor, "batch slot"]:
    """Tell for each slot in sequence order whether its pattern has occurred earlier in the sequence.

    The rank in sequence order decides, not the number under which an occurrence was drawn. Slots that do not exist
    rank last, so they are never the first of a pattern.
    """
    n_slots = order.shape[1]
    rank = order.argsort(dim=1)
    first = rank.view(-1, n_patterns, n_slots // n_patterns).amin(dim=2)
    pattern = order // (n_slots // n_patterns)
    return first.gather(1, pattern) < torch.arange(n_slots, device=order.device)
