"""Reference predictions against those of every position, and a trained model over lengths and concentrations."""

import itertools

import pytest
import torch

from spectral.behaviour.ngrams import bayes_log_probabilities, oracle_log_probabilities
from spectral.gih import GIHConfig, LayerTwo, Stage, StageTrainer, compress, draw_chains, generalisation
from spectral.gih.generalisation import last_posterior_mean, last_table_row
from spectral.models import last_token_loss


@pytest.fixture(scope="module")
def trained():
    """Return a model that went through the three stages, with the flow in the second and the table in the third."""
    config = GIHConfig()
    model = config.build_model()
    chains = compress(draw_chains(config).tokens[:9000], model)
    StageTrainer(model, chains, Stage(train=("c",), epochs=300)).advance(300)
    StageTrainer(model, chains, Stage(train=("w",), flow_time=5e4)).advance(5e4)
    with torch.no_grad():
        model.a.fill_(LayerTwo(model, chains).descend(epochs=5000)[-1])
    return model


@pytest.mark.parametrize("parents", [(1,), (1, 2), (2, 4)])
def test_predictions_of_the_last_token_are_those_of_its_position(chains, parents):
    batch = chains(n=20, parents=parents, alpha=0.3, return_tables=True)
    bayes = bayes_log_probabilities(batch.tokens, n_states=3, alpha=0.3, parents=parents)[:, -2].exp()
    torch.testing.assert_close(last_posterior_mean(batch.tokens, vocab_size=3, parents=parents, alpha=0.3), bayes)
    oracle = oracle_log_probabilities(batch.tokens, batch.tables, parents=parents)[:, -2].exp()
    torch.testing.assert_close(last_table_row(batch.tokens, batch.tables, parents=parents), oracle)


def test_a_row_is_the_loss_on_the_suffixes():
    model = GIHConfig().build_model()
    long, short = generalisation(model, parents=(1, 2), alphas=(0.3,), lengths=(30, 12), n_chains=50)
    again = generalisation(model, parents=(1, 2), alphas=(0.3,), lengths=(30,), n_chains=50)[0]
    assert again == long
    assert short.oracle_double_softmax == long.oracle_double_softmax
    assert short.double_softmax != long.double_softmax
    assert long.excess == pytest.approx(long.double_softmax - long.oracle_double_softmax)


def test_end_loss_and_accuracy_are_those_of_the_best_observer(trained):
    (row,) = generalisation(trained, parents=(1, 2), alphas=(0.1,), lengths=(100,), n_chains=30_000)
    assert 0.636 < row.double_softmax < 0.656
    assert row.excess < 0.006
    assert row.accuracy == pytest.approx(0.916, abs=0.006)
    assert row.double_softmax > 0.620  # the best vector given the table has 0.627
    assert row.oracle_nll == pytest.approx(0.190, abs=0.01)


def test_end_loss_of_the_cross_entropy_is_close_to_that_of_the_best_observer():
    config = GIHConfig()
    model = config.build_model()
    tokens = draw_chains(config).tokens[:9000]
    compressed = compress(tokens, model)
    StageTrainer(model, compressed, Stage(train=("c",), epochs=300)).advance(300)
    StageTrainer(model, compressed, Stage(train=("w",), flow_time=5e8)).advance(5e8)
    with torch.no_grad():
        model.a.fill_(LayerTwo(model, compressed, loss="nll", eps=0.0).descend(epochs=20_000)[-1])
    loss = last_token_loss(model, tokens[:1000], loss="nll", eps=0.0)
    assert torch.isfinite(loss)
    (row,) = generalisation(model, parents=(1, 2), alphas=(0.1,), lengths=(100,), n_chains=30_000, eps=0.0)
    assert row.bayes_nll - 0.003 < row.nll < row.bayes_nll + 0.03


def test_loss_falls_with_the_length_and_rises_with_the_concentration(trained):
    lengths = (10, 30, 100, 300, 1000)
    rows = generalisation(trained, parents=(1, 2), lengths=lengths, n_chains=3000)
    by_alpha = [[row.double_softmax for row in rows if row.alpha == alpha] for alpha in (0.05, 0.1, 0.2)]
    for losses in by_alpha:
        assert all(later < earlier + 0.002 for earlier, later in itertools.pairwise(losses))
    for small, middle, large in zip(*by_alpha, strict=True):
        assert small < middle < large
    for row in rows:
        if row.seq_length == 1000:
            assert abs(row.excess) < 0.002 + 3 * row.excess_se


def test_lengths_without_a_context_are_refused():
    with pytest.raises(ValueError, match="largest parent"):
        generalisation(GIHConfig().build_model(), parents=(1, 2), lengths=(1,))
