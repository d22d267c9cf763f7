"""Certified extreme eigenpairs of a symmetric operator: Lanczos with full reorthogonalisation.

Both ends of the spectrum come out of one basis. The run stops when bounds derived from the residuals certify every
wanted value (`spectral.curvature.certify`), not after a fixed number of steps.

A single start vector cannot tell two copies of a repeated eigenvalue apart, and a start taken from old eigenvectors can
miss a new one. So after the values are certified a second, independent random start is added to the same basis (the
verification). Whatever was missed shows up in it; otherwise its vectors merely sharpen the result.

Sources: Parlett, The Symmetric Eigenvalue Problem (1998), chapters 11-13; Wu and Simon (2000) for the thick restart;
Kuczynski and Wozniakowski (1992) for the probability that a random start misses the end of the spectrum.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spectral.curvature.certify import (
    FLOOR_FACTOR,
    Certificate,
    certify,
    honest_bounds_when_not_certified,
    random_start_gap,
)
from spectral.curvature.krylov import FreshStart, KrylovSpace, OpenEnd, SymmetricOperator, small_eigh

MAX_BASIS = 128  # vectors; past it the basis is compressed to its best Ritz vectors
PRODUCTS_PER_BASIS = 3  # default limit on products, in units of MAX_BASIS
GUARDS = 2  # Ritz values looked at beyond the wanted ones at each end
VERIFY_STEPS = 6  # shortest verification chain
MAX_VERIFY_STEPS = 24  # longest one
UNUSUAL_NOISE = 1e4  # rounding errors; products that differ by more are not those of one symmetric operator
MAX_VERIFICATIONS = 6  # starts, when each one finds something new


@dataclass(frozen=True, kw_only=True, eq=False)
class Eigenpairs:
    """Approximate eigenpairs from one end of a symmetric operator's spectrum, outermost first.

    Attributes:
        values: [k] signed Ritz values (for a Hessian: nats per squared parameter unit), float64.
        vectors: [k, n] Ritz vectors as rows, Euclidean norm 1, in the operator's precision.
        residuals: [k] norms of H x - theta x, unit of `values`: some eigenvalue lies within this distance.
        error_bounds: [k] bound on the distance to the eigenvalue of the same rank, unit of `values`: the smallest of
            the linear and quadratic residual bounds, at least the rounding floor. For a value that is not certified:
            a bound that holds with 99 % probability over the random start (it can be infinite, and is where `start`
            was given).
        converged: [k] whether the error bound met the requested tolerance.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "k n"]
    residuals: Float[Tensor, " k"]
    error_bounds: Float[Tensor, " k"]
    converged: Bool[Tensor, " k"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """Both ends of a symmetric operator's spectrum, and what it took to compute them.

    The ends hold as many pairs as were asked for, or fewer where n or the number of products is smaller.

    Attributes:
        top: the k algebraically largest eigenpairs, descending.
        bottom: the k_negative algebraically smallest, ascending; negative where the loss curves downwards.
        n_products: operator products spent, all of them counted.
        noise_floor: rounding level, unit of the eigenvalues; no error bound is smaller.
        verified: whether an independent second start confirmed that nothing was missed (also true when the basis
            spans the whole space).
        n_restarts: thick restarts; 0 while the basis fits.
        trace: unbiased estimate of the operator's trace: exact inside the basis, one random vector for the rest.
        trace_standard_error: its standard error. Both NaN after a restart or without a random start.
        reason: empty, or why some pair did not converge and what to change.
    """

    top: Eigenpairs
    bottom: Eigenpairs
    n_products: int
    noise_floor: float
    verified: bool
    n_restarts: int
    trace: float
    trace_standard_error: float
    reason: str

    @property
    def converged(self) -> bool:
        """Whether every requested pair converged."""
        return not self.reason


def top_eigenpairs(
    operator: SymmetricOperator,
    *,
    k: int = 10,
    k_negative: int = 3,
    rtol: float = 1e-3,
    max_products: int | None = None,
    start: Float[Tensor, " n"] | None = None,
    seed: int = 0,
    verify: bool = True,
    max_basis: int = MAX_BASIS,
) -> Spectrum:
    """Return the k largest and the k_negative smallest eigenpairs of a symmetric operator, with error bounds.

    Stops when every top value is certified to rtol * |theta| and every bottom value to the looser one of
    10 rtol * |theta| and rtol * max |theta|, and a second random start confirmed that none was missed. A trained
    transformer of 45,000 parameters takes about 50 products for k=10 and k_negative=3.

    Args:
        operator: anything symmetric with `shape` and `matvec`; its `dtype` and `device` are used where it has them.
        k: how many of the largest; all n where n < k.
        k_negative: how many of the smallest; all n where n < k_negative.
        rtol: relative error at which a top value counts as converged.
        max_products: limit on products; None = 3 * 128. What was found until then comes back, flagged.
        start: [n] start vector; None = random. It cannot hide a new eigenvalue, because the verification starts afresh.
        seed: of the random vectors.
        verify: whether to add the second start. Without it copies of an exactly repeated eigenvalue count once.
        max_basis: basis vectors kept; memory max_basis * n numbers.

    Raises:
        ValueError: a negative count, nothing asked for, a shape that is not square, rtol outside (0, 1), a basis too
            small for what is asked.
        NonFiniteError: the operator returned NaN or infinity.
    """
    n = _check_arguments(operator, k, k_negative, rtol, max_products, start, max_basis)
    space = KrylovSpace(operator, n, seed=seed, start=start, max_basis=max_basis)
    solver = _Solver(
        space, k=min(k, n), k_negative=min(k_negative, n), rtol=rtol, random_start=start is None, verify=verify
    )
    solver.solve(start, limit=max_products or PRODUCTS_PER_BASIS * MAX_BASIS)
    return solver.spectrum()


@dataclass(frozen=True)
class _Verification:
    """A running verification: where its chain begins in the basis, and the values it has to confirm."""

    first: int
    values: np.ndarray
    certificate: Certificate


class _Solver:
    """Chooses the next vector, decides when to stop, and assembles the result."""

    def __init__(
        self, space: KrylovSpace, *, k: int, k_negative: int, rtol: float, random_start: bool, verify: bool
    ) -> None:
        self.space = space
        self.random_start, self.verify = random_start, verify
        self.k, self.k_negative, self.rtol = k, k_negative, rtol
        self.verified = False
        self.theta = np.zeros(0)
        self.Y = np.zeros((0, 0))
        self.residuals = np.zeros(0)
        self.certificate: Certificate | None = None
        self.first_chain = 0  # products from the first start, for the probabilistic bound
        self._verifying: _Verification | None = None
        self._verifications = 0

    def solve(self, start: Tensor | None, *, limit: int) -> None:
        """Extend the basis until everything is certified and verified, the space is exhausted, or the limit is hit."""
        space = self.space
        vector, fresh = space.fresh_vector(start), self.random_start
        while vector is not None:
            space.extend(vector, fresh=fresh)
            self._rayleigh_ritz()
            if space.complete:
                self.verified = True
                return
            if self._verifying is None and self._certified():
                if not self.verify or self._verifications == MAX_VERIFICATIONS:
                    return
                self.first_chain = self.first_chain or space.n_products
                if len(space.basis) < space.n and len(space.basis) - space.size < MAX_VERIFY_STEPS:
                    self._restart()  # a restart within the verification would lose its chain
                self._verifying = _Verification(space.size, *self._wanted())
            elif self._verifying is not None and self._verification_ends():
                return
            if space.n_products >= limit:
                return
            if space.full:
                self._restart()
            vector, fresh = self._next_vector()

    def spectrum(self) -> Spectrum:
        """Return the current Ritz pairs of both ends with their bounds."""
        space, certificate = self.space, self.certificate
        assert certificate is not None
        m = len(self.theta)
        top_order = np.arange(m - 1, max(m - 1 - self.k, -1), -1)
        bottom_order = np.arange(min(self.k_negative, m))
        top = self._pairs(top_order, 1.0, certificate.top_bounds, certificate.top_certified, certificate.top_converged)
        bottom = self._pairs(
            bottom_order, -1.0, certificate.bottom_bounds, certificate.bottom_certified, certificate.bottom_converged
        )
        trace, trace_error = _trace(space)
        scale = float(np.abs(self.theta).max())
        return Spectrum(
            top=top,
            bottom=bottom,
            n_products=space.n_products,
            noise_floor=space.floor(scale),
            verified=self.verified,
            n_restarts=space.restarts,
            trace=trace,
            trace_standard_error=trace_error,
            reason=self._reason(scale, int(top.converged.sum() + bottom.converged.sum())),
        )

    # inside

    def _random_start_gap(self) -> float:
        """Bound how far the first Ritz value may lie from the end of the spectrum; infinite for a given start."""
        if not self.random_start:
            return math.inf
        # A restart keeps what the full basis knew; how much the products after it add, the theorem does not tell.
        products = min(self.first_chain or self.space.n_products, len(self.space.basis))
        return random_start_gap(self.space.n, products, float(self.theta[-1] - self.theta[0]))

    def _rayleigh_ritz(self) -> None:
        """Update Ritz values, vectors, residuals and the certificate."""
        space = self.space
        self.theta, self.Y, self.residuals = space.ritz()
        m = len(self.theta)
        self.certificate = certify(
            self.theta,
            self.residuals,
            k=min(self.k, m),
            k_negative=min(self.k_negative, m),
            rtol=self.rtol,
            floor=space.floor(float(np.abs(self.theta).max())),
        )

    def _certified(self) -> bool:
        assert self.certificate is not None
        needed = min(self.space.n, self.k + self.k_negative + 2 * GUARDS)
        return self.space.size >= needed and self.certificate.complete

    def _wanted(self) -> tuple[np.ndarray, Certificate]:
        """Return the wanted values, both ends as descending sequences, and their certificate."""
        assert self.certificate is not None
        return np.concatenate([self.theta[::-1][: self.k], -self.theta[: self.k_negative]]), self.certificate

    def _verification_ends(self) -> bool:
        """Judge the running verification; True = everything is done.

        A wanted value that moved further than its bound shows that something had been missed: then the solver goes back
        to certifying, and a new verification follows. Otherwise the bounds found before stay valid, because a larger
        basis moves a Ritz value towards the eigenvalue of its rank, never past it.
        """
        running = self._verifying
        assert running is not None
        values, certificate = self._wanted()
        moved = np.abs(values - running.values) > running.certificate.bounds
        length = self.space.size - running.first
        if moved.any():
            self._verifying = None
            self._verifications += 1
            return False
        longest = self.space.full or length >= MAX_VERIFY_STEPS
        if length < VERIFY_STEPS or (not longest and self._may_still_rise(running)):
            return False
        self.certificate = certificate.tightened_by(running.certificate)
        self.verified = True
        return True

    def _may_still_rise(self, running: "_Verification") -> bool:
        """Tell whether the verification chain may be on its way to an eigenvalue among the wanted ones.

        The chain sees the operator outside the earlier basis. Its extreme Ritz value grows with every step, by less and
        less once it arrives; while two more steps like the last two would carry it among the wanted values, it goes on.
        """
        m = self.space.size
        block = self.space.projected[running.first : m, running.first : m]
        (now, _), (before, _) = small_eigh(block), small_eigh(block[:-2, :-2])
        top = self.k and now[-1] + (now[-1] - before[-1]) > self.theta[::-1][self.k - 1]
        bottom = self.k_negative and now[0] + (now[0] - before[0]) < self.theta[self.k_negative - 1]
        return bool(top or bottom)

    def _next_vector(self) -> tuple[Tensor | None, bool]:
        """Return the direction to extend by, and whether it is a fresh random one.

        Certifying: the open end that carries the largest residual of the pairs still waiting. Verifying: a fresh random
        vector first, then its own chain.
        """
        space, running = self.space, self._verifying
        if running is not None and space.size == running.first:
            return space.fresh_vector(), True
        ends = space.ends[-1:] if running is not None else sorted(space.ends, key=self._share, reverse=True)
        for end in ends:
            vector = space.continuation(end)
            if vector is not None:
                return vector, False
        return space.fresh_vector(), True

    def _share(self, end: OpenEnd) -> float:
        """Return how much of the waiting pairs' residuals lies along an open end."""
        if len(self.space.ends) == 1:
            return 1.0
        assert self.certificate is not None
        m = self.space.size
        waiting = np.concatenate(
            [
                (m - 1 - np.arange(len(self.certificate.top_certified)))[~self.certificate.top_certified],
                np.arange(len(self.certificate.bottom_certified))[~self.certificate.bottom_certified],
            ]
        )
        return float(np.linalg.norm(end.coefficients @ self.Y[:, waiting])) * end.norm

    def _restart(self) -> None:
        """Keep the wanted Ritz vectors and as many beyond them as fit in half of the basis."""
        m, room = self.space.size, len(self.space.basis) // 2
        spare = max(room - self.k - self.k_negative, 0)
        n_top = min(self.k + (2 * spare) // 3, m) if self.k else 0
        n_bottom = min(self.k_negative + spare - (2 * spare) // 3, m - n_top) if self.k_negative else 0
        kept = np.concatenate([np.arange(n_bottom), np.arange(m - n_top, m)])
        self.space.restart(self.theta[kept], self.Y[:, kept])
        self.theta, self.Y, self.residuals = self.theta[kept], np.eye(len(kept)), self.residuals[kept]
        self._verifying = None  # its chain is gone with the old basis; certified values are verified anew

    def _pairs(
        self, order: np.ndarray, sign: float, bounds: np.ndarray, certified: np.ndarray, converged: np.ndarray
    ) -> Eigenpairs:
        """Assemble one end, outermost first; what no certificate covers gets the wider bound and is not converged."""
        honest = honest_bounds_when_not_certified(
            sign * self.theta[order],
            bounds,
            certified,
            ranks_known=self.verified or not self.verify,
            first_gap=self._random_start_gap(),
        )
        return Eigenpairs(
            values=torch.from_numpy(self.theta[order].copy()),
            vectors=self.space.vectors(self.Y[:, order]),
            residuals=torch.from_numpy(self.residuals[order].copy()),
            error_bounds=torch.from_numpy(honest),
            converged=torch.from_numpy(converged & (honest <= bounds)),
        )

    def _reason(self, scale: float, n_converged: int) -> str:
        certificate = self.certificate
        assert certificate is not None
        wanted = self.k + self.k_negative
        missing = wanted - n_converged
        if missing and not certificate.attainable:
            attainable = FLOOR_FACTOR * self.space.floor(scale) / scale
            if self.space.noise > UNUSUAL_NOISE * self.space.eps * scale:
                return (
                    f"the products agree with a symmetric operator only to {self.space.noise / scale:.1e} of its norm, "
                    f"so rtol={self.rtol:g} cannot be shown; check that the operator is symmetric and deterministic"
                )
            return (
                f"rtol={self.rtol:g} is below what {str(self.space.dtype).removeprefix('torch.')} products can show; "
                f"the attainable value is {attainable:.1e}, or take the Hessian in float64"
            )
        if missing:
            return (
                f"{missing} of {wanted} values not certified within {self.space.n_products} "
                "products; raise max_products or rtol"
            )
        return ""


def _trace(space: KrylovSpace) -> tuple[float, float]:
    """Estimate the trace: the part inside the basis exactly, the rest from the last random start.

    With P the projector onto the complement (dimension N) of the basis and g a random unit vector there,
    E[N g'Hg] = tr(PHP) and its variance is close to 2 (|PHP|_F² - tr(PHP)²/N), |PHP|_F² = E[N |PHg|²]
    (Hutchinson 1990; Meyer et al. 2021, Hutch++, with the Krylov basis as sketch).
    """
    if space.complete:
        return float(np.trace(space.projected[: space.n, : space.n])), 0.0
    if space.restarts or not space.fresh_starts:
        return math.nan, math.nan
    last: FreshStart = space.fresh_starts[-1]
    m, outside = last.basis_size, space.n - last.basis_size
    inside = float(np.trace(space.projected[:m, :m]))
    variance = 2.0 * outside * max(last.squared_norm - last.quotient**2, 0.0)
    return inside + outside * last.quotient, math.sqrt(variance)


def _check_arguments(
    operator: SymmetricOperator,
    k: int,
    k_negative: int,
    rtol: float,
    max_products: int | None,
    start: Tensor | None,
    max_basis: int,
) -> int:
    shape = tuple(int(size) for size in operator.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        msg = f"operator.shape is {shape}; a symmetric operator has shape (n, n) with n at least 1"
        raise ValueError(msg)
    n = shape[0]
    if k < 0 or k_negative < 0 or k + k_negative == 0:
        msg = f"k={k} and k_negative={k_negative}; neither may be negative and one must be positive"
        raise ValueError(msg)
    if not 0 < rtol < 1:
        msg = f"rtol={rtol}; a relative tolerance lies between 0 and 1"
        raise ValueError(msg)
    if max_products is not None and max_products < 1:
        msg = f"max_products={max_products}; at least 1 product is needed"
        raise ValueError(msg)
    if start is not None and tuple(start.shape) != (n,):
        msg = f"start has shape {tuple(start.shape)}; a start vector has shape ({n},)"
        raise ValueError(msg)
    least = min(n, max(2 * (k + k_negative) + 4 * GUARDS, 2 * VERIFY_STEPS + 2))
    if max_basis < least:
        msg = f"max_basis={max_basis} is too small for k={k} and k_negative={k_negative}; give at least {least}"
        raise ValueError(msg)
    return n
