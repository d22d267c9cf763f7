"""Error bounds for Ritz values: how far can the eigenvalue of the same rank be?

Inputs are Ritz values theta_1 >= ... >= theta_m of an orthonormal basis and their residual norms r_i. Used are, with a
cluster C of consecutive Ritz values, R² = sum of r_j² over C and delta the distance from C to the rest of the spectrum:

    linear    |lambda_i - theta_i| <= R            (Kahan 1967; Parlett 1998, theorem 11.5.1)
    quadratic |lambda_i - theta_i| <= R² / delta   (Mathias 1998, quadratic residual bounds)

for every i in C. The rest of the spectrum is known through the other Ritz values only, so delta is taken to their
values plus or minus their own residuals. The bound reported is the smallest over clusters of up to `MAX_CLUSTER`
values around i, but at least a quarter of r_i and at least the rounding floor. Why a quarter: two eigenvalues closer
than about r_i can still share one Ritz value, c1² lambda_1 + c2² lambda_2, and then its error is r_i c2 / c1, which no
quadratic bound sees. For a random start c2 / c1 is of order one.
"""

import math
from dataclasses import dataclass

import numpy as np

MAX_CLUSTER = 6
LEAST_SHARE_OF_RESIDUAL = 0.25
FLOOR_FACTOR = 4.0  # a tolerance counts as met at this many rounding floors
RTOL_NEGATIVE_FACTOR = 10.0  # the negative end is small against the top: ten times the tolerance there
MISS_PROBABILITY = 0.01


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Bounds and verdicts for the wanted values of one Rayleigh-Ritz step.

    Attributes:
        top_bounds, top_converged: [k] for the largest values, descending; converged = the bound meets the tolerance.
        bottom_bounds, bottom_converged: [k_negative] for the smallest, ascending.
        top_certified, bottom_certified: whether the bound meets the tolerance or has come down to rounding, where more
            products would change nothing.
        attainable: whether the tolerance lies above the rounding floor for the largest value.
    """

    top_bounds: np.ndarray
    top_converged: np.ndarray
    bottom_bounds: np.ndarray
    bottom_converged: np.ndarray
    top_certified: np.ndarray
    bottom_certified: np.ndarray
    attainable: bool

    @property
    def complete(self) -> bool:
        """Whether every wanted value is certified."""
        return bool(self.top_certified.all() and self.bottom_certified.all())

    @property
    def bounds(self) -> np.ndarray:
        """Bounds of the top values, then of the bottom ones."""
        return np.concatenate([self.top_bounds, self.bottom_bounds])

    def tightened_by(self, earlier: "Certificate") -> "Certificate":
        """Return the smaller bound and the better verdict of two certificates of the same, growing basis."""
        return Certificate(
            top_bounds=np.minimum(self.top_bounds, earlier.top_bounds),
            top_converged=self.top_converged | earlier.top_converged,
            bottom_bounds=np.minimum(self.bottom_bounds, earlier.bottom_bounds),
            bottom_converged=self.bottom_converged | earlier.bottom_converged,
            top_certified=self.top_certified | earlier.top_certified,
            bottom_certified=self.bottom_certified | earlier.bottom_certified,
            attainable=self.attainable,
        )


def certify(
    theta: np.ndarray, residuals: np.ndarray, *, k: int, k_negative: int, rtol: float, floor: float
) -> Certificate:
    """Bound the error of the k largest and k_negative smallest Ritz values.

    Args:
        theta: [m] Ritz values, ascending.
        residuals: [m] their residual norms.
        k, k_negative: wanted values at the two ends, each at most m.
        rtol: relative tolerance at the top; `RTOL_NEGATIVE_FACTOR` times as loose at the bottom.
        floor: rounding level of the values, same unit.
    """
    scale = float(np.abs(theta).max())
    top_bounds = residual_bounds(theta[::-1], residuals[::-1], k, floor)
    bottom_bounds = residual_bounds(-theta, residuals, k_negative, floor)
    at_floor = FLOOR_FACTOR * floor
    attainable = rtol * scale >= at_floor or scale == 0.0
    # Values that are zero up to rounding have no relative error; the floor decides for them.
    least = at_floor if attainable else 0.0
    top_tolerance = np.maximum(rtol * np.abs(theta[::-1][:k]), least)
    bottom_tolerance = np.maximum(RTOL_NEGATIVE_FACTOR * rtol * np.abs(theta[:k_negative]), max(rtol * scale, least))
    return Certificate(
        top_bounds=top_bounds,
        top_converged=top_bounds <= top_tolerance,
        bottom_bounds=bottom_bounds,
        bottom_converged=bottom_bounds <= bottom_tolerance,
        top_certified=top_bounds <= np.maximum(top_tolerance, at_floor),
        bottom_certified=bottom_bounds <= np.maximum(bottom_tolerance, at_floor),
        attainable=attainable,
    )


def residual_bounds(theta: np.ndarray, residuals: np.ndarray, k: int, floor: float) -> np.ndarray:
    """Return bounds for the first k of the descending Ritz values `theta` [m] with residual norms `residuals` [m]."""
    m = len(theta)
    best = np.full(k, np.inf)
    squares = np.concatenate([[0.0], np.cumsum(residuals**2)])
    for first in range(k):
        above = theta[first - 1] - residuals[first - 1] - theta[first] if first else np.inf
        # A cluster of everything down to the last Ritz value has no known distance to the rest of the spectrum.
        for last in range(first, min(first + MAX_CLUSTER, m - 1)):
            total = squares[last + 1] - squares[first]
            below = theta[last] - (theta[last + 1] + residuals[last + 1])
            delta = min(above, below)
            bound = math.sqrt(total)
            if delta > bound:  # then the quadratic bound is the smaller one
                bound = total / delta
            if delta > 0:
                inside = slice(first, min(last + 1, k))
                best[inside] = np.minimum(best[inside], bound)
    # Whatever the clusters: the linear bound over everything from the first to i's own cluster partners.
    linear = np.sqrt(squares[1 : k + 1])
    bounds = np.maximum(np.minimum(best, linear), LEAST_SHARE_OF_RESIDUAL * residuals[:k])
    return np.asarray(np.maximum(bounds, floor))


def honest_bounds_when_not_certified(
    theta: np.ndarray, bounds: np.ndarray, certified: np.ndarray, *, ranks_known: bool, first_gap: float
) -> np.ndarray:
    """Replace the bounds of values that are not certified by ones that hold for the eigenvalue of the same rank.

    A Ritz value never exceeds the eigenvalue of its rank (Cauchy interlacing), and that one never exceeds the next
    certified eigenvalue above: lambda_i - theta_i <= theta_j + bound_j - theta_i with j < i certified. Without one,
    lambda_1 <= theta_1 + first_gap. Unless the ranks are known, any eigenvalue may be missing, and only lambda_1
    bounds the others.

    Args:
        theta, bounds, certified: [k], outermost first, measured from the end looked at (descending).
        ranks_known: whether nothing is missing between the certified values.
        first_gap: bound on lambda_1 - theta_1 from the random start, `random_start_gap`.
    """
    honest = bounds.copy()
    ceiling = theta[0] + max(first_gap, bounds[0]) if len(theta) else 0.0
    for i in range(len(theta)):
        if certified[i] and (ranks_known or i == 0):
            ceiling = theta[i] + bounds[i]
        else:
            honest[i] = max(bounds[i], ceiling - theta[i])
    return honest


def random_start_gap(n: int, products: int, spread: float, *, probability: float = MISS_PROBABILITY) -> float:
    """Bound lambda_1 - theta_1 after Lanczos steps from a random start; no gap in the spectrum is assumed.

    P[lambda_1 - theta_1 > eps (lambda_1 - lambda_n)] <= 1.648 sqrt(n) exp(-sqrt(eps) (2 q - 1)), q products
    (Kuczynski and Wozniakowski 1992, theorem 4.2), solved for eps at `probability`.

    Args:
        spread: lambda_1 - lambda_n, estimated from below by the Ritz values.
    """
    eps = (math.log(1.648 * math.sqrt(n) / probability) / max(2 * products - 1, 1)) ** 2
    # theta_1 lies inside, so the true spread is up to 1 / (1 - 2 eps) times the one seen.
    return eps * spread / (1 - 2 * eps) if eps < 0.5 else math.inf
