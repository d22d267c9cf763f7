"""The growing orthonormal basis behind the Lanczos solver.

Kept throughout, with Q the basis as rows and one column of F and S per open end:

    H Q' = Q' G + F S'      G [m, m] projected operator, F residual directions orthogonal to the basis

An ordinary Lanczos run has one open end, the residual of the newest vector. A second random start opens another one,
a thick restart gives the end a coefficient on every kept vector; the relation and the residual formula
|H x - theta x| = |F S'y| for x = Q'y stay the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from spectral.errors import NonFiniteError
from spectral.randomness import torch_generator

BREAKDOWN = 64.0  # a residual below this many rounding errors is an invariant subspace, not a direction
ROUNDING = 32.0  # rounding errors of a Ritz value in units of eps * norm; products of a network included


@runtime_checkable  # so that type checks in the tests can see it
class SymmetricOperator(Protocol):
    """Anything symmetric with a shape and a product."""

    @property
    def shape(self) -> Any:
        """(n, n)."""

    def matvec(self, v: Any) -> Any:
        """Return the product with a vector of length n."""


@dataclass
class OpenEnd:
    """A residual direction outside the basis, and its coefficient on every basis vector."""

    vector: Tensor
    norm: float
    coefficients: np.ndarray


@dataclass(frozen=True)
class FreshStart:
    """What the first product of a random vector tells about the operator outside the basis it is orthogonal to.

    Attributes:
        basis_size: vectors in the basis when it was drawn.
        quotient: g'Hg.
        squared_norm: |P H g|², P the projector onto the complement of that basis.
    """

    basis_size: int
    quotient: float
    squared_norm: float


class KrylovSpace:
    """Orthonormal basis, projected operator and residual directions; decides nothing about convergence."""

    def __init__(self, operator: SymmetricOperator, n: int, *, seed: int, start: Tensor | None, max_basis: int) -> None:
        self.n = n
        self.n_products = 0
        self.restarts = 0
        self._multiply = _tensor_product(operator)
        dtype, device = _dtype_and_device(operator, start)
        if dtype is None:
            dtype = self._probe_dtype(operator)
        self.dtype, self.device = dtype, device
        self.eps = float(torch.finfo(dtype).eps)
        self.basis = torch.empty(min(n, max_basis), n, dtype=dtype, device=device)
        self.projected = np.zeros((len(self.basis), len(self.basis)))
        self.size = 0
        self.ends: list[OpenEnd] = []
        self.fresh_starts: list[FreshStart] = []
        self.noise = 0.0
        self._solved: tuple[np.ndarray, np.ndarray] | None = None
        self._generator = torch_generator(seed, "lanczos")

    @property
    def complete(self) -> bool:
        """Whether the basis spans the whole space, so that every Ritz pair is exact."""
        return self.size == self.n

    @property
    def full(self) -> bool:
        """Whether the basis has no room left."""
        return self.size == len(self.basis)

    @property
    def scale(self) -> float:
        """Largest absolute Ritz value, a lower estimate of the operator's norm."""
        return float(np.abs(self._small_eigh()[0]).max()) if self.size else 0.0

    def floor(self, scale: float) -> float:
        """Rounding level of a Ritz value: of the arithmetic, or of the products where that is larger.

        The products' own noise costs nothing to measure: a new column of the projected operator is known in advance
        from the residuals, and what the product gives instead differs by its error.
        """
        return max(ROUNDING * self.eps * scale, 2.0 * self.noise)

    def fresh_vector(self, start: Tensor | None = None) -> Tensor | None:
        """Return a unit vector orthogonal to the basis, from `start` or random; None when the space is exhausted."""
        for attempt in range(3):
            if start is not None and attempt == 0:
                vector = start.detach().to(device=self.device, dtype=self.dtype)
            else:
                # Drawn on the CPU, so that every device sees the same start.
                draw = torch.randn(self.n, generator=self._generator, dtype=torch.float64)
                vector = draw.to(device=self.device, dtype=self.dtype)
            unit = self._unit(vector)
            if unit is not None:
                return unit
        return None

    def continuation(self, end: OpenEnd) -> Tensor | None:
        """Return an open end as a unit vector; None when it is rounding only (an invariant subspace)."""
        if end.norm <= BREAKDOWN * self.eps * max(self.scale, torch.finfo(self.dtype).tiny):
            return None
        return self._unit(end.vector)

    def extend(self, vector: Tensor, *, fresh: bool = False) -> None:
        """Add a unit vector orthogonal to the basis, spend one product on it, leave its residual as an open end."""
        m = self.size
        overlaps = [float(vector @ end.vector) for end in self.ends]
        # By symmetry the column about to be measured is known already, up to the error of the products.
        predicted = np.zeros(m)
        for end, overlap in zip(self.ends, overlaps, strict=True):
            predicted += end.coefficients * overlap
            end.vector = end.vector - overlap * vector
            end.norm = float(end.vector.norm())
            end.coefficients = np.append(end.coefficients, 0.0)
        self.basis[m] = vector
        self.size = m + 1
        residual, column, norm = self._orthogonalise(self._product(vector))
        if not (math.isfinite(norm) and np.isfinite(column).all()):
            msg = f"product {self.n_products} returned NaN or infinity; check the weights and the batch"
            raise NonFiniteError(msg)
        self.projected[: m + 1, m] = self.projected[m, : m + 1] = column
        self._solved = None
        self.noise = max(self.noise, float(np.linalg.norm(column[:m] - predicted)))
        if fresh:
            self.fresh_starts.append(FreshStart(m, float(column[m]), float(column[m] ** 2 + norm**2)))
        coefficients = np.zeros(m + 1)
        coefficients[m] = 1.0
        self.ends.append(OpenEnd(residual, norm, coefficients))
        negligible = self.eps * max(float(np.abs(column).max()), norm)
        self.ends = [end for end in self.ends if end.norm > negligible]

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return Ritz values (ascending) [m], their coefficient vectors as columns [m, m], residual norms [m]."""
        m = self.size
        theta, Y = self._small_eigh()
        if not self.ends:
            return theta, Y, np.zeros(m)
        F = torch.stack([end.vector for end in self.ends])
        gram = (F @ F.T).double().cpu().numpy()
        weights = np.stack([end.coefficients for end in self.ends]) @ Y
        squared = np.einsum("om,op,pm->m", weights, gram, weights)
        return theta, Y, np.sqrt(np.clip(squared, 0.0, None))

    def vectors(self, Y: np.ndarray) -> Tensor:
        """Return Ritz vectors [columns of Y, n] as rows of norm 1."""
        coefficients = torch.as_tensor(Y.T.copy(), dtype=self.dtype, device=self.device)
        vectors: Tensor = coefficients @ self.basis[: self.size]
        norms: Tensor = vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(self.dtype).tiny)
        return vectors / norms

    def restart(self, theta: np.ndarray, Y: np.ndarray) -> None:
        """Compress the basis to the Ritz vectors Y [m, kept] (thick restart); open ends keep their residuals."""
        kept = len(theta)
        self.basis[:kept] = self.vectors(Y)
        self.projected[:] = 0.0
        self.projected[np.arange(kept), np.arange(kept)] = theta
        for end in self.ends:
            end.coefficients = end.coefficients @ Y
        self.size = kept
        self._solved = None
        self.restarts += 1

    def _small_eigh(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the eigenpairs of the projected operator, solved once per basis."""
        if self._solved is None:
            self._solved = small_eigh(self.projected[: self.size, : self.size])
        return self._solved

    def _product(self, vector: Tensor) -> Tensor:
        self.n_products += 1
        return self._multiply(vector).to(device=self.device, dtype=self.dtype)

    def _orthogonalise(self, w: Tensor) -> tuple[Tensor, np.ndarray, float]:
        """Remove the basis from w: returns the rest, the coefficients removed and the norm of the rest."""
        Q = self.basis[: self.size]
        first = Q @ w
        w = w - Q.T @ first
        # The second pass removes what rounding left of the first one; two are enough (Parlett 1998, section 6.9).
        second = Q @ w
        w = w - Q.T @ second
        # One transfer for everything the host needs.
        numbers = torch.cat([(first.double() + second.double()), w.norm().double().reshape(1)]).cpu().numpy()
        return w, numbers[:-1], float(numbers[-1])

    def _unit(self, vector: Tensor) -> Tensor | None:
        norm = float(vector.norm())
        if not math.isfinite(norm) or norm == 0.0:
            return None
        vector = vector / norm
        for _ in range(3):
            vector, _, norm = self._orthogonalise(vector)
            if norm < 1e4 * self.eps:
                return None
            vector = vector / norm
            if norm > 0.9:  # nothing was lost to cancellation
                break
        return vector

    def _probe_dtype(self, operator: SymmetricOperator) -> torch.dtype:
        """Find the dtype of an operator that does not tell: one product with float32, float64 where that is refused.

        An operator that refuses tensors gets NumPy arrays.
        """
        self.n_products += 1
        zeros = torch.zeros(self.n)
        try:
            return self._multiply(zeros).dtype
        except TypeError:
            self._multiply = _numpy_product(operator)
            return self._multiply(zeros).dtype
        except RuntimeError as error:
            if "dtype" not in str(error) and "scalar type" not in str(error):
                raise
            return self._multiply(zeros.double()).dtype


