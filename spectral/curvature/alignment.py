"""How the gradient lies relative to the extreme eigenvectors, and how eigenvectors move and spread.

All quantities are squared cosines or squared norms of projections, so an eigenvector's arbitrary sign never enters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spectral.curvature.lanczos import Spectrum
from spectral.curvature.sums import inner_products, norm, norm_outside


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientAlignment:
    """Share of the squared gradient norm along the top eigenvectors.

    Attributes:
        cos_squared: [k] (g . x_i)² / |g|² per eigenvector, range [0, 1].
        cumulative: [k] running sum: the share inside the span of the first i eigenvectors, range [0, 1].
        chance: 1 / n, the mean of `cos_squared` for a random direction.
        cumulative_chance: [k] i / n, the mean of `cumulative` for a random direction.
        bottom_cos_squared: [k_negative] the same for the most negative eigenvectors.
        gradient_norm: |g|, nats per parameter unit.
        bulk: share of |g|² outside the span of all top and bottom eigenvectors of the spectrum, range [0, 1].
        bulk_chance: 1 - (k + k_negative) / n, its mean for a random direction. (Where n is so small that an eigenvector
            belongs to both ends, it counts once.)
    """

    cos_squared: Float[Tensor, " k"]
    cumulative: Float[Tensor, " k"]
    chance: float
    cumulative_chance: Float[Tensor, " k"]
    bottom_cos_squared: Float[Tensor, " k_negative"]
    gradient_norm: float
    bulk: float
    bulk_chance: float

    @property
    def total(self) -> float:
        """Share of the squared gradient norm inside the span of all top eigenvectors."""
        return float(self.cumulative[-1]) if len(self.cumulative) else 0.0


def gradient_alignment(spectrum: Spectrum, gradient: Float[Tensor, " n"]) -> GradientAlignment:
    """Return how much of the gradient lies along each eigenvector.

    Formula: cos²_i = (g . x_i)² / |g|². Range [0, 1]; a random direction has mean 1/n, the first k together k/n.
    Inside a cluster of eigenvalues closer than their error bounds only the sum over the cluster has a meaning.
    NaN when the gradient is zero. A high share does not imply that the top space is where learning happens
    (Song, Ahn and Yun 2025, arXiv 2405.16002).

    Raises:
        ValueError: the gradient has another length than the eigenvectors.
    """
    n = spectrum.top.vectors.shape[1] if len(spectrum.top.values) else spectrum.bottom.vectors.shape[1]
    if tuple(gradient.shape) != (n,):
        msg = f"the gradient has shape {tuple(gradient.shape)}, the eigenvectors have length {n}; use operator.gradient"
        raise ValueError(msg)
    g = gradient.detach()
    length = float(norm(g))
    k = len(spectrum.top.values)

    def shares(vectors: Tensor) -> Tensor:
        if length == 0.0:
            return torch.full((len(vectors),), math.nan, dtype=torch.float64)
        return ((inner_products(vectors, g[None])[:, 0] / length) ** 2).clamp(max=1.0).cpu()

    cos_squared = shares(spectrum.top.vectors)
    bulk, rank = _share_outside(torch.cat([spectrum.top.vectors, spectrum.bottom.vectors]), g)
    return GradientAlignment(
        cos_squared=cos_squared,
        cumulative=cos_squared.cumsum(0).clamp(max=1.0),  # float32 vectors are orthonormal up to rounding only
        chance=1.0 / n,
        cumulative_chance=torch.arange(1, k + 1, dtype=torch.float64) / n,
        bottom_cos_squared=shares(spectrum.bottom.vectors),
        gradient_norm=length,
        bulk=bulk,
        bulk_chance=1.0 - rank / n,
    )


def _share_outside(vectors: Float[Tensor, "j n"], g: Float[Tensor, " n"]) -> tuple[float, int]:
    """Return the share of |g|² outside the span of unit vectors, and the dimension of that span.

    Through their Gram matrix: both ends of a small spectrum can hold the same eigenvector, and float32 vectors are
    orthonormal up to rounding only.
    """
    values, Y = torch.linalg.eigh(inner_products(vectors, vectors))
    kept = values > 0.5  # about 1 for a vector of its own; 2 and 0 for a pair of equal ones
    Y = Y[:, kept]
    coefficients = Y @ ((Y.T @ inner_products(vectors, g[None])[:, 0]) / values[kept])
    length = float(norm(g))
    # The rest's own norm, not 1 minus the share inside: that would drown a small rest in rounding.
    share = float(norm_outside(g, coefficients, vectors) / length) ** 2 if length > 0 else math.nan
    return min(share, 1.0), int(kept.sum())


def subspace_overlap(vectors: Float[Tensor, "k n"], subspace: Float[Tensor, "j n"]) -> Float[Tensor, " k"]:
    """Return how much of each vector lies in the span of orthonormal rows: sum over j of (x_i . u_j)².

    Range [0, 1]; 1 = the vector stayed inside; a random vector has mean j/n. Robust against crossings and rotations
    inside a cluster, which make vector-by-vector comparison meaningless.
    """
    return (inner_products(vectors, subspace) ** 2).sum(dim=1).clamp(0.0, 1.0).cpu()


def block_mass(vectors: Float[Tensor, "k n"], blocks: Mapping[str, slice | Tensor]) -> dict[str, Float[Tensor, " k"]]:
    """Return how much of each unit vector's squared norm lies in each block of parameters.

    Formula: sum of x_i² over the block. Range [0, 1], the blocks of a partition sum to 1; chance = block size / n.

    Args:
        vectors: rows of norm 1.
        blocks: name -> slice of the flat vector or an index tensor.
    """
    return {name: vectors[:, where].double().square().sum(dim=1).cpu() for name, where in blocks.items()}
