"""Repeated blocks against a slow re-derivation, token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral.data import repeated_blocks


def draw(seed=0, **options):
    values = {"batch_size": 8, "seq_length": 30, "vocab_size": 20, "min_period": 3, "max_period": 7} | options
    return repeated_blocks(**values, generator=torch.Generator().manual_seed(seed), device="cpu")


def first_unrepeated(row, period):
    """Return the shortest prefix after which the row repeats with the period, reading from the end."""
    start = len(row) - period
    while start > 0 and row[start - 1] == row[start - 1 + period]:
        start -= 1
    return start


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_structure_of_distinct_blocks_is_exact(data):
    low = data.draw(st.integers(1, 6))
    high = data.draw(st.integers(low, 9))
    max_prefix = data.draw(st.integers(0, 5))
    seq_length = data.draw(st.integers(max_prefix + high, 40))
    batch = draw(
        data.draw(st.integers(0, 2**31)),
        seq_length=seq_length,
        min_period=low,
        max_period=high,
        max_prefix=max_prefix,
        distinct_tokens=True,
        period_per=data.draw(st.sampled_from(["sequence", "batch"])),
    )
    for b, row in enumerate(batch.tokens.tolist()):
        period = int(batch.period[b])
        assert low <= period <= high
        # With distinct tokens the last one to be new marks the end of prefix and block.
        n_new = max(i for i, token in enumerate(row) if token not in row[:i]) + 1
        prefix = n_new - period
        if seq_length > n_new:  # else the block is not repeated at all and its start does not show
            assert prefix == first_unrepeated(row, period)
        assert 0 <= prefix <= max_prefix
        assert len(set(row)) == n_new
        logits = range(seq_length - 1)
        assert batch.predictable[b].tolist() == [t >= n_new for t in logits]
        if seq_length > n_new:
            assert batch.boundary[b].tolist() == [t == n_new - 1 for t in logits]
        for t in logits:
            if batch.predictable[b, t]:  # the oracle: what followed this token before
                earlier = row[:t].index(row[t])
                assert row[earlier + 1] == row[t + 1]


def test_independent_tokens_repeat_with_the_period():
    batch = draw(vocab_size=3, batch_size=50)
    for row, period in zip(batch.tokens.tolist(), batch.period.tolist(), strict=True):
        assert row[period:] == row[:-period]


def test_two_full_copies_have_one_prediction_less_than_the_block():
    batch = draw(seq_length=14, min_period=7)
    assert batch.predictable.sum(dim=1).tolist() == [6] * 8
    assert batch.boundary.sum(dim=1).tolist() == [1] * 8


def test_periods_prefixes_and_tokens_are_uniform():
    n = 20_000
    batch = draw(batch_size=n, max_prefix=3)
    prefix = batch.boundary.int().argmax(dim=1) + 1 - batch.period
    cases = [(batch.period - 3, 5, n), (prefix, 4, n), (batch.tokens[:, :3].flatten(), 20, 3 * n)]
    for values, n_values, n_draws in cases:
        share = torch.bincount(values, minlength=n_values) / n_draws
        standard_error = (1 / n_values * (1 - 1 / n_values) / n_draws) ** 0.5
        assert len(share) == n_values
        assert (share - 1 / n_values).abs().max() < 5 * standard_error


def test_one_period_per_batch():
    per_batch = [draw(seed, period_per="batch").period for seed in range(20)]
    assert all(len(period.unique()) == 1 for period in per_batch)
    assert len({int(period[0]) for period in per_batch}) > 1
    assert len(draw(batch_size=100).period.unique()) == 5


@pytest.mark.parametrize("distinct_tokens", [False, True])
def test_token_weights_decide_which_tokens_occur(distinct_tokens):
    weights = torch.tensor([0.0, 6.0, 3.0, 1.0])
    batch = draw(
        batch_size=20_000,
        vocab_size=4,
        min_period=3,
        max_period=3,
        distinct_tokens=distinct_tokens,
        token_weights=weights,
    )
    # The first of successive draws without replacement follows the weights as well.
    share = torch.bincount(batch.tokens[:, 0], minlength=4) / 20_000
    assert (share - weights / 10).abs().max() < 5 * 0.5 / 20_000**0.5
    assert share[0] == 0
    assert 0 not in batch.tokens


def test_same_generator_state_same_batch():
    assert draw(1).sha256() == draw(1).sha256() != draw(2).sha256()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_period": 8}, "8..7 are no range"),
        ({"min_period": 0}, "0..7 are no range"),
        ({"max_prefix": 24}, "must lie within seq_length 30"),
        ({"max_prefix": -1}, "must lie within"),
        ({"period_per": "epoch"}, "use 'sequence' or 'batch'"),
        ({"vocab_size": 6, "distinct_tokens": True}, "7 distinct tokens requested from 6"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw(**options)
