"""What a snapshot costs against the number of parameters, the size of the probe batch and k.

    python -m benchmarks.scaling [--compiled] [--json FILE] [--only n|batch|k] [--largest 10000000]

Every row runs in a process of its own, so that its peak memory is its own: attention-only transformers with 64 tokens a
sequence, 100 steps of training first where the model is small (a spectrum at initialisation is the hardest kind).
Columns: gradient, product = seconds of one; price = product / gradient; products, seconds = of one snapshot of the top
k and 3 most negative values; peak = resident memory of the process, its libraries (about 0.35 GiB) included.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import spectral
from benchmarks.report import machine, report
from spectral.config import RunConfig
from spectral.data import DataSource
from spectral.models import Transformer, next_token_loss
from spectral.training.memory import keep_freed_memory
from spectral.training.setup import make_optimizer

SIZES = (  # parameters, about: layers, width, heads, probe sequences, training steps before
    (10_000, 2, 32, 4, 16, 100),
    (45_000, 2, 64, 4, 16, 100),
    (100_000, 2, 104, 4, 16, 100),
    (1_000_000, 4, 240, 8, 8, 20),
    (10_000_000, 6, 640, 8, 8, 0),
)


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Time one case in this process."""
    keep_freed_memory()
    config = RunConfig(
        vocab_size=64,
        seq_length=64,
        n_layers=case["layers"],
        n_heads=case["heads"],
        d_model=case["width"],
        eigen_probe_size=case["probe"],
        batch_size=32,
        lr=2e-3,
    )
    source = DataSource(config, "cpu")
    model = Transformer.from_config(config)
    optimizer = make_optimizer(config, model)
    for step in range(case["steps"]):
        optimizer.zero_grad()
        next_token_loss(model, source.batch(step).tokens).backward()
        optimizer.step()
    tokens = source.curvature_probe.tokens
    model.eval()
    optimizer.zero_grad()

    def gradient() -> None:
        torch.autograd.grad(next_token_loss(model, tokens), list(model.parameters()))

    compiled = spectral.CompiledProduct() if case["compiled"] else None
    gradient_seconds = _median(gradient, 5)
    micro = case["microbatch"]
    spectral.HessianOperator(model, next_token_loss, tokens, microbatch_size=micro, compiled=compiled)  # compiles
    started = time.perf_counter()
    operator = spectral.HessianOperator(model, next_token_loss, tokens, microbatch_size=micro, compiled=compiled)
    spectrum = spectral.top_eigenpairs(operator, k=case["k"], k_negative=3)
    seconds = time.perf_counter() - started
    v = torch.randn(operator.n)
    product_seconds = _median(lambda: operator.matvec(v), 5)
    return {
        "parameters": operator.n,
        "probe": case["probe"],
        "k": case["k"],
        "gradient": gradient_seconds,
        "product": product_seconds,
        "price": product_seconds / gradient_seconds,
        "products": spectrum.n_products,
        "seconds": seconds,
        "converged": spectrum.converged,
        "restarts": spectrum.n_restarts,
        "peak, GiB": _peak_bytes() / 2**30,
    }


def _peak_bytes() -> int:
    """Return the peak resident memory of this program; `ru_maxrss` would start from that of its parent."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def _median(function: Any, repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def cases(largest: int, *, compiled: bool) -> dict[str, list[dict[str, Any]]]:
    """Return the cases of each table."""

    def case(size: tuple[int, ...], **changes: Any) -> dict[str, Any]:
        _, layers, width, heads, probe, steps = size
        values = {"layers": layers, "width": width, "heads": heads, "probe": probe, "steps": steps}
        micro = 4 if size[0] > 1_000_000 else None
        return {**values, "k": 10, "compiled": compiled, "microbatch": micro, **changes}

    demo = SIZES[1]
    return {
        "n": [case(size) for size in SIZES if size[0] <= largest],
        "batch": [case(demo, probe=probe) for probe in (4, 16, 64, 128)],
        "k": [case(demo, k=k) for k in (1, 5, 10, 20, 50)],
    }


def main() -> None:
    """Print one table per question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", action="store_true", help="with compiled products, 20 to 60 s more a row")
    parser.add_argument("--largest", type=int, default=10_000_000, help="leave out larger models")
    parser.add_argument("--only", choices=("n", "batch", "k"), default=None)
    parser.add_argument("--json", default=None, help="also write the numbers to FILE_<table>.json")
    parser.add_argument("--case", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(json.loads(arguments.case))))
        return
    facts = machine()
    for table, entries in cases(arguments.largest, compiled=arguments.compiled).items():
        if arguments.only in (None, table):
            rows = []
            for entry in entries:
                command = [sys.executable, "-m", "benchmarks.scaling", "--case", json.dumps(entry)]
                result = subprocess.run(command, capture_output=True, text=True, check=True)
                rows.append(json.loads(result.stdout.splitlines()[-1]))
            path = f"{arguments.json}_{table}.json" if arguments.json else None
            report(f"Cost of a snapshot against {table}", rows, facts=facts, path=path)


if __name__ == "__main__":
    main()
