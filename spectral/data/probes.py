"""Held-out probe batches: fixed for a run, a pure function of its configuration.

Every probe has its own stream, so none of them perturbs training or another probe. All are drawn on the CPU, which
gives the same tokens (and the same hash) whichever device trains. A repeated probe draws one period per sequence even
where training draws one per batch: a probe with a single period would judge a whole run by it.
"""

from jaxtyping import Float64
from torch import Tensor

from spectral.config import RunConfig
from spectral.data.batch import TokenBatch
from spectral.data.distribution import draw_sequences
from spectral.data.repeated import repeated_blocks
from spectral.data.text import ByteCorpus
from spectral.randomness import torch_generator


def period_range(config: RunConfig) -> tuple[int, int]:
    """Return the shortest and the longest block of the repeated probes, each showing at least two full copies.

    With `data="repeated"` the training range, cut at seq_length // 2; other kinds have no period and get
    4 .. seq_length // 4.
    """
    low, high = (config.min_period, config.max_period) if config.data == "repeated" else (4, config.seq_length // 4)
    high = max(1, min(high, config.seq_length // 2))
    return min(low, high), high


def curvature_probe(config: RunConfig, *, corpus: ByteCorpus | None = None) -> TokenBatch:
    """Draw the sequences on which the Hessian is taken: `eigen_probe_size` held-out ones as in training."""
    return _in_distribution(config, "curvature", config.eigen_probe_size, corpus)


def behaviour_probe(config: RunConfig, *, corpus: ByteCorpus | None = None) -> TokenBatch:
    """Draw `behaviour_probe_size` held-out sequences for losses and accuracies, as in training.

    Text has no position whose next byte is known for certain, so with `data="text"` the probe repeats blocks of
    independent bytes, drawn with the frequencies of the training text: what is left to predict from is the repeat.
    """
    if config.data != "text":
        return _in_distribution(config, "behaviour", config.behaviour_probe_size, corpus)
    low, high = period_range(config)
    return _blocks(config, "behaviour", low, high, corpus, distinct=False)


def repeat_probe(config: RunConfig, *, corpus: ByteCorpus | None = None) -> TokenBatch:
    """Draw the sequences on which heads are scored: repeated blocks of distinct tokens, two copies or more.

    Periods vary from sequence to sequence inside `period_range`, so that attention at a fixed offset does not pass
    for induction. Blocks are no longer than there are tokens to fill them with; where even the shortest one has to
    repeat a token, tokens are independent instead.
    """
    low, high = period_range(config)
    n_usable = _n_usable(config, corpus)
    distinct = low <= n_usable
    return _blocks(config, "repeat", low, min(high, n_usable) if distinct else high, corpus, distinct=distinct)


def period_probe(config: RunConfig, period: int, *, corpus: ByteCorpus | None = None) -> TokenBatch:
    """Draw repeated blocks of one length, of distinct tokens where there are enough of them."""
    distinct = period <= _n_usable(config, corpus)
    return _blocks(config, f"period/{period}", period, period, corpus, distinct=distinct)


def attention_probe(config: RunConfig, *, corpus: ByteCorpus | None = None) -> TokenBatch | None:
    """Draw the one sequence whose attention patterns are stored, or None with `attention_positions` 0.

    It has min(seq_length, attention_positions) tokens and a block of a quarter of that, so four copies show.
    """
    if config.attention_positions == 0:
        return None
    n_positions = min(config.seq_length, config.attention_positions)
    period = max(1, min(n_positions // 4, _n_usable(config, corpus)))
    return _blocks(config, "attention", period, period, corpus, distinct=True, batch_size=1, n_positions=n_positions)


def _in_distribution(config: RunConfig, name: str, size: int, corpus: ByteCorpus | None) -> TokenBatch:
    return draw_sequences(
        config,
        batch_size=size,
        period_per="sequence",
        split="held_out",
        corpus=corpus,
        generator=torch_generator(config.seed, f"probe/{name}"),
        device="cpu",
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
) -> TokenBatch:
    return repeated_blocks(
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


def _token_weights(corpus: ByteCorpus | None) -> Float64[Tensor, " vocab"] | None:
    """Return the byte frequencies: a byte that training never shows has an untrained embedding and proves nothing."""
    return None if corpus is None else corpus.byte_frequencies


def _n_usable(config: RunConfig, corpus: ByteCorpus | None) -> int:
    """Return how many different tokens a probe may use."""
    weights = _token_weights(corpus)
    return config.vocab_size if weights is None else int((weights > 0).sum())
