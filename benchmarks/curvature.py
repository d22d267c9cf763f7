"""Top Hessian eigenvalues of the demo model: this suite beside other ways, in one run, against float64 truth.

    python -m benchmarks.curvature [--repeats 3] [--json FILE] [--preset demo_learned]

Columns: products = Hessian-vector products; seconds = median wall time; error = largest relative error of the ten
values (methods that rank by modulus are scored against the ten largest moduli); certified = whether the method says how
far its values can be trusted.
"""

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyhessian
import scipy.sparse.linalg
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import spectral
from benchmarks.snapshots import Snapshot, demo_snapshots
from spectral.models import next_token_loss

K = 10
Result = tuple[np.ndarray, int]


def truth(snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray]:
    """Return the top values and the largest moduli in float64, by ARPACK to machine precision (another solver)."""
    operator = spectral.HessianOperator(copy.deepcopy(snapshot.model).double(), next_token_loss, snapshot.tokens)
    linear = scipy_operator(operator, np.float64)
    top = scipy.sparse.linalg.eigsh(linear, k=K, which="LA", tol=1e-9, ncv=80, return_eigenvectors=False)
    modulus = scipy.sparse.linalg.eigsh(linear, k=K, which="LM", tol=1e-9, ncv=80, return_eigenvectors=False)
    return np.sort(top)[::-1], modulus[np.argsort(-np.abs(modulus))]


def scipy_operator(operator: spectral.HessianOperator, dtype: Any) -> Any:
    """Wrap our operator for scipy."""

    def product(v: np.ndarray) -> np.ndarray:
        return operator.matvec(torch.as_tensor(v.ravel(), dtype=operator.dtype)).numpy().astype(dtype)

    return scipy.sparse.linalg.LinearOperator(operator.shape, matvec=product, dtype=dtype)


def with_spectral(snapshot: Snapshot, seed: int) -> Result:
    """Certified top 10 and 3 most negative values."""
    operator = spectral.HessianOperator(snapshot.model, next_token_loss, snapshot.tokens)
    spectrum = spectral.top_eigenpairs(operator, k=K, k_negative=3, seed=seed)
    return spectrum.top.values.numpy(), spectrum.n_products


def with_scipy(snapshot: Snapshot, seed: int) -> Result:
    """Scipy's ARPACK over our products, top 10 at tol 1e-3."""
    operator = spectral.HessianOperator(snapshot.model, next_token_loss, snapshot.tokens)
    start = np.random.default_rng(seed).normal(size=operator.shape[0])
    values = scipy.sparse.linalg.eigsh(
        scipy_operator(operator, np.float32), k=K, which="LA", tol=1e-3, v0=start, return_eigenvectors=False
    )
    return np.sort(values)[::-1], operator.n_products


def with_pyhessian(snapshot: Snapshot, seed: int) -> Result:
    """PyHessian's power iteration with deflation at its tolerance 1e-3."""
    torch.manual_seed(seed)
    counted = 0
    module = sys.modules["pyhessian.hessian"]  # the package's attribute of that name is the class
    original = module.hessian_vector_product

    def counting(*arguments: Any) -> Any:
        nonlocal counted
        counted += 1
        return original(*arguments)

    module.hessian_vector_product = counting
    try:
        model = copy.deepcopy(snapshot.model)
        computer = pyhessian.hessian(model, _next_token_criterion, data=(snapshot.tokens, snapshot.tokens), cuda=False)
        values, _ = computer.eigenvalues(maxIter=100, tol=1e-3, top_n=K)
    finally:
        module.hessian_vector_product = original
    return np.array(values), counted


def with_power_iteration(snapshot: Snapshot, seed: int) -> Result:
    """Fixed 20 power iterations per value with deflation, value = norm of the product: the sign is lost."""
    operator = spectral.HessianOperator(snapshot.model, next_token_loss, snapshot.tokens)
    generator = torch.Generator().manual_seed(seed)
    found: list[torch.Tensor] = []
    values = []
    for _ in range(K):
        v = torch.randn(operator.n, generator=generator)
        value = 0.0
        for _ in range(20):
            for u in found:
                v = v - (u @ v) * u
            v = v / v.norm()
            product = operator.matvec(v)
            value = float(product.norm())
            v = product
        found.append(v / v.norm())
        values.append(value)
    return np.array(values), operator.n_products


def _next_token_criterion(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))


METHODS: dict[str, tuple[Callable[[Snapshot, int], Result], bool, bool]] = {
    # name: (method, ranks by modulus, certifies)
    "spectral (top 10 + 3 negative)": (with_spectral, False, True),
    "scipy eigsh, our products": (with_scipy, False, False),
    "PyHessian": (with_pyhessian, True, False),
    "power iteration, 20 steps": (with_power_iteration, True, False),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default=None, help="also write the numbers to this file")
    parser.add_argument("--preset", default="demo_learned", choices=("demo", "demo_learned"))
    arguments = parser.parse_args()
    rows = []
    for snapshot in demo_snapshots(preset=arguments.preset):
        top, modulus = truth(snapshot)
        collected: dict[str, list[tuple[float, int, float]]] = {name: [] for name in METHODS}
        for seed in range(arguments.repeats):  # methods interleaved, so that all see the same load
            for name, (method, by_modulus, _) in METHODS.items():
                started = time.perf_counter()
                values, products = method(snapshot, seed)
                seconds = time.perf_counter() - started
                wanted = modulus if by_modulus else top
                error = float(np.max(np.abs(values - wanted) / np.abs(wanted)))
                collected[name].append((seconds, products, error))
        ours = statistics.median(seconds for seconds, _, _ in collected["spectral (top 10 + 3 negative)"])
        for name, found in collected.items():
            seconds = statistics.median(s for s, _, _ in found)
            rows.append(
                {
                    "snapshot": f"{snapshot.name} (step {snapshot.step}, accuracy {snapshot.accuracy:.2f})",
                    "method": name,
                    "products": statistics.median(p for _, p, _ in found),
                    "seconds": seconds,
                    "ours / theirs": ours / seconds,
                    "largest relative error": max(e for _, _, e in found),
                    "certified": METHODS[name][2],
                }
            )
    table = Table(title=f"Top {K} Hessian eigenvalues, {arguments.preset}, median of {arguments.repeats}")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=150).print(table)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(machine)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine, "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
