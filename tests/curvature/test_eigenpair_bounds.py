"""Error bounds cover the truth: counted over many random operators, and rule by rule on small cases."""

import math

import numpy as np
import pytest
import torch
from curvature_cases import F64, DiagonalOperator

from spectral.curvature import top_eigenpairs
from spectral.curvature.certify import certify, random_start_gap, residual_bounds


def outlier_spectra(rng, n):
    """Return one spectrum like that of a trained network: a bulk and outliers, clustered or repeated in places."""
    kind = rng.integers(0, 8)
    bulk = rng.standard_normal(n) * rng.choice([0.05, 0.5, 1.0])
    outliers = [
        lambda: rng.exponential(5, 12),
        lambda: 10 * 1.3 ** -np.arange(15),
        lambda: np.repeat(rng.uniform(3, 10, 5), 2),
        lambda: np.repeat(rng.uniform(3, 10, 4), 3),
        lambda: 8 * (1 - 10.0 ** -np.arange(1, 9)),
        lambda: np.concatenate([rng.uniform(3, 9, 8), -rng.uniform(3, 12, 6)]),
        lambda: rng.uniform(1, 5, 10),
        lambda: 9 + rng.uniform(0, 1, 12) * rng.choice([1e-1, 1e-2, 1e-3, 1e-4]),
    ][kind]()
    values = bulk if kind != 6 else np.zeros(n)  # kind 6: low rank
    values[: min(n, len(outliers))] = outliers[:n]
    return int(kind), values


def dense_spectra(rng, n):
    """Return one spectrum without outliers, whose ends hold eigenvalues in any density."""
    kind = rng.integers(0, 4)
    values = [
        lambda: rng.uniform(-1, 1, n),
        lambda: -np.abs(rng.standard_normal(n)) - 0.1,
        lambda: 2 * np.cos(np.pi * np.linspace(0, 1, n)),
        lambda: rng.gamma(0.3, 1.0, n) - rng.gamma(0.3, 0.3, n),
    ][kind]()
    return 8 + int(kind), values


def coverage(family, n_operators, n_max):
    """Return (kind, ratio of error to bound, converged, verified) for every value of many random operators."""
    rows = []
    for seed in range(n_operators):
        rng = np.random.default_rng(seed)
        n = int(np.exp(rng.uniform(np.log(5), np.log(n_max))))
        kind, values = family(rng, n)
        operator = DiagonalOperator(values, torch.float32 if rng.random() < 0.5 else torch.float64)
        max_products = None if rng.random() < 0.8 else int(rng.integers(3, 60))
        spectrum = top_eigenpairs(
            operator,
            k=int(rng.integers(1, 13)),
            k_negative=int(rng.integers(0, 5)),
            max_products=max_products,
            seed=seed,
        )
        truth = operator.values.double().sort().values
        for pairs, exact in ((spectrum.top, truth.flip(0)), (spectrum.bottom, truth)):
            error = (pairs.values - exact[: len(pairs.values)]).abs()
            ratio = torch.where(error == 0, 0.0, error / pairs.error_bounds)
            rows += [
                (kind, r, c, spectrum.verified) for r, c in zip(ratio.tolist(), pairs.converged.tolist(), strict=True)
            ]
    return rows


def report(rows):
    lines = []
    for kind in sorted({row[0] for row in rows}):
        ratios = np.array([row[1] for row in rows if row[0] == kind])
        lines.append(f"kind {kind}: {int((ratios > 1).sum())} of {len(ratios)} outside, largest {ratios.max():.3g}")
    ratios = np.array([row[1] for row in rows])
    quantiles = np.quantile(ratios, [0.5, 0.9, 0.99, 0.999])
    lines.append(f"all: {int((ratios > 1).sum())} of {len(ratios)}; quantiles 50 90 99 99.9 %: {quantiles}")
    return "\n".join(lines)


@pytest.mark.parametrize("part", range(2))
def test_bounds_cover_the_truth_in_99_percent_of_spectra_with_outliers(part):
    def family(rng, n):
        rng = np.random.default_rng([part, int(rng.integers(2**31))])
        return outlier_spectra(rng, n)

    rows = coverage(family, 150, 400)
    ratios = np.array([row[1] for row in rows])
    assert len(ratios) > 800
    assert (ratios <= 1).mean() >= 0.99, report(rows)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("family", "least"), [(outlier_spectra, 0.99), (dense_spectra, 0.97)])
