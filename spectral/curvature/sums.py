"""Norms and inner products of very long vectors, summed in float64.

PyTorch adds up float32 terms in float32: over ten million of them a norm comes out 4e-4 too small and an inner product
of two rows 1e-2. Converting whole bases would need twice their memory, so pieces are converted one after the other.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

COLUMNS_AT_ONCE = 2**18  # 2 MiB of float64 per row
TERMS_AT_ONCE = 2**16  # of a float32 sum on a CPU; up to here it is good to the last digit


def norm(x: Tensor) -> Tensor:
    """Return the Euclidean norm of a vector as a float64 scalar on its device."""
    length: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return length


def joint_norm(parts: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of one vector that comes in parts, as a float64 scalar."""
    return norm(torch.stack([norm(part) for part in parts]))


def products_with(rows: Tensor, w: Tensor) -> Tensor:
    """Return rows @ w [m] as float64, for rows [m, n] and w [n].

    Short sums are taken in the dtype of the rows and added up in float64: a third of the price of `inner_products`,
    and enough for orthogonality to rounding. GPUs add up in a tree, which is as good.
    """
    if w.dtype == torch.float64 or w.device.type != "cpu" or len(w) <= TERMS_AT_ONCE:
        return (rows @ w).double()
    pieces = zip(rows.split(TERMS_AT_ONCE, dim=1), w.split(TERMS_AT_ONCE), strict=True)
    return torch.stack([part @ part_w for part, part_w in pieces]).sum(dim=0, dtype=torch.float64)


def inner_products(A: Tensor, B: Tensor) -> Tensor:
    """Return A Bᵀ [a, b] in float64, for rows A [a, n] and B [b, n]."""
    total = torch.zeros(len(A), len(B), dtype=torch.float64, device=A.device)
    for part_A, part_B in _pieces(A, B):
        total += part_A @ part_B.T
    return total


def norm_outside(g: Tensor, coefficients: Tensor, rows: Tensor) -> Tensor:
    """Return |g - coefficients @ rows| as a float64 scalar, for g [n], coefficients [j] float64 and rows [j, n]."""
    total = torch.zeros((), dtype=torch.float64, device=g.device)
    for part_g, part_rows in _pieces(g[None], rows):
        total += (part_g[0] - coefficients @ part_rows).square().sum()
    return total.sqrt()


def _pieces(A: Tensor, B: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the same columns of both, in float64."""
    for part_A, part_B in zip(A.split(COLUMNS_AT_ONCE, dim=1), B.split(COLUMNS_AT_ONCE, dim=1), strict=True):
        yield part_A.double(), part_A.double() if A is B else part_B.double()
