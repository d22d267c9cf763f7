"""What one snapshot measures, as `group/dataset` -> array, ready to be stored.

Every function leaves the model and all random state as it found them.
"""

import contextlib
import copy
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spectral.behaviour import behaviour_scores, induction_accuracy
from spectral.circuits import attention_scores, weight_scores
from spectral.curvature import (
    HessianOperator,
    Spectrum,
    block_mass,
    gradient_alignment,
    subspace_overlap,
    top_eigenpairs,
)
from spectral.curvature.lanczos import MAX_BASIS
from spectral.curvature.operator import LossFunction, map_tensors
from spectral.data import DataSource, TokenBatch
from spectral.models import Transformer
from spectral.randomness import derive_seed

Row = dict[str, Any]

PATTERN_BYTES = 64 * 2**20  # attention patterns held at once while head scores are taken
_HEAD_WEIGHT = re.compile(r"blocks\.(\d+)\.attn\.(W_[QKVO])$")


@dataclass(frozen=True, kw_only=True)
class CurvatureSettings:
    """How the Hessian is measured; the fields are those of `RunConfig` and `SpectralMonitor`."""

    k: int = 10
    k_negative: int = 3
    rtol: float = 1e-3
    max_products: int | None = None
    microbatch_size: int | None = None
    dtype: torch.dtype | None = None
    seed: int = 0


def measure_curvature(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    *,
    step: int,
    settings: CurvatureSettings,
    previous: Tensor | None = None,
    blocks: Mapping[str, slice] | None = None,
) -> tuple[Row, Spectrum]:
    """Measure the `/hessian` row of one snapshot.

    Args:
        model, loss_fn, batch: as for `HessianOperator`.
        step: optimizer steps completed; also selects the random start vectors.
        settings: what to compute.
        previous: [k, n] top eigenvectors of the snapshot before, or None.
        blocks: name -> slice of the flat parameter vector; None = `parameter_blocks`.

    Returns:
        The row, and the spectrum whose vectors the next snapshot is compared with.
    """
    started = time.perf_counter()
    if settings.dtype is not None and settings.dtype != next(model.parameters()).dtype:
        model = copy.deepcopy(model).to(settings.dtype)
        batch = map_tensors(lambda t: t.to(settings.dtype) if t.is_floating_point() else t, batch)
    operator = HessianOperator(model, loss_fn, batch, microbatch_size=settings.microbatch_size)
    spectrum = top_eigenpairs(
        operator,
        k=settings.k,
        k_negative=settings.k_negative,
        rtol=settings.rtol,
        max_products=settings.max_products,
        # Room for every wanted pair and as many again, or the basis is compressed after each few products.
        max_basis=max(MAX_BASIS, 4 * (settings.k + settings.k_negative)),
        # A start of its own at every step: no direction stays unseen for a whole run.
        seed=derive_seed(settings.seed, "eigenvectors", step),
    )
    alignment = gradient_alignment(spectrum, operator.gradient)
    blocks = blocks if blocks is not None else parameter_blocks(operator.parameter_slices, model)
    mass = block_mass(spectrum.top.vectors, blocks)
    top, bottom = spectrum.top, spectrum.bottom
    k, k_negative = settings.k, settings.k_negative
    overlap = None
    if previous is not None:
        overlap = _padded(subspace_overlap(top.vectors, previous.to(top.vectors)), k)
    row: Row = {
        "hessian/eigenvalues": _padded(top.values, k),
        "hessian/residuals": _padded(top.residuals, k),
        "hessian/error_bounds": _padded(top.error_bounds, k),
        "hessian/converged": _padded(top.converged, k, missing=-1.0).astype(np.int8),
        "hessian/negative_eigenvalues": _padded(bottom.values, k_negative),
        "hessian/negative_residuals": _padded(bottom.residuals, k_negative),
        "hessian/negative_error_bounds": _padded(bottom.error_bounds, k_negative),
        "hessian/negative_converged": _padded(bottom.converged, k_negative, missing=-1.0).astype(np.int8),
        "hessian/n_products": spectrum.n_products,
        "hessian/verified": int(spectrum.verified),
        "hessian/loss": operator.loss,
        "hessian/gradient_norm": alignment.gradient_norm,
        "hessian/gradient_alignment": _padded(alignment.cos_squared, k),
        "hessian/gradient_alignment_total": _padded(alignment.cumulative, k),
        "hessian/eigenvector_overlap": overlap,
        "hessian/block_mass": np.stack([_padded(mass[name], k) for name in blocks], axis=1),
        "hessian/trace": spectrum.trace,
        "hessian/trace_standard_error": spectrum.trace_standard_error,
        "hessian/noise_floor": spectrum.noise_floor,
        "hessian/seconds": time.perf_counter() - started,
    }
    if k == 0:
        row = {name: value for name, value in row.items() if not _has_rank(name)}
    if k_negative == 0:
        row = {name: value for name, value in row.items() if not name.startswith("hessian/negative_")}
    return {name: value for name, value in row.items() if value is not None}, spectrum


