"""Predicted curves against integrated equations, and the conserved quantities against trained models."""

import math

import numpy as np
import pytest
import torch

from spectral.gih.compression import compress
from spectral.gih.engine import subset_forces
from spectral.gih.layer_two import LayerTwo
from spectral.gih.stages import Stage, StageTrainer
from spectral.gih.theory import (
    conserved,
    exclusion_rates,
    growth_rate,
    logarithmic_growth,
    offset_gaps,
    selection_descent,
    selection_flow,
)
from spectral.models import DisentangledTransformer

FORCES = torch.tensor([0.0, 0.0575, 0.0614, 0.0681, 0.0555, 0.0652, 0.0772], dtype=torch.float64)
START = torch.full((7,), 0.01, dtype=torch.float64)


@pytest.fixture(scope="module")
def model_and_chains():
    from spectral.data import markov_chains

    batch = markov_chains(
        batch_size=500,
        seq_length=101,
        vocab_size=3,
        parents=(1, 2),
        alpha=0.1,
        generator=torch.Generator().manual_seed(0),
        device="cpu",
    )
    model = DisentangledTransformer(vocab_size=3)
    return model, compress(batch.tokens, model)


def sharp(model, subset="110", **values):
    with torch.no_grad():
        model.c.zero_()[model.subset_names.index(subset)] = 0.03
        for name, value in values.items():
            getattr(model, name).fill_(value)
    return model


def test_descent_with_a_small_rate_follows_the_flow():
    lr = 0.001
    descent = selection_descent(FORCES, c=START, a=0.01, lr=lr, epochs=20_000)
    flow = selection_flow(FORCES, c=START, a=0.01, times=descent.times * lr)
    assert float((descent.shares - flow.shares).abs().max()) < 2e-3
    assert float(descent.sum_squares[-1] / descent.sum_squares[0]) == pytest.approx(1, abs=1e-3)
    assert bool((descent.sum_squares.diff() >= 0).all())


def test_competitors_of_the_flow_vanish_at_the_exclusion_rates():
    times = torch.tensor([3.0, 5.0])
    curve = selection_flow(FORCES, c=START, a=0.01, times=times)
    log_ratio = (curve.shares[:, -1:] / curve.shares).log()
    rates = exclusion_rates(FORCES, a=0.01, sum_squares=float(START @ START))
    torch.testing.assert_close((log_ratio[1] - log_ratio[0]) / 2, rates)


def test_the_rate_of_the_late_stage_at_lr_one():
    rate = exclusion_rates(FORCES, a=0.01, sum_squares=1.18e-3)[3]
    assert float(rate) == pytest.approx(0.308, abs=0.002)


def test_the_predicted_descent_is_the_one_that_the_engine_makes(model_and_chains):
    model, chains = model_and_chains
    model = DisentangledTransformer(vocab_size=3)
    predicted = selection_descent(subset_forces(model, chains), c=model.c, a=0.01, lr=1.0, epochs=30)
    trainer = StageTrainer(model, chains, Stage(train=("c",), epochs=30))
    for epoch in (1, 2, 5, 10, 30):
        trainer.advance(epoch)
        torch.testing.assert_close(model.subset_shares().detach(), predicted.shares[epoch], rtol=0, atol=5e-3)
    assert float(conserved(model).sum_squares) == pytest.approx(float(predicted.sum_squares[-1]), rel=5e-3)


def test_logarithmic_growth_solves_its_equation():
    times = np.array([0.0, 1.0, 10.0, 1e3, 1e8])
    x = logarithmic_growth(times, start=0.5, rate=0.2)
    assert x[0] == pytest.approx(0.5)
    np.testing.assert_allclose(np.exp(x), math.exp(0.5) + 0.2 * times)
    later = logarithmic_growth(np.array([1e8, 1e9]), start=0.5, rate=0.2)
    assert later[1] - later[0] == pytest.approx(math.log(10), abs=1e-6)
    assert growth_rate(times, x) == pytest.approx(0.2)


def test_a_rate_needs_a_decade():
    with pytest.raises(ValueError, match="measure longer"):
        growth_rate(np.array([1.0, 2.0]), np.array([1.0, 2.0]))


def test_head_sums_are_kept_by_descent_and_by_the_flow(model_and_chains):
    _, chains = model_and_chains
    for stage in (Stage(train=("w",), epochs=20, lr=100.0), Stage(train=("w",), flow_time=1e4)):
        model = sharp(DisentangledTransformer(vocab_size=3))
        StageTrainer(model, chains, stage).advance(stage.epochs or stage.flow_time)
        torch.testing.assert_close(conserved(model).head_sums, torch.full((3,), 3.2, dtype=torch.float64))
        assert float(offset_gaps(model.w.detach(), model.offsets)[0]) > 2.95
        assert float(offset_gaps(model.w.detach(), model.offsets)[2]) == pytest.approx(2.9)


@pytest.mark.parametrize("loss", ["double_softmax", "nll"])
def test_the_tabulated_stage_three_is_the_trained_one(model_and_chains, loss):
    _, chains = model_and_chains
    model = sharp(DisentangledTransformer(vocab_size=3), w=0.1)
    with torch.no_grad():
        model.w[:, 0] = 5.0
    table = LayerTwo(model, chains, loss=loss)
    assert table.error < 1e-9
    predicted = table.descend(epochs=300)
    trainer = StageTrainer(model, chains, Stage(train=("a",), epochs=300), loss=loss)
    for epoch in (1, 10, 100, 300):
        trainer.advance(epoch)
        assert model.a.item() == pytest.approx(predicted[epoch], abs=1e-8)


def test_the_time_of_the_flow_is_that_of_the_integrated_flow(model_and_chains):
    _, chains = model_and_chains
    model = sharp(DisentangledTransformer(vocab_size=3))
    table = LayerTwo(model, chains)
    time = float(table.flow_times(np.linspace(0.5, 5.0, 20))[-1])
    StageTrainer(model, chains, Stage(train=("a",), flow_time=time)).advance(time)
    assert model.a.item() == pytest.approx(5.0, abs=1e-4)


def test_a_flow_never_passes_a_rest_point(model_and_chains):
    _, chains = model_and_chains
    times = LayerTwo(sharp(DisentangledTransformer(vocab_size=3)), chains, loss="nll").flow_times(np.array([1.0, 15.0]))
    assert np.isfinite(times[0])
    assert np.isinf(times[1])


def test_a_table_that_is_too_short_is_refused(model_and_chains):
    _, chains = model_and_chains
    model = sharp(DisentangledTransformer(vocab_size=3))
    with pytest.raises(ValueError, match="larger a_max"):
        LayerTwo(model, chains, a_max=1.0).descend(epochs=100)
    with pytest.raises(ValueError, match="above it"):
        LayerTwo(model, chains, a_max=0.0)
