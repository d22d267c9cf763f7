"""The training distribution that a configuration describes.

Training batches and in-distribution probes are drawn by the same function from different streams, so a probe is held
out and yet never drifts away from what the model is trained on.
"""

from typing import Any

import torch

from spectral.config import RunConfig
from spectral.data.batch import TokenBatch
from spectral.data.control import with_shuffled_targets, without_repeats
from spectral.data.ngram import markov_chains
from spectral.data.patterns import planted_patterns
from spectral.data.repeated import repeated_blocks
from spectral.data.text import ByteCorpus, Split


def draw_training_sequences(config: RunConfig, **how: Any) -> TokenBatch:
    """Draw sequences as training sees them: those of `draw_sequences`, or of the control run that `config` asks for."""
    if config.control == "no_repeats":
        return without_repeats(
            batch_size=how["batch_size"],
            seq_length=config.seq_length,
            vocab_size=config.vocab_size,
            generator=how["generator"],
            device=how["device"],
        )
    drawn = draw_sequences(config, **how)
    return with_shuffled_targets(drawn, how["generator"]) if config.control == "shuffled_targets" else drawn


def draw_sequences(
    config: RunConfig,
    *,
    batch_size: int,
    period_per: str,
    split: Split,
    corpus: ByteCorpus | None,
    generator: torch.Generator,
    device: torch.device | str,
    return_tables: bool = False,
) -> TokenBatch:
    """Draw sequences of the kind `config.data`.

    Args:
        config: which kind, and its sizes.
        batch_size: number of sequences.
        period_per: as in `repeated_blocks`; other kinds ignore it.
        split: part of the text to read; the other kinds have no end and ignore it.
        corpus: the text; only `data="text"` needs it.
        generator: source of all draws.
        device: where the result lives.
        return_tables: as in `markov_chains`; the other kinds have none and ignore it.
    """
    if config.data == "text":
        if corpus is None:
            msg = "config.data is 'text' but no corpus was given; pass ByteCorpus.from_path(config.text_path)"
            raise ValueError(msg)
        return corpus.windows(batch_size, config.seq_length, split=split, generator=generator, device=device)
    if config.data == "repeated":
        return repeated_blocks(
            batch_size=batch_size,
            seq_length=config.seq_length,
            vocab_size=config.vocab_size,
            min_period=config.min_period,
            max_period=config.max_period,
            period_per=period_per,
            max_prefix=config.max_prefix,
            generator=generator,
            device=device,
        )
    if config.data == "patterns":
        return planted_patterns(
            batch_size=batch_size,
            seq_length=config.seq_length,
            vocab_size=config.vocab_size,
            n_patterns=config.n_patterns,
            min_pattern_length=config.min_pattern_length,
            max_pattern_length=config.max_pattern_length,
            n_repeats_per_seq=config.n_repeats_per_seq,
            generator=generator,
            device=device,
        )
    return markov_chains(
        batch_size=batch_size,
        seq_length=config.seq_length,
        vocab_size=config.vocab_size,
        parents=config.ngram_parents,
        alpha=config.ngram_alpha,
        generator=generator,
        device=device,
        return_tables=return_tables,
    )