@torch.no_grad()
def measure_behaviour(model: nn.Module, source: DataSource) -> Row:
    """Measure the `/behaviour` row: losses and accuracies on the behaviour probe and on every period probe."""
    probe = source.behaviour_probe
    t1, t2 = source.icl_positions
    with evaluating(model):
        scores = behaviour_scores(
            model(probe.tokens), probe.tokens, probe.predictable, t1=t1, t2=t2, boundary_mask=probe.boundary
        )
        by_period = [
            float(induction_accuracy(model(batch.tokens), batch.tokens, batch.predictable))
            for batch in source.period_probes.values()
        ]
    row: Row = {f"behaviour/{name}": np.asarray(score) for name, score in scores.items()}
    row["behaviour/loss"] = float(np.mean(row["behaviour/loss_by_position"]))
    row["behaviour/induction_accuracy_period"] = np.array(by_period)
    return row


@torch.no_grad()
def measure_circuits(model: Transformer, source: DataSource) -> Row:
    """Measure the `/circuits` row: head scores on the repeat probe, weight scores, and one attention pattern."""
    row: Row = {}
    with evaluating(model):
        probe = _limited(source.repeat_probe, model)
        _, patterns = model.forward_with_patterns(probe.tokens)
        for name, result in attention_scores(patterns, probe.tokens).items():
            row[f"circuits/{name}"] = np.asarray(result)
            if f"{name}_corrected" in STORED_CORRECTED:
                row[f"circuits/{name}_corrected"] = result.corrected.numpy()
        if source.attention_probe is not None:
            _, pattern = model.forward_with_patterns(source.attention_probe.tokens)
            row["circuits/attention_pattern"] = pattern[0].cpu().numpy().astype(np.float16)
    weights = {name: tensor.cpu() for name, tensor in model.head_weights().items()}
    # Reading-side LayerNorm gains are left out ("ignored"); with them trained far from 1 the scores are approximate.
    scores = weight_scores(model.W_E.detach().cpu(), *_ordered(weights), model.W_U.detach().cpu())
    for name, value in scores.items():
        row[f"circuits/{name}"] = torch.view_as_real(value).numpy() if value.is_complex() else value.numpy()
    return {name: value for name, value in row.items() if name != "circuits/current_token_score"}


STORED_CORRECTED = ("induction_score_corrected", "previous_token_score_corrected", "duplicate_token_score_corrected")


def parameter_blocks(slices: Mapping[str, slice], model: nn.Module | None = None) -> dict[str, slice]:
    """Return the blocks of the flat parameter vector: one per parameter, the suite's own head weights one per head.

    Names: `L0H2.W_Q` for head 2 of layer 0, `L0.ln1.weight` for what a layer's heads share, else the parameter's name.
    """
    blocks: dict[str, slice] = {}
    n_heads = model.n_heads if isinstance(model, Transformer) else 0
    for name, where in slices.items():
        match = _HEAD_WEIGHT.match(name)
        if match and n_heads:
            size = (where.stop - where.start) // n_heads
            for head in range(n_heads):
                start = where.start + head * size
                blocks[f"L{match[1]}H{head}.{match[2]}"] = slice(start, start + size)
        else:
            blocks[re.sub(r"^blocks\.(\d+)\.", r"L\1.", name) if n_heads else name] = where
    return blocks


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode and back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _ordered(weights: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return weights["W_Q"], weights["W_K"], weights["W_V"], weights["W_O"]


def _limited(probe: TokenBatch, model: Transformer) -> TokenBatch:
    """Return as many sequences of the probe as keep the attention patterns inside `PATTERN_BYTES`, at least 4."""
    per_sequence = 4 * model.n_layers * model.n_heads * probe.tokens.shape[1] ** 2
    n = max(4, PATTERN_BYTES // per_sequence)
    if n >= len(probe):
        return probe
    period = None if probe.period is None else probe.period[:n]
    return TokenBatch(
        tokens=probe.tokens[:n], predictable=probe.predictable[:n], boundary=probe.boundary[:n], period=period
    )


def _has_rank(name: str) -> bool:
    return name.removeprefix("hessian/") in {
        "eigenvalues",
        "residuals",
        "error_bounds",
        "converged",
        "gradient_alignment",
        "gradient_alignment_total",
        "eigenvector_overlap",
        "block_mass",
    }


def _padded(values: Tensor, size: int, *, missing: float = math.nan) -> np.ndarray:
    """Return float64 values of length `size`; an operator with fewer eigenvalues leaves the rest missing."""
    full = np.full(size, missing)
    full[: len(values)] = values.double().cpu().numpy()
    return full
