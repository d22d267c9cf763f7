"""Operators with known spectra, tiny models of every kind, and a dense Hessian by another route."""

import email
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral.config import RunConfig
from spectral.data import DataSource
from spectral.models import Transformer

F64 = {"dtype": torch.float64}


class DiagonalOperator:
    """diag(values) as an operator that counts its products."""

    def __init__(self, values: Any, dtype: torch.dtype = torch.float64) -> None:
        self.values = torch.as_tensor(values, dtype=dtype)
        self.shape = (len(self.values), len(self.values))
        self.dtype = dtype
        self.calls = 0

    def matvec(self, v: Tensor) -> Tensor:
        self.calls += 1
        return self.values * v


class MatrixOperator:
    """A dense matrix as an operator."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.shape = tuple(matrix.shape)
        self.dtype = matrix.dtype

    def matvec(self, v: Tensor) -> Tensor:
        return self.matrix @ v


def rotated(values: Any, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> MatrixOperator:
    """Return a symmetric matrix with the given eigenvalues in a random orthonormal basis."""
    values = torch.as_tensor(values, **F64)
    rng = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=rng, **F64))[0]
    matrix = (Q * values) @ Q.T
    return MatrixOperator(((matrix + matrix.T) / 2).to(dtype))


MODELS: dict[str, dict[str, Any]] = {
    "attention-only": {},
    "one layer": {"n_layers": 1},
    "with MLP": {"d_ff": 6, "n_layers": 1},
    "with MLP, two layers": {"d_ff": 4},
    "no LayerNorm": {"layer_norm": False},
    "no LayerNorm, with MLP": {"layer_norm": False, "d_ff": 6},
    "dropout": {"dropout": 0.3},
    "rotary": {"positions": "rotary", "n_heads": 1},
    "no positions": {"positions": "none"},
}
DATA: dict[str, dict[str, Any]] = {
    "repeated": {"min_period": 3, "max_period": 6},
    "patterns": {"n_patterns": 2, "min_pattern_length": 2, "max_pattern_length": 3, "n_repeats_per_seq": 2},
    "ngram": {},
    "text": {"text_path": str(Path(email.__file__).parent), "vocab_size": 256},
}


def tiny_model(*, vocab_size: int = 6, seq_length: int = 12, seed: int = 0, **options: Any) -> Transformer:
    """Return a transformer of a few hundred weights in float64, still in train mode."""
    values: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 4} | options
    if vocab_size > 100:  # embeddings of bytes would dominate the weight count
        values |= {"d_model": 2, "n_heads": 1}
    rng = torch.Generator().manual_seed(seed)
    return Transformer(vocab_size=vocab_size, seq_length=seq_length, generator=rng, **values).double()


def tokens_of(kind: str, *, batch_size: int = 4, seq_length: int = 12) -> Tensor:
    """Return one training batch of a data kind."""
    values = {"vocab_size": 6, "seq_length": seq_length, "batch_size": batch_size} | DATA[kind]
    return DataSource(RunConfig(data=kind, **values), "cpu").batch(0).tokens


def case(model: str, data: str) -> tuple[Transformer, Tensor]:
    """Return a tiny model and a batch of the data it reads."""
    return tiny_model(vocab_size=DATA[data].get("vocab_size", 6), **MODELS[model]), tokens_of(data)


def flat_loss(model: nn.Module, loss_fn: Callable[[nn.Module, Any], Tensor], batch: Any) -> Callable[[Tensor], Tensor]:
    """Return the loss as a function of one flat vector, in the mode that the model is in."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [parameter.shape for parameter in model.parameters()]
    sizes = [shape.numel() for shape in shapes]

    class Objective(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self) -> Tensor:
            return loss_fn(self.inner, batch)

    objective = Objective()

    def loss(w: Tensor) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(w.split(sizes), shapes, strict=True)]
        values = {f"inner.{name}": part for name, part in zip(names, parts, strict=True)}
        return torch.func.functional_call(objective, values, ())

    return loss


def flat_weights(model: nn.Module) -> Tensor:
    """Return a copy of all weights as one vector."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]).clone()


def dense_hessian(model: nn.Module, loss_fn: Callable[[nn.Module, Any], Tensor], batch: Any) -> Tensor:
    """Return the Hessian as a matrix, forward over reverse mode of a functional copy: not the operator's own route."""
    gradient = torch.func.grad(flat_loss(model, loss_fn, batch))
    w = flat_weights(model)

    def column(direction: Tensor) -> Tensor:
        return torch.func.jvp(gradient, (w,), (direction,))[1]

    return torch.func.vmap(column, chunk_size=128)(torch.eye(len(w), dtype=w.dtype))


def unit(n: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a random unit vector."""
    v = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (v / v.norm()).to(dtype)
