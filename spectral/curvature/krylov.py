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

from spectral.curvature.sums import inner_products, norm, products_with
from spectral.errors import NonFiniteError
from spectral.randomness import torch_generator

COLUMNS_AT_ONCE = 2**20  # of the basis, where it is rewritten
BREAKDOWN = 64.0  # a residual below this many rounding errors is an invariant subspace, not an open end
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
    """A residual direction outside the basis.

    Attributes:
        vector: [n] the direction, orthogonal to the basis.
        norm: its length.
        coefficients: [m] its coefficient on every basis vector.
        removed: [m] its components along basis vectors that came later; without those vectors it would have them back.
    """

    vector: Tensor
    norm: float
    coefficients: np.ndarray
    removed: np.ndarray


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
        self._norm = 0.0  # largest norm of a product, a lower estimate of the operator's norm
        self._gram = np.zeros((0, 0))  # inner products of the open ends
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
        if end.coefficients[-1] == 1.0:  # the newest residual has just been orthogonalised twice
            return end.vector / end.norm
        return self._unit(end.vector)

    def extend(self, vector: Tensor, *, fresh: bool = False) -> None:
        """Add a unit vector orthogonal to the basis, spend one product on it, leave its residual as an open end."""
        m = self.size
        self.basis[m] = vector
        self.size = m + 1
        residual, removed = self._orthogonalise(self._product(vector))
        # The old ends leave their overlap with the new vector to it.
        old = torch.stack([end.vector for end in self.ends]) if self.ends else self.basis[:0]
        overlaps = products_with(old, vector)
        F = torch.cat([old - overlaps.to(self.dtype)[:, None] * vector, residual[None]])
        # One transfer for everything the host needs.
        numbers = torch.cat([removed, overlaps, inner_products(F, F).flatten()]).cpu().numpy()
        if not np.isfinite(numbers).all():
            msg = f"product {self.n_products} returned NaN or infinity; check the weights and the batch"
            raise NonFiniteError(msg)
        column, scalars, gram = np.split(numbers, [m + 1, m + 1 + len(old)])
        self._gram = gram.reshape(len(F), len(F))
        norms = np.sqrt(np.diag(self._gram))
        # By symmetry the column just measured was known already, up to the error of the products.
        predicted = np.zeros(m)
        for end, overlap in zip(self.ends, scalars, strict=True):
            predicted += end.coefficients * overlap
            end.coefficients = np.append(end.coefficients, 0.0)
            end.removed = np.append(end.removed, overlap)
        self.projected[: m + 1, m] = self.projected[m, : m + 1] = column
        self._solved = None
        self.noise = max(self.noise, float(np.linalg.norm(column[:m] - predicted)))
        if fresh:
            self.fresh_starts.append(FreshStart(m, float(column[m]), float(column[m] ** 2 + norms[-1] ** 2)))
        coefficients = np.zeros(m + 1)
        coefficients[m] = 1.0
        self.ends.append(OpenEnd(residual, 0.0, coefficients, np.zeros(m + 1)))
        for end, direction, length in zip(self.ends, F, norms, strict=True):
            end.vector, end.norm = direction, float(length)
        self._norm = max(self._norm, math.hypot(float(np.linalg.norm(column)), norms[-1]))
        kept = np.flatnonzero(norms > BREAKDOWN * self.eps * self._norm)
        self.ends = [self.ends[i] for i in kept]
        self._gram = self._gram[np.ix_(kept, kept)]

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return Ritz values (ascending) [m], their coefficient vectors as columns [m, m], residual norms [m]."""
        theta, Y = self._small_eigh()
        if not self.ends:
            return theta, Y, np.zeros(self.size)
        weights = np.stack([end.coefficients for end in self.ends]) @ Y
        squared = ((self._gram @ weights) * weights).sum(axis=0)
        return theta, Y, np.sqrt(np.clip(squared, 0.0, None))

    def vectors(self, Y: np.ndarray) -> Tensor:
        """Return Ritz vectors [columns of Y, n] as rows of norm 1."""
        coefficients = torch.as_tensor(Y.T.copy(), dtype=self.dtype, device=self.device)
        vectors: Tensor = coefficients @ self.basis[: self.size]
        for row in vectors:
            row.div_(norm(row).clamp_min(torch.finfo(self.dtype).tiny).to(self.dtype))
        return vectors

    def restart(self, theta: np.ndarray, Y: np.ndarray) -> None:
        """Compress the basis to the Ritz vectors Y [m, kept] (thick restart); open ends keep their residuals."""
        kept = len(theta)
        self._combine(0, Y)
        self.projected[:] = 0.0
        self.projected[np.arange(kept), np.arange(kept)] = theta
        for end in self.ends:
            end.coefficients = end.coefficients @ Y
            end.removed = np.zeros(kept)
        self.size = kept
        self._solved = None
        self.restarts += 1

    def chain(self, first: int) -> tuple[np.ndarray, float]:
        """Return the projected operator of the basis vectors from `first` on, and how far the newest one leads out.

        If those vectors are a Lanczos chain, its tridiagonal matrix and the next off-diagonal entry.
        """
        m = self.size
        leads = bool(self.ends) and self.ends[-1].coefficients[-1] == 1.0
        return self.projected[first:m, first:m].copy(), self.ends[-1].norm if leads else 0.0

    def compress_chain(self, first: int, theta: np.ndarray, Y: np.ndarray) -> None:
        """Compress the basis vectors from `first` on to their own Ritz vectors Y [m - first, kept].

        A thick restart of a chain in the complement of the first vectors, which stay as they are. What the other open
        ends had left to the vectors dropped now comes back to them.
        """
        m, kept = self.size, len(theta)
        chain = self.basis[first:m]
        for end in self.ends:
            removed = end.removed[first:]
            dropped = removed - Y @ (Y.T @ removed)
            end.vector = end.vector + torch.as_tensor(dropped, dtype=self.dtype, device=self.device) @ chain
            end.removed = np.concatenate([end.removed[:first], Y.T @ removed])
            end.coefficients = np.concatenate([end.coefficients[:first], end.coefficients[first:] @ Y])
        if self.ends:
            F = torch.stack([end.vector for end in self.ends])
            self._gram = inner_products(F, F).cpu().numpy()
        for end, squared in zip(self.ends, np.diag(self._gram), strict=True):
            end.norm = math.sqrt(squared)
        coupling = self.projected[:first, first:m] @ Y
        self._combine(first, Y)
        self.size = first + kept
        self.projected[first:] = 0.0
        self.projected[:, first:] = 0.0
        inside = np.arange(first, self.size)
        self.projected[inside, inside] = theta
        self.projected[:first, inside] = coupling
        self.projected[inside, :first] = coupling.T
        self._solved = None
        self.restarts += 1

    def _combine(self, first: int, Y: np.ndarray) -> None:
        """Replace the basis vectors from `first` on by their combinations Y, some columns of the basis at a time.

        In place: beside the basis of a large model there is no room for a second one.
        """
        coefficients = torch.as_tensor(Y.T.copy(), dtype=self.dtype, device=self.device)
        for part in self.basis[first : self.size].split(COLUMNS_AT_ONCE, dim=1):
            part[: len(coefficients)] = coefficients @ part

    def _small_eigh(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the eigenpairs of the projected operator, solved once per basis."""
        if self._solved is None:
            self._solved = small_eigh(self.projected[: self.size, : self.size])
        return self._solved

    def _product(self, vector: Tensor) -> Tensor:
        self.n_products += 1
        return self._multiply(vector).to(device=self.device, dtype=self.dtype)

    def _orthogonalise(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Remove the basis from w: returns the rest and the coefficients removed [m], in float64."""
        Q = self.basis[: self.size]
        first = products_with(Q, w)
        w = w - Q.T @ first.to(self.dtype)
        # The second pass removes what rounding left of the first one; two are enough (Parlett 1998, section 6.9).
        second = products_with(Q, w)
        return w - Q.T @ second.to(self.dtype), first + second

    def _unit(self, vector: Tensor) -> Tensor | None:
        length = float(norm(vector))
        if not math.isfinite(length) or length == 0.0:
            return None
        vector = vector / length
        for _ in range(3):
            vector, _ = self._orthogonalise(vector)
            length = float(norm(vector))
            if length < 1e4 * self.eps:
                return None
            vector = vector / length
            if length > 0.9:  # nothing was lost to cancellation
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
