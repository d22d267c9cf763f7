"""Memory: bounded by the micro-batch and not by the probe batch, flat over many snapshots."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from curvature_cases import DiagonalOperator, tokens_of

from spectral.curvature import HessianOperator, top_eigenpairs
from spectral.models import Transformer, next_token_loss

PEAK = """
import re, sys
from pathlib import Path
import torch
from spectral.curvature import HessianOperator
from spectral.models import Transformer, next_token_loss
torch.set_num_threads(1)
def peak():  # of this program; ru_maxrss would start from that of the process that launched it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
size, micro = int(sys.argv[1]), int(sys.argv[2]) or None
model = Transformer(vocab_size=16, seq_length=128, n_layers=2, n_heads=4, d_model=32)
tokens = torch.randint(0, 16, (size, 128), generator=torch.Generator().manual_seed(0))
HessianOperator(model, next_token_loss, tokens[:2]).matvec(torch.ones(sum(p.numel() for p in model.parameters())))
before = peak()
operator = HessianOperator(model, next_token_loss, tokens, microbatch_size=micro)
for i in range(3):
    operator.matvec(torch.ones(operator.n))
print((peak() - before) / 1024)
"""


def peak_growth(size, micro):
    """Return by how many MiB three products with this batch raise the peak memory of a fresh process."""
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(size), str(micro)], capture_output=True, text=True, check=True, timeout=120
    )
    return float(result.stdout)


def test_the_peak_depends_on_the_micro_batch_and_not_on_the_probe_batch():
    small, large, whole = peak_growth(16, 4), peak_growth(96, 4), peak_growth(96, 0)
    assert whole > 100  # the graph of 96 sequences is what micro-batches avoid
    assert large < 0.25 * whole
    assert large < small + 0.1 * whole


def resident():
    """Return the resident memory of this process in pages of 4 KiB."""
    return int(Path("/proc/self/statm").read_text().split()[1])


def live_tensors():
    gc.collect()
    # By type and not isinstance: asking some deprecated objects for their class warns.
    return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())


@pytest.mark.parametrize("options", [{}, {"microbatch_size": 1}, {"microbatch_size": 2, "keep_graphs": True}])
def test_memory_is_flat_over_two_hundred_snapshots(options):
    torch.manual_seed(0)
    model = Transformer(vocab_size=6, seq_length=12, n_layers=1, n_heads=2, d_model=8)
    tokens = tokens_of("repeated")

    def snapshots(count):
        for seed in range(count):
            operator = HessianOperator(model, next_token_loss, tokens, **options)
            top_eigenpairs(operator, k=2, k_negative=1, max_products=6, seed=seed)

    snapshots(20)
    tensors, pages = live_tensors(), resident()
    snapshots(200)
    assert live_tensors() == tensors
    assert resident() - pages < 2 * 1024


def test_the_default_basis_of_a_large_model_fits_into_memory():
    from spectral.curvature.lanczos import BASIS_BYTES, _basis_size

    class Large:
        def __init__(self, n, dtype):
            self.shape, self.dtype = (n, n), dtype

        def matvec(self, v):
            raise NotImplementedError

    small, large = Large(45_000, torch.float32), Large(10_000_000, torch.float32)
    assert _basis_size(small, 45_000, 10, 3, None) == 128
    assert _basis_size(small, 45_000, 100, 0, None) == 400
    size = _basis_size(large, 10_000_000, 10, 3, None)
    assert 34 <= size <= 40
    assert size * 10_000_000 * 4 <= BASIS_BYTES
    assert _basis_size(Large(10**8, torch.float64), 10**8, 10, 3, None) == 34  # as many as the pairs need


@pytest.mark.parametrize("max_basis", [34, 40])
def test_a_small_basis_that_is_rewritten_in_pieces_gives_the_same_values(max_basis, monkeypatch):
    monkeypatch.setattr("spectral.curvature.krylov.COLUMNS_AT_ONCE", 64)
    values = torch.cat([torch.linspace(-1, 1, 300, dtype=torch.float64), torch.arange(2.0, 12.0, dtype=torch.float64)])
    spectrum = top_eigenpairs(DiagonalOperator(values), k=10, k_negative=3, max_basis=max_basis)
    assert spectrum.n_restarts > 0
    torch.testing.assert_close(spectrum.top.values, values.flip(0)[:10], rtol=1e-5, atol=1e-7)
