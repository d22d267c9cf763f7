"""Gradient alignment, overlaps and masses on hand-made spectra; the spectral density against dense moments."""

import math

import pytest
import torch
from curvature_cases import F64, DiagonalOperator, rotated, unit

from spectral.curvature import (
    block_mass,
    gradient_alignment,
    spectral_density,
    subspace_overlap,
    top_eigenpairs,
)
from spectral.errors import NonFiniteError


@pytest.fixture(scope="module")
def spectrum():
    """Return the spectrum of diag(9, 7, 5, 0, ..., 0, -4): eigenvectors are coordinate axes."""
    values = torch.zeros(20, **F64)
    values[:3], values[-1] = torch.tensor([9.0, 7, 5], **F64), -4.0
    return top_eigenpairs(DiagonalOperator(values), k=3, k_negative=1)


def test_alignment_is_the_squared_cosine_per_eigenvector(spectrum):
    gradient = torch.zeros(20, **F64)
    gradient[[0, 1, 10, 19]] = torch.tensor([3.0, -2.0, 1.0, 2.0], **F64)
    alignment = gradient_alignment(spectrum, gradient)
    torch.testing.assert_close(alignment.cos_squared, torch.tensor([9.0, 4, 0], **F64) / 18, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(alignment.cumulative, torch.tensor([9.0, 13, 13], **F64) / 18, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(alignment.bottom_cos_squared, torch.tensor([4.0], **F64) / 18, atol=1e-9, rtol=1e-9)
    assert alignment.gradient_norm == pytest.approx(math.sqrt(18))
    assert alignment.total == pytest.approx(13 / 18)


def test_alignment_ignores_the_length_and_sign_of_the_gradient(spectrum):
    gradient = unit(20, 0)
    one, other = gradient_alignment(spectrum, gradient), gradient_alignment(spectrum, -1e-6 * gradient)
    torch.testing.assert_close(one.cos_squared, other.cos_squared)
    assert other.gradient_norm == pytest.approx(1e-6)


def test_a_random_direction_has_the_chance_level_on_average(spectrum):
    rng = torch.Generator().manual_seed(0)
    samples = [gradient_alignment(spectrum, torch.randn(20, generator=rng, **F64)) for _ in range(2000)]
    mean = torch.stack([sample.cumulative for sample in samples]).mean(0)
    chance = samples[0].cumulative_chance
    assert samples[0].chance == 1 / 20
    assert chance.tolist() == [1 / 20, 2 / 20, 3 / 20]
    # Variance of a beta(i/2, (n-i)/2) variable; 5 standard errors.
    variance = 2 * chance * (1 - chance) / (20 + 2)
    assert ((mean - chance).abs() <= 5 * (variance / 2000).sqrt()).all()


def test_a_gradient_inside_the_top_space_never_exceeds_one_in_float32():
    operator = rotated([float(i) for i in range(60)], dtype=torch.float32)
    spectrum = top_eigenpairs(operator)
    for i in range(10):
        alignment = gradient_alignment(spectrum, 3 * spectrum.top.vectors[i])
        assert float(alignment.cos_squared[i]) == pytest.approx(1, abs=1e-5)
        assert (alignment.cumulative <= 1).all()
        assert (alignment.cos_squared >= 0).all()


def test_a_zero_gradient_has_no_direction(spectrum):
    alignment = gradient_alignment(spectrum, torch.zeros(20, **F64))
    assert torch.isnan(alignment.cos_squared).all()
    assert torch.isnan(alignment.bottom_cos_squared).all()
    assert alignment.gradient_norm == 0.0


def test_a_gradient_of_another_length_is_refused(spectrum):
    with pytest.raises(ValueError, match=r"use operator\.gradient"):
        gradient_alignment(spectrum, torch.ones(19, **F64))


def test_alignment_works_without_top_pairs():
    spectrum = top_eigenpairs(DiagonalOperator([1.0, 2, -3, 0]), k=0, k_negative=1)
    alignment = gradient_alignment(spectrum, torch.tensor([0.0, 0, 2, 0], **F64))
    assert alignment.total == 0.0
    assert alignment.bottom_cos_squared.tolist() == pytest.approx([1.0])


def test_overlap_is_one_inside_the_span_and_zero_across():
    Q = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0), **F64))[0].T
    mix = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), **F64))[0]
    torch.testing.assert_close(subspace_overlap(mix @ Q[:3], Q[:3]), torch.ones(3, **F64))
    torch.testing.assert_close(subspace_overlap(Q[5:7], Q[:3]), torch.zeros(2, **F64), atol=1e-14, rtol=0)
    half = (Q[:1] + Q[5:6]) / math.sqrt(2)
    torch.testing.assert_close(subspace_overlap(half, Q[:3]), torch.tensor([0.5], **F64))
    assert (subspace_overlap(Q[:3].float(), Q[:3].float()) <= 1).all()


