"""The eigenvalues of one Hessian by other people's solvers, for comparison.

`spectral` is `top_eigenpairs`. `scipy` is ARPACK on the same products, one run for each end. `pyhessian` is PyHessian's
power iteration with deflation on its own products; it ranks by modulus, so both ends share its values, and an end can
come back with fewer than were asked for. Neither of the two can say that its i-th value is the i-th eigenvalue:
their bounds are NaN and nothing counts as converged. Residuals are computed afterwards with our products.
"""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from spectral.curvature.conditions import exact_arithmetic
from spectral.curvature.krylov import ROUNDING
from spectral.curvature.lanczos import Eigenpairs, Spectrum, top_eigenpairs
from spectral.curvature.objective import LossFunction, Objective
from spectral.curvature.operator import HessianOperator
from spectral.curvature.sums import norm
from spectral.errors import ConfigError, NonFiniteError

Backend = Literal["spectral", "scipy", "pyhessian"]
ARPACK_RESTARTS = 100  # a few per value are usual; ARPACK's own limit, ten times n, would hardly ever end
POWER_ITERATIONS = 100  # PyHessian's own default per value

Pairs = tuple[np.ndarray, Tensor]  # values [k] and vectors [k, n]


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """What the Hessian was made of; PyHessian makes its own from it."""

    model: nn.Module
    loss_fn: LossFunction
    batch: Any


def solve(
    operator: HessianOperator,
    target: Target,
    *,
    backend: Backend = "spectral",
    k: int = 10,
    k_negative: int = 3,
    rtol: float = 1e-3,
    max_products: int | None = None,
    seed: int = 0,
) -> Spectrum:
    """Return both ends of the Hessian's spectrum, computed by the solver of this name.

    Args:
        operator: the Hessian.
        target: model, loss and batch that `operator` was made of.
        backend: whose solver.
        k, k_negative, rtol, max_products, seed: as for `top_eigenpairs`; `max_products` is kept by `spectral` alone.

    Raises:
        ConfigError: something this solver cannot do, or its failure.
        NonFiniteError: a product is NaN or infinite.
    """
    if backend == "spectral":
        return top_eigenpairs(
            operator,
            k=k,
            k_negative=k_negative,
            rtol=rtol,
            max_products=max_products,
            seed=seed,
        )
    refusal = why_impossible(backend, n=operator.n, k=k, k_negative=k_negative)
    if refusal:
        raise ConfigError([refusal])
    already = operator.n_products
    if backend == "scipy":
        top, bottom, failure = _arpack(operator, k=k, k_negative=k_negative, rtol=rtol, seed=seed)
        own_products = 0
    else:
        top, bottom, own_products = _power_iteration(operator, target, k=k, k_negative=k_negative, rtol=rtol, seed=seed)
        missing = (k - len(top[0]), k_negative - len(bottom[0]))
        failure = "pyhessian ranks by modulus: values of the wanted sign are missing" if any(missing) else ""
    ends = [_with_residuals(operator, *pairs) for pairs in (top, bottom)]
    scale = max((float(end.values.abs().max()) for end in ends if len(end.values)), default=0.0)
    return Spectrum(
        top=ends[0],
        bottom=ends[1],
        n_products=own_products + operator.n_products - already,
        noise_floor=ROUNDING * float(torch.finfo(operator.dtype).eps) * scale,
        verified=False,
        n_restarts=0,
        trace=math.nan,
        trace_standard_error=math.nan,
        n_negative_at_least=_count_negative(ends[1]),
        reason=failure or f"{backend} certifies no rank, so no value counts as converged",
    )


def why_impossible(backend: Backend, *, n: int, k: int, k_negative: int) -> str:
    """Return why this solver cannot be asked for these eigenvalues, one line; empty if it can."""
    if backend == "scipy" and max(k, k_negative) >= n:
        return (
            f"--eigen_backend scipy finds at most {n - 1} of {n} eigenvalues at one end, not {max(k, k_negative)}; "
            "ask for fewer, or use --eigen_backend spectral"
        )
    if backend == "pyhessian" and k + k_negative > n:
        return (
            f"--eigen_backend pyhessian cannot find {k + k_negative} of {n} eigenvalues; ask for fewer, or use "
            "--eigen_backend spectral"
        )
    return ""


def _with_residuals(operator: HessianOperator, values: np.ndarray, vectors: Tensor) -> Eigenpairs:
    """Assemble one end; a residual costs one product each."""
    residuals = [float(norm(operator.matvec(x) - float(v) * x)) for v, x in zip(values, vectors, strict=True)]
    return Eigenpairs(
        values=torch.from_numpy(np.array(values, dtype=np.float64)),
        vectors=vectors,
        residuals=torch.tensor(residuals, dtype=torch.float64),
        error_bounds=torch.full((len(values),), math.nan, dtype=torch.float64),
        converged=torch.zeros(len(values), dtype=torch.bool),
    )


