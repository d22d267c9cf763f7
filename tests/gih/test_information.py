"""Information against enumeration over positions, limiting cases, and the values of the default chains."""

import itertools

import pytest
import torch

from spectral.gih.information import dirichlet_tables, subset_information
from spectral.models import head_subsets


def tables_of(n, vocab_size=3, n_parents=2, alpha=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return dirichlet_tables(n, vocab_size=vocab_size, n_parents=n_parents, alpha=alpha, generator=generator)


@pytest.fixture(scope="module")
def default():
    """Return the information of the default chains, all subsets of three heads."""
    return subset_information(tables_of(4000), parents=(1, 2), subsets=head_subsets(3, 3), n_positions=98)


def test_default_chains_have_the_published_information(default):
    order = ["000", "001", "010", "011", "100", "101", "110", "111"]
    expected = dict(zip(order, [0, 0.160, 0.183, 0.184, 0.160, 0.173, 0.218, 0.192], strict=True))
    ordinary = dict(zip(order, [0, 0.532, 0.661, 1.025, 0.589, 0.941, 1.310, 1.310], strict=True))
    for name, value, other in zip(order, default.modified.tolist(), default.ordinary.tolist(), strict=True):
        assert value == pytest.approx(expected[name], abs=0.007)
        assert other == pytest.approx(ordinary[name], abs=0.03)


def test_information_set_is_the_parents_although_the_ordinary_information_ties(default):
    assert default.information_set == (1, 2)
    lead, error = default.margin
    assert lead > 10 * error
    assert default.ordinary[7] == pytest.approx(float(default.ordinary[6]), rel=1e-9)
    assert default.modified[7] < default.modified[6]


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3, 1.0])
def test_information_set_is_the_same_for_every_concentration(alpha):
    for degree in (2, 3):
        found = subset_information(
            tables_of(2000, alpha=alpha), parents=(1, 2), subsets=head_subsets(3, degree), n_positions=98
        )
        assert found.information_set == (1, 2)


def test_information_by_enumerating_every_word():
    tables, length = tables_of(1, alpha=0.5), 6
    subsets = head_subsets(2, 2)
    modified, ordinary = torch.zeros(2, 4, 9, dtype=torch.float64)
    for start, first in enumerate(itertools.product(range(3), repeat=2)):
        law = torch.zeros(3, 3, 3, dtype=torch.float64)  # oldest to newest
        for rest in itertools.product(range(3), repeat=length - 2):
            word, probability = first + rest, 1 / (length - 2)
            for s in range(2, length):
                probability *= float(tables[0, word[s - 1] * 3 + word[s - 2], word[s]])
            for s in range(2, length):
                law[word[s - 2], word[s - 1], word[s]] += probability
        token = law.sum((0, 1))
        # rows of head_subsets: 00, 01 (offset 2), 10 (offset 1), 11
        for i, marginal in enumerate([token[None], law.sum(1), law.sum(0), law.reshape(9, 3)]):
            marginal = marginal[marginal.sum(1) > 0]
            context = marginal.sum(1)
            chi = ((marginal / context[:, None]) ** 2 / token).sum(1) - 1
            modified[i, start], ordinary[i, start] = (context**2 * chi).sum(), (context * chi).sum()
    found = subset_information(tables, parents=(1, 2), subsets=subsets, n_positions=length - 2)
    torch.testing.assert_close(found.modified, modified.mean(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.ordinary, ordinary.mean(1), rtol=0, atol=1e-12)


def test_independent_tokens_carry_no_information():
    tables = torch.tensor([0.2, 0.3, 0.5]).expand(1, 9, 3)
    found = subset_information(tables, parents=(1, 2), subsets=head_subsets(3, 3))
    torch.testing.assert_close(found.modified, torch.zeros(8, dtype=torch.float64), atol=1e-7, rtol=0)
    torch.testing.assert_close(found.ordinary, torch.zeros(8, dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_cycle_tells_everything():
    cycle = torch.tensor([[[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]])
    found = subset_information(cycle, parents=(1,), subsets=head_subsets(2, 2))
    # chi2 = V - 1 in every context; V contexts of probability 1 / V, whichever offsets are known
    torch.testing.assert_close(found.modified[1:], torch.full((3,), 2 / 3, dtype=torch.float64))
    torch.testing.assert_close(found.ordinary[1:], torch.full((3,), 2.0, dtype=torch.float64))


def test_ordinary_information_never_decreases_with_the_subset():
    found = subset_information(tables_of(20, n_parents=1), parents=(2,), subsets=head_subsets(3, 3))
    for (i, one), (j, other) in itertools.product(enumerate(found.subsets), repeat=2):
        if bool((one <= other).all()):
            assert found.ordinary[i] <= found.ordinary[j] + 1e-9


def test_parents_apart_are_found_at_their_offsets():
    found = subset_information(tables_of(1000), parents=(1, 3), subsets=head_subsets(3, 2), n_positions=97)
    assert found.information_set == (1, 3)


def test_one_chain_has_no_standard_error():
    found = subset_information(tables_of(1), parents=(1, 2), subsets=head_subsets(2, 1))
    assert bool(found.modified_se.isnan().all())


def test_requests_without_an_answer_are_refused():
    with pytest.raises(ValueError, match="one offset"):
        subset_information(tables_of(1), parents=(1, 2), subsets=head_subsets(3, 2), offsets=(1, 2))
    with pytest.raises(ValueError, match="reduce the largest offset"):
        subset_information(tables_of(1), parents=(1, 2), subsets=head_subsets(3, 2), offsets=(1, 2, 30))
    with pytest.raises(ValueError, match="must be positive"):
        tables_of(1, alpha=0.0)
