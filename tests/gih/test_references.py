"""Observers of the held-out chains, and the information that the theory expects to be found."""

import math

import pytest
import torch

from spectral.gih import GIHConfig, draw_chains, references
from spectral.gih.expected import expected_information
from spectral.gih.references import least_double_softmax


def test_the_observers_are_ordered_and_known_in_closed_form():
    config = GIHConfig(n_sample=6_000, n_validation=4_000)
    found = {one.name: one for one in references(config)}
    assert list(found) == ["uniform", "unigram", "bayes", "truth"]
    assert found["uniform"].double_softmax == pytest.approx(math.log(3))
    assert found["uniform"].nll == pytest.approx(math.log(3))
    # entropy of the true conditional and cross-entropy of the posterior mean at the published setting
    assert found["truth"].nll == pytest.approx(0.190, abs=0.02)
    assert found["bayes"].nll == pytest.approx(0.216, abs=0.02)
    assert found["truth"].accuracy == pytest.approx(0.922, abs=0.015)
    assert found["truth"].nll < found["bayes"].nll < found["unigram"].nll < found["uniform"].nll


def test_the_unigram_observer_counts_tokens():
    config = GIHConfig(n_sample=30, n_validation=10, seq_length=20)
    tokens = draw_chains(config).tokens[20:]
    expected = []
    for row in tokens.tolist():
        counts = [row[:-1].count(token) + 0.1 for token in range(3)]
        expected.append(-math.log(counts[row[-1]] / sum(counts)))
    found = {one.name: one for one in references(config)}["unigram"]
    assert found.nll == pytest.approx(sum(expected) / 10)


def test_without_held_out_chains_the_training_ones_are_used():
    config = GIHConfig(n_sample=50, n_validation=0, batch_size=0)
    assert references(config)[0].nll == pytest.approx(math.log(3))


def test_the_least_double_softmax_loss_is_that_of_a_right_one_hot_prediction():
    y = torch.tensor([0.0, 1.0, 0.0])
    assert least_double_softmax(3) == pytest.approx(float(y.logsumexp(0) - 1))


def test_the_expected_information_names_the_parents():
    assert expected_information(GIHConfig()).information_set == (1, 2)
    assert expected_information(GIHConfig(parents=(1, 3))).information_set == (1, 3)
    assert expected_information(GIHConfig(vocab_size=12, parents=(1, 2, 3))) is None  # too long to sum exactly
