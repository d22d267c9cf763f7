"""The whole chain on trained networks: float32 spectra against a dense float64 Hessian and against PyHessian."""

import copy

import pytest
import torch
from curvature_cases import dense_hessian
from torch import nn

from spectral.config import RunConfig
from spectral.curvature import HessianOperator, gradient_alignment, spectral_density, top_eigenpairs
from spectral.data import DataSource
from spectral.models import Transformer, next_token_loss

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


@pytest.fixture(scope="module")
def trained():
    """Return a transformer after 150 steps on repeated blocks, its probe, and the eigenvalues of the exact Hessian."""
    config = RunConfig(
        vocab_size=10, seq_length=24, min_period=4, max_period=8, n_heads=2, d_model=12, batch_size=32,
        eigen_probe_size=16,
    )  # fmt: skip
    model, source = Transformer.from_config(config), DataSource(config, "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        optimizer.zero_grad()
        next_token_loss(model, source.batch(step).tokens).backward()
        optimizer.step()
    tokens = source.curvature_probe.tokens
    H = dense_hessian(copy.deepcopy(model).double().eval(), next_token_loss, tokens)
    return model, tokens, H


@pytest.mark.parametrize("seed", range(5))
def test_float32_spectra_equal_the_exact_ones_with_few_products(trained, seed):
    model, tokens, H = trained
    truth = torch.linalg.eigvalsh(H)
    spectrum = top_eigenpairs(HessianOperator(model, next_token_loss, tokens), seed=seed)
    assert spectrum.converged, spectrum.reason
    assert spectrum.n_products <= 100
    top, bottom = truth.flip(0)[:10], truth[:3]
    assert float(((spectrum.top.values - top).abs() / top).max()) <= 1e-3
    assert float(((spectrum.bottom.values - bottom).abs() / bottom.abs()).max()) <= 2e-2
    assert ((spectrum.top.values - top).abs() <= spectrum.top.error_bounds).all()
    assert ((spectrum.bottom.values - bottom).abs() <= spectrum.bottom.error_bounds).all()


def test_trace_and_alignment_of_the_trained_model_match_the_dense_hessian(trained):
    model, tokens, H = trained
    operator = HessianOperator(model, next_token_loss, tokens)
    spectrum = top_eigenpairs(operator)
    assert abs(spectrum.trace - float(H.trace())) <= 4 * spectrum.trace_standard_error
    vectors = torch.linalg.eigh(H)[1][:, -10:]
    g = operator.gradient.double()
    share = float((vectors.T @ g).square().sum() / g.square().sum())
    assert gradient_alignment(spectrum, operator.gradient).total == pytest.approx(share, abs=0.02)


def test_the_density_of_the_trained_model_has_the_moments_of_the_dense_hessian(trained):
    model, tokens, H = trained
    n = len(H)
    density = spectral_density(HessianOperator(model, next_token_loss, tokens), n_probes=12, n_steps=12)
    second = (density.weights * density.nodes**2).sum(1)
    assert abs(density.mean - float(H.trace()) / n) <= 5 * density.mean_standard_error
    assert abs(float(second.mean()) - float(H.square().sum()) / n) <= 5 * float(second.std()) / 12**0.5


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")
def test_pyhessian_agrees_on_the_largest_eigenvalue_of_a_well_separated_model():
    pyhessian = pytest.importorskip("pyhessian")
    rng = torch.Generator().manual_seed(0)
    X, y = torch.randn(200, 6, generator=rng), torch.randint(0, 3, (200,), generator=rng)
    X[:, 0] *= 4  # one direction dominates, which is what power iteration needs
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    criterion = nn.CrossEntropyLoss()
    ours = top_eigenpairs(HessianOperator(model, lambda m, b: criterion(m(b[0]), b[1]), (X, y)), k=2)
    assert float(ours.top.values[0]) > 1.2 * float(ours.top.values[1])
    theirs, _ = pyhessian.hessian(model, criterion, data=(X, y), cuda=False).eigenvalues(maxIter=500, tol=1e-6, top_n=1)
    # Its last iterate is one step behind its stopping test, hence 1e-3 and not 1e-6.
    assert theirs[0] == pytest.approx(float(ours.top.values[0]), rel=1e-3)