def test_bounds_cover_the_truth_over_many_operators_up_to_n_5000(family, least, capsys):
    rows = coverage(family, 600, 5000)
    with capsys.disabled():
        print("\n" + report(rows))
    assert (np.array([row[1] for row in rows]) <= 1).mean() >= least


# rule by rule


def test_one_value_far_from_all_others_has_the_quadratic_bound():
    theta, residuals = np.array([10.0, 1.0]), np.array([0.1, 0.01])
    # 0.1² / (10 - 1.01) = 0.0011 is smaller, but no bound falls below a quarter of the residual.
    assert residual_bounds(theta, residuals, 1, 0.0) == pytest.approx([0.025])
    theta, residuals = np.array([10.0, 9.0]), np.array([0.4, 0.01])
    assert residual_bounds(theta, residuals, 1, 0.0) == pytest.approx([0.16 / 0.99])


def test_values_whose_distance_to_the_rest_is_unknown_have_the_linear_bound():
    assert residual_bounds(np.array([10.0]), np.array([0.4]), 1, 0.0) == pytest.approx([0.4])
    linear = residual_bounds(np.array([10.0, 9.9]), np.array([0.4, 0.3]), 2, 0.0)
    assert linear == pytest.approx([0.4, 0.5])


def test_a_cluster_is_bounded_together():
    theta, residuals = np.array([5.0, 4.999, 1.0]), np.array([0.3, 0.4, 0.0])
    together = (0.09 + 0.16) / 3.999
    assert residual_bounds(theta, residuals, 2, 0.0) == pytest.approx([0.075, 0.1])  # a quarter each
    assert together < 0.075


def test_no_bound_falls_below_the_floor():
    assert residual_bounds(np.array([3.0, 1.0]), np.zeros(2), 2, 1e-6).tolist() == [1e-6, 1e-6]


@pytest.mark.parametrize("seed", range(20))
def test_residual_bounds_hold_for_rayleigh_ritz_pairs_of_any_subspace_that_holds_the_top(seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([[9.0, 8.9, 5.0], rng.uniform(-1, 1, 60)])
    basis = np.eye(63)[:, :12] + 0.02 * rng.standard_normal((63, 12))
    Q = np.linalg.qr(basis)[0]
    theta, Y = np.linalg.eigh(Q.T @ (values[:, None] * Q))
    X = Q @ Y
    residuals = np.linalg.norm(values[:, None] * X - X * theta, axis=0)
    bounds = residual_bounds(theta[::-1], residuals[::-1], 3, 0.0)
    assert (np.abs(theta[::-1][:3] - values[:3]) <= bounds).all()


def test_the_negative_end_is_judged_against_the_whole_spectrum():
    theta, residuals = np.array([-0.01, 5.0, 10.0]), np.array([0.008, 1e-6, 1e-6])
    certificate = certify(theta, residuals, k=1, k_negative=1, rtol=1e-3, floor=1e-9)
    assert certificate.bottom_bounds[0] < 0.01  # 1e-3 of the largest
    assert certificate.bottom_converged.all()
    assert certificate.complete


def test_certified_at_rounding_is_not_converged():
    theta, residuals = np.array([1.0, 10.0]), np.array([0.0, 0.0])
    certificate = certify(theta, residuals, k=1, k_negative=0, rtol=1e-9, floor=1e-6)
    assert certificate.complete
    assert not certificate.top_converged.any()
    assert not certificate.attainable


def test_the_random_start_bound_holds_in_99_percent_of_runs():
    n = 300
    values = torch.linspace(0, 1, n, **F64) ** 2
    misses = 0
    for seed in range(200):
        spectrum = top_eigenpairs(DiagonalOperator(values), k=1, k_negative=0, max_products=12, seed=seed)
        misses += float(values[-1] - spectrum.top.values[0]) > random_start_gap(n, 12, 1.0)
    assert misses <= 4


def test_the_random_start_bound_shrinks_with_products_and_is_infinite_for_few():
    gaps = [random_start_gap(1000, q, 1.0) for q in (2, 20, 40, 80)]
    assert gaps[0] == math.inf
    assert gaps[1] > gaps[2] > gaps[3] > 0
