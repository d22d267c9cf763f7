"""The whole spectrum's density by stochastic Lanczos quadrature.

Each eigenvalue weighs 1/n, so a handful of outliers are invisible here: use `top_eigenpairs` for them and this for the
bulk. Source: Ghorbani, Krishnan and Xiao 2019; error bounds in Chen, Trogdon and Ubaru 2021 (arXiv 2105.06595).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spectral.curvature.krylov import KrylovSpace, SymmetricOperator


@dataclass(frozen=True, kw_only=True, eq=False)
class SpectralDensity:
    """Quadrature of the spectral density, raw and smoothed.

    Attributes:
        nodes: [n_probes, n_steps] Ritz values, ascending in each row.
        weights: [n_probes, n_steps] their weights; every row sums to 1.
        grid: [n_grid] points in units of the eigenvalues.
        density: [n_grid] mean over probes of the weights smoothed by Gaussians of standard deviation `sigma`; its
            integral is 1.
        sigma: smoothing width, unit of the eigenvalues.
        mean, mean_standard_error: estimate of tr(H)/n over the probes.
        n_products: operator products spent.
    """

    nodes: Float[Tensor, "n_probes n_steps"]
    weights: Float[Tensor, "n_probes n_steps"]
    grid: Float[Tensor, " n_grid"]
    density: Float[Tensor, " n_grid"]
    sigma: float
    mean: float
    mean_standard_error: float
    n_products: int


def spectral_density(
    operator: SymmetricOperator,
    *,
    n_probes: int = 1,
    n_steps: int = 80,
    n_grid: int = 1024,
    sigma: float | None = None,
    seed: int = 0,
) -> SpectralDensity:
    """Estimate the density of all eigenvalues of a symmetric operator.

    For large n one probe is enough and the steps decide about the resolution: the Wasserstein error is about
    12 / n_steps of the spectrum's width. Cost: n_probes * n_steps products.

    Args:
        operator: anything symmetric with `shape` and `matvec`.
        n_probes: random start vectors.
        n_steps: Lanczos steps per probe; n where n is smaller.
        n_grid: points of the smoothed curve.
        sigma: smoothing width; None = the spectrum's width / n_steps.
        seed: of the start vectors.

    Raises:
        ValueError: a count below 1 or a sigma that is not positive.
        NonFiniteError: the operator returned NaN or infinity.
    """
    if min(n_probes, n_steps, n_grid) < 1 or (sigma is not None and not sigma > 0):
        msg = f"n_probes={n_probes}, n_steps={n_steps}, n_grid={n_grid}, sigma={sigma}; all must be positive"
        raise ValueError(msg)
    n = int(operator.shape[0])
    steps = min(n_steps, n)
    all_nodes, all_weights, products = [], [], 0
    for probe in range(n_probes):
        # A generator of its own per probe: more probes never change the first ones.
        space = KrylovSpace(operator, n, seed=seed + 1_000_003 * probe, start=None, max_basis=steps)
        vector: Tensor | None = space.fresh_vector()
        while vector is not None:
            space.extend(vector)
            if space.size == steps:
                break
            # An invariant subspace is left through a fresh vector, which carries no weight of the probe.
            onward = space.continuation(space.ends[-1]) if space.ends else None
            vector = onward if onward is not None else space.fresh_vector()
        theta, Y, _ = space.ritz()
        all_nodes.append(torch.from_numpy(theta.copy()))
        all_weights.append(torch.from_numpy(Y[0] ** 2))
        products += space.n_products
    nodes, weights = torch.stack(all_nodes), torch.stack(all_weights)
    low, high = float(nodes.min()), float(nodes.max())
    width, scale = high - low, max(abs(low), abs(high))
    if width <= 1e3 * torch.finfo(space.dtype).eps * scale:  # one point up to rounding: any visible width will do
        width = scale or 1.0
    smoothing = sigma if sigma is not None else width / steps
    grid = torch.linspace(low - 4 * smoothing, high + 4 * smoothing, n_grid, dtype=torch.float64)
    bumps = torch.exp(-0.5 * ((grid[:, None, None] - nodes) / smoothing) ** 2) / (smoothing * math.sqrt(2 * math.pi))
    means = (nodes * weights).sum(dim=1)
    return SpectralDensity(
        nodes=nodes,
        weights=weights,
        grid=grid,
        density=(bumps * weights).sum(dim=2).mean(dim=1),
        sigma=smoothing,
        mean=float(means.mean()),
        mean_standard_error=float(means.std() / math.sqrt(n_probes)) if n_probes > 1 else math.nan,
        n_products=products,
    )
