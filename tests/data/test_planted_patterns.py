"""Planted patterns against a re-derivation of the patterns from the tokens alone.

With a trillion tokens none occurs twice by accident, so whatever recurs is a pattern.
"""

from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral.data import planted_patterns
from spectral.data.patterns import _is_later_occurrence

MANY = 10**12


def draw(seed=0, **options):
    values = {
        "batch_size": 40,
        "seq_length": 200,
        "vocab_size": MANY,
        "n_patterns": 3,
        "min_pattern_length": 2,
        "max_pattern_length": 6,
        "n_repeats_per_seq": 5,
    } | options
    return planted_patterns(**values, generator=torch.Generator().manual_seed(seed), device="cpu")


def recurring_patterns(row):
    """Return {first token: (length, starts)} of every pattern that recurs in a row of rarely colliding tokens."""
    places = defaultdict(list)
    for position, token in enumerate(row):
        places[token].append(position)
    places = {token: where for token, where in places.items() if len(where) > 1}

    def continues(token):  # the token that follows at every occurrence, if it occurs nowhere else
        after = {row[p + 1] if p + 1 < len(row) else None for p in places[token]}
        follower = after.pop() if len(after) == 1 else None
        return follower if follower in places and len(places[follower]) == len(places[token]) else None

    followers = {continues(token) for token in places}
    patterns = {}
    for token in places:
        if token not in followers:
            length, last = 1, token
            while (last := continues(last)) is not None:
                length += 1
            patterns[token] = (length, places[token])
    return patterns


def derived_mask(row):
    mask = [False] * (len(row) - 1)
    for length, starts in recurring_patterns(row).values():
        for start in sorted(starts)[1:]:  # sequence order decides which one is first
            mask[start : start + length - 1] = [True] * (length - 1)
    return mask


def test_patterns_recur_within_the_given_ranges_and_mask_is_exact():
    batch = draw()
    for row, mask in zip(batch.tokens.tolist(), batch.predictable.tolist(), strict=True):
        patterns = recurring_patterns(row)
        assert len(patterns) == 3
        taken = [p for length, starts in patterns.values() for start in starts for p in range(start, start + length)]
        assert len(taken) == len(set(taken))  # no overlap
        for length, starts in patterns.values():
            assert 2 <= length <= 6
            assert 2 <= len(starts) <= 5
        assert mask == derived_mask(row)
    assert not batch.boundary.any()
    assert batch.period is None


def test_every_predictable_position_can_be_looked_up():
    batch = draw(vocab_size=30)
    for row, mask in zip(batch.tokens.tolist(), batch.predictable.tolist(), strict=True):
        for t in (t for t, known in enumerate(mask) if known):
            assert any(row[s : s + 2] == row[t : t + 2] for s in range(t))


def test_lengths_and_counts_are_uniform_where_everything_fits():
    batch = draw(batch_size=1500, n_patterns=1, min_pattern_length=3, max_pattern_length=5)
    found = [next(iter(recurring_patterns(row).values())) for row in batch.tokens.tolist()]
    for values, allowed in (
        ([length for length, _ in found], (3, 4, 5)),
        ([len(s) for _, s in found], (2, 3, 4, 5)),
    ):
        assert set(values) == set(allowed)
        share = 1 / len(allowed)
        for value in allowed:
            assert values.count(value) / 1500 == pytest.approx(share, abs=5 * (share * (1 - share) / 1500) ** 0.5)


def test_occurrences_lie_evenly_over_the_sequence():
    # Few of many slots are in use; cuts of unused ones must not push the others to either side.
    batch = draw(batch_size=3000, n_patterns=2, n_repeats_per_seq=9, seq_length=150)
    middle = torch.tensor([sum(s) / len(s) + n / 2 for row in batch.tokens.tolist() for n, s in found_in(row)])
    assert abs(float(middle.mean()) - 75) < 5 * float(middle.std()) / len(middle) ** 0.5


def found_in(row):
    return recurring_patterns(row).values()


