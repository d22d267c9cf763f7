"""Markov chains: the urn against closed forms, tables against the sequences, pi against pi P = pi."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral.data import context_codes, dirichlet, entropy_rate, markov_chains, stationary_distribution
from spectral.data.ngram import _urn_walk


def draw(seed=0, **options):
    values = {"batch_size": 20, "seq_length": 60, "vocab_size": 5, "alpha": 0.3} | options
    return markov_chains(**values, generator=torch.Generator().manual_seed(seed), device="cpu")


def log_evidence(row, vocab_size, alpha):
    """Return log P(row) of a first-order chain with its Dirichlet rows integrated out: a product of Beta functions."""
    total = -math.log(vocab_size)
    for state in range(vocab_size):
        counts = [sum(pair == (state, j) for pair in itertools.pairwise(row)) for j in range(vocab_size)]
        total += sum(math.lgamma(alpha + n) - math.lgamma(alpha) for n in counts)
        total += math.lgamma(vocab_size * alpha) - math.lgamma(vocab_size * alpha + sum(counts))
    return total


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_short_sequences_have_the_dirichlet_markov_probabilities(alpha):
    n = 40_000
    batch = draw(batch_size=n, seq_length=5, vocab_size=2, alpha=alpha)
    share = torch.bincount((batch.tokens * 2 ** torch.arange(4, -1, -1)).sum(dim=1), minlength=32) / n
    exact = torch.tensor([math.exp(log_evidence(row, 2, alpha)) for row in itertools.product(range(2), repeat=5)])
    assert exact.sum() == pytest.approx(1)
    assert ((share - exact).abs() < 5 * (exact * (1 - exact) / n).sqrt()).all()


@pytest.mark.parametrize("lags", [(1,), (3,), (1, 2), (2, 5), (1, 2, 3)])
@pytest.mark.parametrize("vocab_size", [3, 8])
def test_walk_equals_a_slow_urn_fed_with_the_same_draws(lags, vocab_size):
    rng = np.random.default_rng(0)
    seq_length, alpha = 50, 0.2
    uniform = rng.random((seq_length, 6))
    fresh = rng.integers(0, vocab_size, (seq_length, 6))
    tokens, seen = _urn_walk(uniform, fresh, vocab_size, lags, alpha)
    for b in range(6):
        row, urns = fresh[: max(lags), b].tolist(), {}
        for s in range(max(lags), seq_length):
            urn = urns.setdefault(tuple(row[s - lag] for lag in lags), [])
            assert seen[s, b] == bool(urn)
            pick = int(uniform[s, b] * (len(urn) + vocab_size * alpha))
            row.append(urn[pick] if pick < len(urn) else int(fresh[s, b]))
            urn.append(row[-1])
        assert tokens[:, b].tolist() == row


@pytest.mark.parametrize("parents", [(1,), (2,), (1, 3)])
def test_predictable_says_that_the_context_has_occurred_before(parents):
    batch = draw(parents=parents)
    for row, mask in zip(batch.tokens.tolist(), batch.predictable.tolist(), strict=True):
        contexts = {}
        for t in range(len(row) - 1):
            context = tuple(row[t + 1 - lag] for lag in parents) if t + 1 >= max(parents) else None
            assert mask[t] == (context is not None and context in contexts)
            contexts[context] = True
    assert batch.tables is None
    assert not batch.boundary.any()


def test_context_code_has_the_first_parent_in_front():
    tokens = torch.tensor([[3, 1, 4, 1, 2]])
    assert context_codes(tokens, vocab_size=10, parents=(1, 3)).tolist() == [[43, 11]]


def test_transition_frequencies_follow_the_returned_table():
    batch = draw(batch_size=3, seq_length=4000, vocab_size=3, alpha=1.0, return_tables=True)
    for row, table in zip(batch.tokens, batch.tables, strict=True):
        counts = torch.zeros(3, 3, dtype=torch.float64)
        for i, j in itertools.pairwise(row.tolist()):
            counts[i, j] += 1
        n = counts.sum(dim=1, keepdim=True)
        standard_error = (table * (1 - table) / n).sqrt()
        assert ((counts / n - table).abs() < 5 * standard_error + 1e-3).all()


def test_tables_are_neither_fitted_to_their_sequences_nor_foreign_to_them():
    # Given the table, P[x_t, x_t+1] - sum_j P[x_t, j]^2 has mean 0 at every step. Tables fitted to the counts score
    # above 0, tables drawn without regard to the sequence below.
    batch = draw(batch_size=3000, seq_length=12, vocab_size=4, return_tables=True)
    context, target = batch.tokens[:, :-1], batch.tokens[:, 1:]
    rows = batch.tables.gather(1, context[..., None].expand(-1, -1, 4))
    hit = rows.gather(2, target[..., None]).squeeze(2)
    second, third = (rows**2).sum(dim=2), (rows**3).sum(dim=2)
    z = (hit - second).sum() / (third - second**2).sum().sqrt()
    assert abs(float(z)) < 4


@pytest.mark.parametrize("parents", [(1,), (1, 2)])
def test_tables_have_the_spread_of_their_prior(parents):
    alpha, vocab_size = 0.3, 4
    batch = draw(batch_size=2000, vocab_size=vocab_size, alpha=alpha, parents=parents, return_tables=True)
    assert batch.tables.shape == (2000, vocab_size ** len(parents), vocab_size)
    purity = (batch.tables**2).sum(dim=2).mean(dim=1)  # of sequences, which are independent
    expected = (alpha + 1) / (vocab_size * alpha + 1)
    assert float(purity.mean()) == pytest.approx(expected, abs=5 * float(purity.std()) / 2000**0.5)


def test_asking_for_tables_leaves_the_tokens_unchanged():
    assert draw(3).sha256() == draw(3, return_tables=True).sha256() != draw(4).sha256()


def test_moving_a_batch_moves_its_tables():
    assert draw(return_tables=True).to("meta").tables.device.type == "meta"


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 0.01, 1.0, 50.0])
def test_dirichlet_rows_sum_to_one_at_any_concentration(alpha):
    rows = dirichlet(torch.full((2000, 5), alpha, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(rows).all()
    assert (rows.sum(dim=1) - 1).abs().max() < 1e-12
    assert (rows.mean(dim=0) - 0.2).abs().max() < 5 * 0.4 / 2000**0.5
    expected = (alpha + 1) / (5 * alpha + 1)
    bound = (expected * (1 - expected) / 2000) ** 0.5  # no variable in [0, 1] has a larger standard error
    assert float((rows**2).sum(dim=1).mean()) == pytest.approx(expected, abs=5 * bound)


def test_sequences_of_tiny_alpha_are_nearly_deterministic():
    batch = draw(alpha=1e-4)
    for row, mask in zip(batch.tokens.tolist(), batch.predictable.tolist(), strict=True):
        wrong = [t for t in range(59) if mask[t] and row[t + 1] != row[row.index(row[t]) + 1]]
        assert len(wrong) <= 1


def test_two_state_chain_has_the_textbook_stationary_distribution():
    P = torch.tensor([[0.9, 0.1], [0.4, 0.6]], dtype=torch.float64)
    pi = stationary_distribution(P)
    assert pi.tolist() == pytest.approx([0.8, 0.2])
    entropies = [-sum(p * math.log(p) for p in row) for row in P.tolist()]
    assert float(entropy_rate(P)) == pytest.approx(0.8 * entropies[0] + 0.2 * entropies[1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**31), st.sampled_from([0.3, 1.0, 5.0]))
def test_pi_is_left_invariant(n_states, seed, alpha):
    generator = torch.Generator().manual_seed(seed)
    P = dirichlet(torch.full((4, n_states, n_states), alpha, dtype=torch.float64), generator=generator)
    pi = stationary_distribution(P)
    assert ((pi[:, None] @ P).squeeze(1) - pi).abs().max() < 1e-9
    assert (pi.sum(dim=1) - 1).abs().max() < 1e-12
    assert (pi >= 0).all()
    assert (entropy_rate(P) <= math.log(n_states) + 1e-12).all()


def test_periodic_and_absorbing_chains_have_their_distribution():
    cycle = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.float64)
    assert stationary_distribution(cycle).tolist() == pytest.approx([1 / 3] * 3)
    assert float(entropy_rate(cycle)) == pytest.approx(0, abs=1e-12)
    absorbing = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    assert stationary_distribution(absorbing).tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize(
    ("P", "message"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], "more than one stationary distribution"),
        ([[0.5, 0.1], [0.5, 0.9]], "is it transposed"),
        ([[1.5, -0.5], [0.5, 0.5]], "non-negative"),
    ],
)
def test_what_is_no_usable_transition_matrix_is_refused(P, message):
    with pytest.raises(ValueError, match=message):
        stationary_distribution(torch.tensor(P, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parents": ()}, "give different lags"),
        ({"parents": (0,)}, "give different lags"),
        ({"parents": (1, 1)}, "give different lags"),
        ({"parents": (60,)}, "between 1 and seq_length - 1 = 59"),
        ({"alpha": 0.0}, "alpha is 0.0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw(**options)
