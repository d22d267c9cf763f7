"""Vectors so long that float32 sums over them lose digits: sums, solver and memory at millions of parameters."""

import json
import math
import subprocess
import sys

import pytest
import torch

from spectral.curvature import top_eigenpairs
from spectral.curvature.krylov import KrylovSpace
from spectral.curvature.sums import inner_products, norm, norm_outside, products_with

N = 4_000_000
TOP = [100.0, 80.0, 60.0]


class DiagonalOperator:
    """Eigenvalues 100, 80, 60 and a bulk in [0, 1], exact in float32."""

    dtype = torch.float32
    device = torch.device("cpu")
    shape = (N, N)

    def __init__(self):
        self.values = torch.rand(N, generator=torch.Generator().manual_seed(0))
        self.values[[5, N // 2, N - 7]] = torch.tensor(TOP)

    def matvec(self, v):
        return self.values * v


def test_sums_keep_the_digits_that_float32_sums_lose():
    x = torch.full((N,), 0.1)
    exact = 0.1**2 * N
    assert float(norm(x)) == pytest.approx(math.sqrt(exact), rel=1e-7)
    assert float(inner_products(x[None], x[None])) == pytest.approx(exact, rel=1e-7)
    A = torch.randn(3, N, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(inner_products(A, x[None])[:, 0], A.double() @ x.double(), rtol=1e-12)
    assert torch.allclose(products_with(A, x), A.double() @ x.double(), rtol=0, atol=1e-6 * float(norm(x)) * N**0.5)
    rest = (x.double() - torch.tensor([0.5, -1.0, 2.0]).double() @ A.double()).norm()
    outside = norm_outside(x, torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64), A)
    assert float(outside) == pytest.approx(float(rest), rel=1e-12)


def test_spent_ends_are_dropped_and_the_products_are_not_called_noisy():
    operator = DiagonalOperator()
    space = KrylovSpace(operator, N, seed=0, start=None, max_basis=16)
    space.extend(space.fresh_vector(), fresh=True)
    for _ in range(8):
        space.extend(space.continuation(space.ends[-1]))
        assert len(space.ends) == 1, "an end that has become a basis vector must not be kept"
    assert space.noise < 3e-5 * TOP[0]
    lengths = torch.stack([norm(row) for row in space.basis[: space.size]])
    assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-6, rtol=0)


def test_eigenvalues_of_a_long_float32_operator_lie_within_their_bounds():
    spectrum = top_eigenpairs(DiagonalOperator(), k=3, rtol=1e-3, max_products=40)
    assert spectrum.converged
    errors = (spectrum.top.values - torch.tensor(TOP)).abs()
    assert (errors <= spectrum.top.error_bounds).all()
    assert (errors <= 1e-4 * torch.tensor(TOP)).all()


@pytest.mark.slow
def test_ten_million_parameters_fit_into_four_gibibytes():
    case = {"layers": 6, "width": 640, "heads": 8, "probe": 8, "steps": 0, "k": 10, "compiled": False, "microbatch": 4}
    command = [sys.executable, "-m", "benchmarks.scaling", "--case", json.dumps(case)]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert result["parameters"] > 9_900_000
    assert result["converged"]
    assert result["peak, GiB"] < 4.0
