"""Laws of words against enumeration, against the stationary eigenvector, and against drawn chains."""

import itertools

import pytest
import torch

from spectral.behaviour.ngrams import oracle_log_probabilities
from spectral.data import (
    chain_entropy_rate,
    dirichlet,
    entropy_rate,
    longer_words,
    markov_chains,
    occupation_law,
    occupation_laws_by_start,
    stationary_distribution,
    word_rows,
)


def tables_of(n_parents, vocab_size=3, alpha=1.0, batch=4, seed=0):
    concentration = torch.full((batch, vocab_size**n_parents, vocab_size), alpha, dtype=torch.float64)
    return dirichlet(concentration, generator=torch.Generator().manual_seed(seed))


def word_probability(table, word, parents, vocab_size):
    """Return P(word) of a chain with a uniform start, one token after the other."""
    reach, probability = max(parents), vocab_size ** -float(max(parents))
    for s in range(reach, len(word)):
        context = 0
        for lag in parents:
            context = context * vocab_size + word[s - lag]
        probability *= float(table[context, word[s]])
    return probability


@pytest.mark.parametrize("parents", [(1,), (1, 2), (2, 1), (1, 3), (2,)])
def test_law_of_the_first_words_is_the_product_of_the_rows(parents):
    vocab_size, length = 3, 5
    table = tables_of(len(parents), vocab_size)[:1]
    rows = word_rows(table, parents=parents)
    law = longer_words(occupation_law(rows, n_words=1), rows, length=length)[0]
    words = itertools.product(range(vocab_size), repeat=length)
    exact = torch.tensor([word_probability(table[0], word, parents, vocab_size) for word in words])
    torch.testing.assert_close(law, exact.double(), rtol=1e-6, atol=0)
    assert law.sum() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("parents", [(1, 2), (1, 3)])
def test_occupation_is_the_mean_over_the_steps(parents):
    table = tables_of(2)[:1]
    rows = word_rows(table, parents=parents)
    reach, n_words = max(parents), 4
    whole = longer_words(occupation_law(rows, n_words=1), rows, length=reach + n_words - 1)[0]
    whole = whole.view([3] * (reach + n_words - 1))
    marginals = []
    for s in range(n_words):
        other = [d for d in range(whole.ndim) if not s <= d < s + reach]
        marginals.append(whole.sum(other).flatten() if other else whole.flatten())
    torch.testing.assert_close(occupation_law(rows, n_words=n_words)[0], torch.stack(marginals).mean(0))


@pytest.mark.parametrize("n_words", [1, 5, None])
def test_laws_by_start_average_to_the_law_of_a_uniform_start(n_words):
    rows = word_rows(tables_of(2), parents=(1, 3))
    laws = occupation_laws_by_start(rows, n_words=n_words)
    torch.testing.assert_close(laws.mean(1), occupation_law(rows, n_words=n_words))
    if n_words == 1:
        assert torch.equal(laws[0], torch.eye(27, dtype=torch.float64))


def test_words_shorter_than_the_memory_keep_their_oldest_tokens():
    rows = word_rows(tables_of(2), parents=(1, 2))
    law = occupation_law(rows, n_words=3)
    torch.testing.assert_close(longer_words(law, rows, length=1), law.view(4, 3, 3).sum(2))


def test_long_run_law_is_the_stationary_distribution():
    tables = tables_of(1, vocab_size=5)
    torch.testing.assert_close(occupation_law(word_rows(tables)), stationary_distribution(tables))
    torch.testing.assert_close(chain_entropy_rate(tables), entropy_rate(tables))


@pytest.mark.parametrize("alpha", [1.0, 0.1, 0.01])
def test_long_run_law_is_kept_by_a_step_however_nearly_reducible(alpha):
    rows = word_rows(tables_of(2, alpha=alpha, batch=50), parents=(1, 2))
    law = occupation_law(rows)
    following = longer_words(law, rows, length=3).view(50, 3, 9).sum(1)
    torch.testing.assert_close(law, following, rtol=0, atol=1e-10)


def test_long_run_law_of_a_cycle_and_of_two_closed_classes():
    cycle = torch.tensor([[[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]])
    torch.testing.assert_close(occupation_law(word_rows(cycle)), torch.full((1, 3), 1 / 3, dtype=torch.float64))
    split = torch.eye(2)[None]
    torch.testing.assert_close(occupation_law(word_rows(split)), torch.full((1, 2), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("parents", [(1, 2), (1, 3)])
def test_stationary_start_has_the_same_law_at_every_position(parents):
    n = 30_000
    batch = markov_chains(
        batch_size=n,
        seq_length=8,
        vocab_size=2,
        parents=parents,
        alpha=0.5,
        generator=torch.Generator().manual_seed(1),
        device="cpu",
        return_tables=True,
        start="stationary",
    )
    rows = word_rows(batch.tables, parents=parents)
    reach = max(parents)
    expected = occupation_law(rows).view(n, 2, -1).sum(-1)[:, 1]
    for s in (0, reach - 1, 7):
        difference = batch.tokens[:, s].double() - expected
        assert abs(difference.mean()) < 5 * difference.std() / n**0.5
    oracle = oracle_log_probabilities(batch.tokens, batch.tables, parents=parents)
    loss = -oracle[:, 6].gather(1, batch.tokens[:, 7:]).squeeze(1)
    gap = loss - chain_entropy_rate(batch.tables, parents=parents)
    assert abs(gap.mean()) < 5 * gap.std() / n**0.5


def test_stationary_start_marks_contexts_that_occurred_before():
    options = {"batch_size": 5, "seq_length": 30, "vocab_size": 3, "parents": (1, 2), "alpha": 0.3, "device": "cpu"}
    batch = markov_chains(**options, generator=torch.Generator().manual_seed(0), start="stationary")
    assert batch.tables is None
    for row, mask in zip(batch.tokens.tolist(), batch.predictable.tolist(), strict=True):
        contexts = set()
        for t in range(29):
            context = (row[t], row[t - 1]) if t else None
            assert mask[t] == (context in contexts)
            contexts |= {context} if context else set()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: word_rows(torch.full((1, 3, 3), 1 / 3), parents=(1, 2)), "give the parents"),
        (lambda: word_rows(torch.full((1, 9, 3), 1 / 3), parents=(1, 9)), "at most 4096"),
        (lambda: occupation_law(word_rows(torch.full((1, 3, 3), 1 / 3)), n_words=0), "at least 1"),
    ],
)
def test_laws_that_do_not_exist_are_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_unknown_start_is_refused():
    with pytest.raises(Exception, match="start"):
        markov_chains(
            batch_size=1,
            seq_length=4,
            vocab_size=2,
            alpha=1.0,
            generator=torch.Generator(),
            device="cpu",
            start="burn-in",
        )