def small_eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues (ascending) and eigenvectors (columns) of a small symmetric matrix.

    Through torch and not NumPy: NumPy brings a thread pool of its own, whose idle threads keep a core busy for a while
    after every call. With one call per product that made a snapshot on two cores four times slower.
    """
    values, vectors = torch.linalg.eigh(torch.from_numpy(np.ascontiguousarray(matrix)))
    return values.numpy(), vectors.numpy()


def _tensor_product(operator: SymmetricOperator) -> Callable[[Tensor], Tensor]:
    """Return the operator's product on tensors, also where it works on NumPy arrays (scipy's LinearOperator)."""
    if isinstance(getattr(operator, "dtype", None), torch.dtype | None):

        def product(v: Tensor) -> Tensor:
            result = operator.matvec(v)
            return result if isinstance(result, Tensor) else torch.as_tensor(np.asarray(result))

        return product
    return _numpy_product(operator)


def _numpy_product(operator: SymmetricOperator) -> Callable[[Tensor], Tensor]:
    return lambda v: torch.as_tensor(np.asarray(operator.matvec(v.cpu().numpy())))


def _dtype_and_device(operator: SymmetricOperator, start: Tensor | None) -> tuple[torch.dtype | None, torch.device]:
    """Find out in which precision and where the operator works; dtype None = it does not say."""
    dtype = getattr(operator, "dtype", None)
    device = getattr(operator, "device", None)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        dtype = torch.float32 if np.dtype(dtype) == np.float32 else torch.float64
    if dtype is None and start is not None:
        dtype = start.dtype
    if dtype is None:
        held = [value for value in getattr(operator, "__dict__", {}).values() if isinstance(value, Tensor)]
        held = [tensor for tensor in held if tensor.is_floating_point()]
        if held:
            dtype, device = held[0].dtype, device or held[0].device
    if device is None and start is not None:
        device = start.device
    return dtype, torch.device(device) if device is not None else torch.device("cpu")
