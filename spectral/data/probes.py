"""Held-out probe batches: fixed for a run, a pure function of its configuration.

Every probe has its own stream, so none of them perturbs training or another probe. All are drawn on the CPU, which
gives the same tokens (and the same hash) whichever device trains. A repeated probe draws one period per sequence even
where training draws one per batch: a probe with a single period would judge a whole run by it.
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from spectral.config import RunConfig
from spectral.data.batch import TokenBatch
from spectral.data.distribution import draw_sequences, draw_training_sequences
from spectral.data.ngram import MarkovBatch
from spectral.data.probe_sequences import (
    ProbeBatch,
    no_repeat_sequences,
    random_gaps,
    repeated_token_blocks,
    shuffled_segments,
)
from spectral.data.repeated import repeated_blocks
from spectral.data.text import ByteCorpus
from spectral.randomness import torch_generator

CIRCUIT_PROBES = ("repeat", "repeat_ood", "random_gap", "shuffled_segments", "repeated_tokens", "no_repeat")
MAX_TABLE_ENTRIES = 2**24
"""Largest transition tables, of all sequences of a probe together, that are drawn: 128 MiB."""


def period_range(config: RunConfig) -> tuple[int, int]:
    """Return the shortest and the longest block of the repeated probes, each showing at least two full copies.

    With `data="repeated"` the training range, cut at seq_length // 2; other kinds have no period and get
    4 .. seq_length // 4.
    """
    low, high = (config.min_period, config.max_period) if config.data == "repeated" else (4, config.seq_length // 4)
    high = max(1, min(high, config.seq_length // 2))
    return min(low, high), high


def curvature_probe(config: RunConfig, *, corpus: ByteCorpus | None = None) -> TokenBatch:
    """Draw the sequences on which the Hessian is taken: `eigen_probe_size` held-out ones as in training.

    Those of a control run are of its own kind, as the Hessian is that of the training loss.
    """
    return draw_training_sequences(
        config,
        batch_size=config.eigen_probe_size,
        period_per="sequence",
        split="held_out",
        corpus=corpus,
        generator=torch_generator(config.seed, "probe/curvature"),
        device="cpu",
    )


def behaviour_probe(config: RunConfig, *, corpus: ByteCorpus | None = None) -> TokenBatch:
    """Draw `behaviour_probe_size` held-out sequences for losses and accuracies, as in training.

    Text has no position whose next byte is known for certain, so with `data="text"` the probe repeats blocks of
    independent bytes, drawn with the frequencies of the training text: what is left to predict from is the repeat.
    """
    if config.data != "text":
        return _in_distribution(config, "behaviour", config.behaviour_probe_size, corpus)
    low, high = period_range(config)
    return _blocks(config, "behaviour", low, high, corpus, distinct=False)


def chain_probe(config: RunConfig, n_sequences: int) -> MarkovBatch | None:
    """Return the first sequences of the behaviour probe with their transition tables; None unless `data="ngram"`.

    Tables of more than `MAX_TABLE_ENTRIES` numbers in all are left out.
    """
    if config.data != "ngram":
        return None
    size = config.behaviour_probe_size
    entries = size * config.vocab_size ** (len(config.ngram_parents) + 1)
    # The tokens do not depend on whether tables are asked for, so these are the sequences of the behaviour probe.
    chains = _in_distribution(config, "behaviour", size, None, return_tables=entries <= MAX_TABLE_ENTRIES)
    assert isinstance(chains, MarkovBatch)
    return chains.first(n_sequences)


def repeat_probe(config: RunConfig, *, corpus: ByteCorpus | None = None) -> ProbeBatch:
    """Draw the sequences on which heads are scored: repeated blocks of distinct tokens, two copies or more.

    Periods vary from sequence to sequence inside `period_range`, so that attention at a fixed offset does not pass
    for induction. Blocks are no longer than there are tokens to fill them with; where even the shortest one has to
    repeat a token, tokens are independent instead.
    """
    low, high = period_range(config)
    n_usable = _n_usable(config, corpus)
    distinct = low <= n_usable
    return _blocks(config, "repeat", low, min(high, n_usable) if distinct else high, corpus, distinct=distinct)


def period_probe(config: RunConfig, period: int, *, corpus: ByteCorpus | None = None) -> ProbeBatch:
    """Draw repeated blocks of one length, of distinct tokens where there are enough of them."""
    distinct = period <= _n_usable(config, corpus)
    return _blocks(config, f"period/{period}", period, period, corpus, distinct=distinct)


def attention_probe(config: RunConfig, *, corpus: ByteCorpus | None = None) -> ProbeBatch | None:
    """Draw the one sequence whose attention patterns are stored, or None with `attention_positions` 0.

    It has min(seq_length, attention_positions) tokens and a block of a quarter of that, so four copies show.
    """
    if config.attention_positions == 0:
        return None
    n_positions = min(config.seq_length, config.attention_positions)
    period = max(1, min(n_positions // 4, _n_usable(config, corpus)))
    return _blocks(config, "attention", period, period, corpus, distinct=True, batch_size=1, n_positions=n_positions)


def circuit_probe(config: RunConfig, kind: str, *, corpus: ByteCorpus | None = None) -> ProbeBatch | None:
    """Draw the probe of one kind, or None where the sizes of the run leave no room for it.

    Kinds, all of `behaviour_probe_size` sequences of at most `seq_length` tokens:
    - `repeat`: the `repeat_probe`.
    - `repeat_ood`: repeats with the periods of `resolved_probe_periods` that training does not have.
    - `random_gap`: two copies at distances that are no training period, in meaningless tokens.
    - `shuffled_segments`: the second copy has its segments in another order.
    - `repeated_tokens`: repeats, as in training, with one token of the block occurring twice.
    - `no_repeat`: nothing to predict.

    Raises:
        ValueError: another kind.
    """
    if kind == "repeat":
        return repeat_probe(config, corpus=corpus)
    if kind not in CIRCUIT_PROBES:
        msg = f"probe {kind!r} is unknown; use one of {', '.join(CIRCUIT_PROBES)}"
        raise ValueError(msg)
    size, length, n_usable = config.behaviour_probe_size, config.seq_length, _n_usable(config, corpus)
    weights = _token_weights(corpus)
    generator = torch_generator(config.seed, f"probe/{kind}")
    if kind == "no_repeat":
        return no_repeat_sequences(
            batch_size=size,
            seq_length=length,
            vocab_size=config.vocab_size,
            token_weights=weights,
            generator=generator,
        )
    if kind == "shuffled_segments":
        block = min(length // 2, n_usable)
        segment = 4 if block >= 12 else 2
        if block < 2 * segment:
            return None
        return shuffled_segments(
            batch_size=size,
            segment_length=segment,
            n_segments=block // segment,
            vocab_size=config.vocab_size,
            token_weights=weights,
            generator=generator,
        )
    if kind == "random_gap":
        block, offsets = _unseen_offsets(config, n_usable)
        if not offsets:
            return None
        return random_gaps(
            batch_size=size,
            seq_length=length,
            vocab_size=config.vocab_size,
            block_length=block,
            offsets=offsets,
            token_weights=weights,
            generator=generator,
        )
    low, high = period_range(config)
    if kind == "repeat_ood":
        n_doubles, trained = 0, _training_periods(config)
        periods = [p for p in config.resolved_probe_periods if p <= min(length // 2, n_usable) and p not in trained]
        periods = periods if trained else []
    else:
        n_doubles, periods = 1, list(range(max(low, 4), min(high, n_usable) + 1))
    if not periods:
        return None
    return repeated_token_blocks(
        batch_size=size,
        seq_length=length,
        vocab_size=config.vocab_size,
        periods=periods,
        n_doubles=n_doubles,
        token_weights=weights,
        generator=generator,
        kind=kind,
    )


def _training_periods(config: RunConfig) -> range:
    """Return the block lengths that training shows; none unless it repeats blocks."""
    return range(config.min_period, config.max_period + 1) if config.data == "repeated" else range(0)


def _unseen_offsets(config: RunConfig, n_usable: int) -> tuple[int, list[int]]:
    """Return a block length and the distances between two copies of it that training does not have, if any."""
    trained, length = _training_periods(config), config.seq_length
    preferred = min(config.min_period // 2 if trained else 8, length // 4, n_usable - 1)
    for block in (preferred, 2):  # a short block leaves more distances
        if 2 <= block < n_usable:
            offsets = [offset for offset in range(block + 1, length - block + 1) if offset not in trained]
            if offsets:
                return block, offsets
    return 0, []


def _in_distribution(
    config: RunConfig, name: str, size: int, corpus: ByteCorpus | None, *, return_tables: bool = False
) -> TokenBatch:
    return draw_sequences(
        config,
        batch_size=size,
        period_per="sequence",
        split="held_out",
        corpus=corpus,
        generator=torch_generator(config.seed, f"probe/{name}"),
        device="cpu",
        return_tables=return_tables,
    )


def _blocks(
    config: RunConfig,
    name: str,
    low: int,
    high: int,
    corpus: ByteCorpus | None,
    *,
    distinct: bool,
    batch_size: int | None = None,
    n_positions: int | None = None,
) -> ProbeBatch:
    batch = repeated_blocks(
        batch_size=config.behaviour_probe_size if batch_size is None else batch_size,
        seq_length=config.seq_length if n_positions is None else n_positions,
        vocab_size=config.vocab_size,
        min_period=low,
        max_period=high,
        distinct_tokens=distinct,
        token_weights=_token_weights(corpus),
        generator=torch_generator(config.seed, f"probe/{name}"),
        device="cpu",
    )
    logit = torch.arange(batch.predictable.shape[1])
    nothing = torch.zeros_like(batch.predictable)
    assert batch.period is not None
    return ProbeBatch(
        kind=name,
        tokens=batch.tokens,
        predictable=batch.predictable,
        boundary=batch.boundary,
        period=batch.period,
        ceiling=1.0 if distinct else float("nan"),
        start=torch.zeros_like(batch.period),
        offset=batch.period,
        copy_index=logit // batch.period[:, None],
        ambiguous=nothing,  # tokens that recur by chance are not marked
        competitor=torch.full_like(nothing, -1, dtype=torch.int64),
    )


def _token_weights(corpus: ByteCorpus | None) -> Float64[Tensor, " vocab"] | None:
    """Return the byte frequencies: a byte that training never shows has an untrained embedding and proves nothing."""
    return None if corpus is None else corpus.byte_frequencies


def _n_usable(config: RunConfig, corpus: ByteCorpus | None) -> int:
    """Return how many different tokens a probe may use."""
    weights = _token_weights(corpus)
    return config.vocab_size if weights is None else int((weights > 0).sum())