def test_occurrences_reach_both_ends_of_the_sequence():
    batch = draw(n_patterns=1, max_pattern_length=2, n_repeats_per_seq=2, seq_length=8, batch_size=300)
    starts = {start for row in batch.tokens.tolist() for _, where in found_in(row) for start in where}
    assert starts == set(range(7))


def test_order_of_occurrences_is_random():
    # Two patterns, twice each: of the 6 arrangements 4 interleave, so ABAB or ABBA follow the first in 2 of 3 cases.
    batch = draw(batch_size=1500, n_patterns=2, n_repeats_per_seq=2)
    interleaved = 0
    for row in batch.tokens.tolist():
        starts = sorted((start, name) for name, (_, where) in recurring_patterns(row).items() for start in where)
        interleaved += starts[0][1] != starts[1][1]
    assert interleaved / 1500 == pytest.approx(2 / 3, abs=5 * (2 / 9 / 1500) ** 0.5)


def test_two_occurrences_each_survive_in_the_tightest_sequence():
    batch = draw(seq_length=24, min_pattern_length=4, max_pattern_length=4, n_repeats_per_seq=9)
    assert all({row.count(token) for token in row} == {2} for row in batch.tokens.tolist())
    assert batch.predictable.sum(dim=1).tolist() == [9] * 40


def test_surplus_occurrences_fill_the_room_that_is_left():
    batch = draw(seq_length=28, min_pattern_length=4, max_pattern_length=4, n_repeats_per_seq=9)
    predicted = batch.predictable.sum(dim=1).tolist()
    # One surplus occurrence fits beside the six required ones; none is wanted in 1 of 512 sequences.
    assert set(predicted) <= {9, 12}
    assert predicted.count(12) >= 37


@pytest.mark.parametrize("swap", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 1, 0, 3]])
def test_first_occurrence_is_first_in_the_sequence_not_first_drawn(swap):
    # Slots 0..3 belong to pattern 0, slots 4..7 to pattern 1; the order they were drawn in must not matter.
    places = [1, 3, 4, 6]
    order = torch.tensor([4, -1, 5, -1, -1, 6, -1, 7])
    order[places] = torch.tensor(swap)
    later = _is_later_occurrence(order[None], 2)[0].tolist()
    assert later == [False, False, True, True, True, True, True, True]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_size_that_fits_is_generated_whole(data):
    n_patterns = data.draw(st.integers(1, 4))
    low = data.draw(st.integers(2, 4))
    high = data.draw(st.integers(low, 6))
    n_repeats = data.draw(st.integers(2, 7))
    seq_length = data.draw(st.integers(2 * n_patterns * high, 80))
    batch = draw(
        data.draw(st.integers(0, 2**31)),
        batch_size=3,
        seq_length=seq_length,
        n_patterns=n_patterns,
        min_pattern_length=low,
        max_pattern_length=high,
        n_repeats_per_seq=n_repeats,
    )
    assert batch.tokens.shape == (3, seq_length)
    assert ((batch.tokens >= 0) & (batch.tokens < MANY)).all()
    n_predictable = batch.predictable.sum(dim=1)
    assert (n_predictable >= n_patterns * (low - 1)).all()
    assert (n_predictable <= n_patterns * (n_repeats - 1) * (high - 1)).all()
    for row, mask in zip(batch.tokens.tolist(), batch.predictable.tolist(), strict=True):
        for t in (t for t, known in enumerate(mask) if known):
            assert row[t + 1] == row[row.index(row[t]) + 1]
            assert row.index(row[t]) < t


def test_same_generator_state_same_batch():
    assert draw(1).sha256() == draw(1).sha256() != draw(2).sha256()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_pattern_length": 1}, "1..6 are no range"),
        ({"min_pattern_length": 7}, "7..6 are no range"),
        ({"n_repeats_per_seq": 1}, "n_repeats_per_seq 1 at least 2"),
        ({"n_patterns": 0}, "n_patterns 0 must be at least 1"),
        ({"seq_length": 35}, "give at least 36"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw(**options)