def test_block_masses_of_a_partition_sum_to_one():
    vectors = torch.stack([unit(10, 0), unit(10, 1)])
    mass = block_mass(vectors, {"a": slice(0, 4), "b": torch.tensor([4, 6, 8]), "c": torch.tensor([5, 7, 9])})
    torch.testing.assert_close(sum(mass.values()), torch.ones(2, **F64))
    torch.testing.assert_close(mass["a"], vectors[:, :4].square().sum(1))
    torch.testing.assert_close(mass["b"], vectors[:, [4, 6, 8]].square().sum(1))


# density

DENSITIES = {
    "normal": torch.randn(400, generator=torch.Generator().manual_seed(0), **F64),
    "two points": torch.cat([torch.ones(100, **F64), -torch.ones(300, **F64)]),
    "zero": torch.zeros(50, **F64),
    "identity": torch.ones(50, **F64),
    "a single number": torch.tensor([-3.0], **F64),
    "outlier": torch.cat([torch.tensor([1e3], **F64), torch.linspace(-1, 1, 300, **F64)]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DENSITIES)
def test_quadrature_weights_are_real_and_sum_to_one(name, dtype):
    density = spectral_density(DiagonalOperator(DENSITIES[name], dtype), n_probes=3, n_steps=30)
    assert density.weights.dtype == torch.float64
    assert (density.weights >= 0).all()
    torch.testing.assert_close(density.weights.sum(1), torch.ones(3, **F64), rtol=1e-10, atol=0)
    low, high = DENSITIES[name].min(), DENSITIES[name].max()
    slack = 1e-5 * DENSITIES[name].abs().max()
    assert (density.nodes >= low - slack).all()
    assert (density.nodes <= high + slack).all()
    assert density.n_products == density.nodes.numel()


@pytest.mark.parametrize("name", DENSITIES)
def test_the_density_integrates_to_one(name):
    density = spectral_density(DiagonalOperator(DENSITIES[name]), n_probes=2, n_steps=40)
    assert float(torch.trapezoid(density.density, density.grid)) == pytest.approx(1, abs=1e-3)
    assert (density.density >= 0).all()


def test_quadrature_reproduces_the_moments_of_its_own_start_vector_exactly():
    # m steps integrate polynomials up to degree 2m-1 against the start vector's measure; with n probes averaged the
    # moments are those of the spectrum up to the probes' variance.
    values = DENSITIES["normal"]
    density = spectral_density(DiagonalOperator(values), n_probes=200, n_steps=6)
    for power in (1, 2, 3, 4):
        moments = (density.weights * density.nodes**power).sum(1)
        exact = float((values**power).mean())
        assert abs(float(moments.mean()) - exact) <= 5 * float(moments.std()) / math.sqrt(200)
    assert abs(density.mean - float(values.mean())) <= 5 * density.mean_standard_error


def test_a_full_run_reaches_every_eigenvalue():
    operator = rotated(torch.linspace(-2, 3, 25, **F64))
    density = spectral_density(operator, n_steps=100)
    torch.testing.assert_close(density.nodes[0], torch.linspace(-2, 3, 25, **F64), rtol=0, atol=1e-10)


def test_the_density_of_two_points_has_their_weights():
    density = spectral_density(DiagonalOperator(DENSITIES["two points"]), n_probes=60, n_steps=10)
    right = (density.weights * (density.nodes > 0)).sum(1)
    assert abs(float(right.mean()) - 0.25) <= 5 * float(right.std()) / math.sqrt(60)


def test_the_density_of_a_semicircle_is_the_semicircle():
    n = 600
    A = torch.randn(n, n, generator=torch.Generator().manual_seed(0), **F64) / math.sqrt(2 * n)
    operator = DiagonalOperator(torch.linalg.eigvalsh(A + A.T))
    density = spectral_density(operator, n_probes=10, n_steps=80, sigma=0.1)
    exact = (4 - density.grid**2).clamp_min(0).sqrt() / (2 * math.pi)
    inside = density.grid.abs() < 1.7
    assert float((density.density - exact)[inside].abs().max()) <= 0.05


def test_equal_seeds_give_equal_bits_and_more_probes_keep_the_first_ones():
    operator = DiagonalOperator(DENSITIES["normal"])
    one, again = (spectral_density(operator, n_probes=2, n_steps=20, seed=4) for _ in range(2))
    assert torch.equal(one.density, again.density)
    more = spectral_density(operator, n_probes=3, n_steps=20, seed=4)
    assert torch.equal(more.nodes[:2], one.nodes)
    assert not torch.equal(spectral_density(operator, n_steps=20, seed=5).nodes[0], one.nodes[0])


@pytest.mark.parametrize("options", [{"n_probes": 0}, {"n_steps": 0}, {"n_grid": 0}, {"sigma": 0.0}, {"sigma": -1.0}])
def test_bad_density_arguments_are_refused(options):
    with pytest.raises(ValueError, match="must be positive"):
        spectral_density(DiagonalOperator(DENSITIES["normal"]), **options)


def test_a_density_of_nan_is_an_error():
    with pytest.raises(NonFiniteError):
        spectral_density(DiagonalOperator(torch.full((5,), math.nan)))