def _count_negative(bottom: Eigenpairs) -> int:
    """Count the values below zero by more than the joint residual: as many eigenvalues are there (Kahan 1967)."""
    joint = (bottom.residuals**2).cumsum(0).sqrt()
    return int((bottom.values + joint < 0).sum())


# scipy


def _arpack(operator: HessianOperator, *, k: int, k_negative: int, rtol: float, seed: int) -> tuple[Pairs, Pairs, str]:
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

    dtype = np.float64 if operator.dtype == torch.float64 else np.float32

    def product(v: np.ndarray) -> np.ndarray:
        result = operator.matvec(torch.as_tensor(v.ravel(), dtype=operator.dtype, device=operator.device))
        if not bool(torch.isfinite(result).all()):
            msg = f"product {operator.n_products} returned NaN or infinity; check the weights and the batch"
            raise NonFiniteError(msg)
        found: np.ndarray = result.cpu().numpy()
        return found

    linear = LinearOperator(operator.shape, matvec=product, dtype=dtype)
    start = np.random.default_rng(seed).normal(size=operator.n).astype(dtype)

    failures: list[str] = []

    def end(which: str, count: int) -> Pairs:
        if not count:
            return np.zeros(0), torch.zeros(0, operator.n, dtype=operator.dtype, device=operator.device)
        try:
            values, vectors = eigsh(linear, k=count, which=which, tol=rtol, v0=start, maxiter=ARPACK_RESTARTS)
        except ArpackNoConvergence as error:
            values, vectors = error.eigenvalues, error.eigenvectors
            failures.append(f"scipy gave up after {ARPACK_RESTARTS} restarts")
        except ArpackError as error:
            raise ConfigError([f"--eigen_backend scipy failed ({error}); use --eigen_backend spectral"]) from None
        order = np.argsort(-values if which == "LA" else values)
        rows = torch.as_tensor(vectors.T[order].copy(), dtype=operator.dtype, device=operator.device)
        return values[order], rows

    top, bottom = end("LA", k), end("SA", k_negative)
    return top, bottom, "; ".join(dict.fromkeys(failures))


# PyHessian


class _Counted(Objective):
    """The loss as a module; PyHessian clears its gradients once before every product."""

    products = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients and count."""
        self.products += 1
        super().zero_grad(set_to_none)


def _power_iteration(
    operator: HessianOperator, target: Target, *, k: int, k_negative: int, rtol: float, seed: int
) -> tuple[Pairs, Pairs, int]:
    from pyhessian import hessian

    # A copy: PyHessian fills .grad, and the graph that hangs there must not outlive it.
    objective = _Counted(copy.deepcopy(target.model), target.loss_fn)
    devices = [operator.device] if operator.device.type == "cuda" else []

    def with_foreign_errors(compute: Callable[[], Any]) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph=True")
                return compute()
        except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConfigError([f"--eigen_backend pyhessian failed ({line}); use --eigen_backend spectral"]) from None

    with torch.random.fork_rng(devices), torch.enable_grad(), exact_arithmetic(operator.device):
        torch.manual_seed(seed)
        computer = with_foreign_errors(
            lambda: hessian(objective, _the_loss_itself, data=(target.batch, target.batch), cuda=False)
        )
        computer.device = operator.device  # set by hand: its own way moves the batch to the current GPU
        values, parts = with_foreign_errors(
            lambda: computer.eigenvalues(maxIter=POWER_ITERATIONS, tol=rtol, top_n=k + k_negative)
        )
    products, objective.products = objective.products, 0
    objective.zero_grad()
    found = np.array(values, dtype=np.float64)
    if not np.isfinite(found).all():
        msg = "pyhessian's eigenvalues are NaN or infinite; check the weights and the batch"
        raise NonFiniteError(msg)
    rows = torch.stack([_flat(objective, vector, operator) for vector in parts])
    descending = np.argsort(-found, kind="stable")
    top = descending[found[descending] >= 0][:k]
    bottom = descending[::-1][found[descending[::-1]] < 0][:k_negative]
    return (
        (found[top], rows[torch.from_numpy(top.copy())]),
        (found[bottom], rows[torch.from_numpy(bottom.copy())]),
        products,
    )


def _the_loss_itself(loss: Tensor, _batch: Any) -> Tensor:
    return loss


def _flat(objective: Objective, parts: list[Tensor], operator: HessianOperator) -> Tensor:
    """Return PyHessian's vector, which leaves out frozen parameters, as a unit vector of all of them."""
    remaining = iter(parts)
    pieces = [
        (next(remaining) if parameter.requires_grad else torch.zeros_like(parameter)).detach().reshape(-1)
        for parameter in objective.parameters()
    ]
    vector: Tensor = torch.cat([piece.to(operator.dtype) for piece in pieces])
    unit: Tensor = vector / norm(vector).clamp_min(torch.finfo(operator.dtype).tiny).to(operator.dtype)
    return unit
