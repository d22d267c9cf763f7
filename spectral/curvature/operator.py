"""The Hessian of any model's loss as a linear operator.

H = d²L/dw², L = loss_fn(model, batch) a scalar mean loss, w the model's parameters as one flat vector of length n in
the order of `named_parameters()`. H is never formed: products come from differentiating the gradient a second time.

Price: the gradient's graph is built once and kept, so a product is one backward pass through it, about twice the price
of a gradient. With `microbatch_size` the graph of one micro-batch at a time is built and dropped inside every product
(about 3.7 gradients), which bounds the memory.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectral.errors import NonFiniteError
from spectral.randomness import torch_generator

LossFunction = Callable[[nn.Module, Any], Tensor]
BACKENDS = ("auto", "double_backward", "forward_over_reverse")
IGNORED_TARGET = -100  # torch's ignore_index: such targets enter no loss and count for nothing in a weight


class HessianOperator:
    """Symmetric n x n Hessian of `loss_fn(model, batch)` at the model's current weights.

    The model is left as it was found: weights, `.grad`, train/eval mode, `requires_grad`, random state. The loss is
    taken in eval mode (no dropout), so that H is one symmetric operator. Frozen and unused parameters are part of the
    vector and give zeros.

    Args:
        model: any module.
        loss_fn: callable (model, batch) -> scalar mean loss; twice differentiable operations only. The fused kernels
            of `scaled_dot_product_attention` are not; select its MATH kernel.
        batch: handed to `loss_fn` as it is.
        params: which parameters span the Hessian: names, parameters, or a predicate on the name; None = all.
        microbatch_size: split the batch along its first axis into pieces of this size and average the losses weighted
            by `weight_fn`; None = all at once. Needs a batch made of tensors, tuples, lists and dicts.
        backend: `double_backward` (gradient graph kept), `forward_over_reverse` (an independent route, 2.5 times the
            price; also the only one for models with custom forward derivatives), `auto` = the cheaper one.
        weight_fn: how many terms the mean of `loss_fn` runs over on a piece of the batch. Default: the sum of a boolean
            tensor in the batch if there is one, else the number of integer targets that are not -100 in its last
            integer tensor, else the length of its first axis.

    Attributes:
        shape: (n, n).
        dtype, device: of the vectors.
        loss: the loss, float.
        gradient: [n], the gradient of the loss, detached.
        n_products: products computed so far, each vector of a `matmat` counting as one.
        parameter_slices: name -> slice of the flat vector.

    Raises:
        ValueError: nothing to differentiate, a loss that is no scalar, an unknown backend or parameter name.
        NonFiniteError: the loss or its gradient is NaN or infinite.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batch: Any,
        *,
        params: Sequence[str] | Sequence[nn.Parameter] | Callable[[str], bool] | None = None,
        microbatch_size: int | None = None,
        backend: str = "auto",
        weight_fn: Callable[[Any], float] | None = None,
    ) -> None:
        if backend not in BACKENDS:
            msg = f"backend={backend!r} is unknown; use one of {', '.join(BACKENDS)}"
            raise ValueError(msg)
        if microbatch_size is not None and microbatch_size < 1:
            msg = f"microbatch_size={microbatch_size}; it must be at least 1, or None for the whole batch"
            raise ValueError(msg)
        self._model = model
        self._loss_fn = loss_fn
        self._backend = "double_backward" if backend == "auto" else backend
        named = _select_parameters(model, params)
        self._names = [name for name, _ in named]
        self._params = [parameter for _, parameter in named]
        self._active = [i for i, parameter in enumerate(self._params) if parameter.requires_grad]
        if not self._active:
            msg = "no selected parameter requires a gradient; unfreeze one or select others with params="
            raise ValueError(msg)
        self._sizes = [parameter.numel() for parameter in self._params]
        self.n = sum(self._sizes)
        self.shape = (self.n, self.n)
        self.dtype = self._params[0].dtype
        self.device = self._params[0].device
        self.n_products = 0
        self.parameter_slices = _slices(self._names, self._sizes)
        self._state = self._weight_state()
        self._noise_floor: float | None = None

        pieces = [batch] if microbatch_size is None else _split(batch, microbatch_size)
        if len(pieces) == 1:
            self._pieces, self._weights = pieces, [1.0]
        else:
            counts = [float((weight_fn or count_targets)(piece)) for piece in pieces]
            # A piece without a single valid target has no mean loss (0/0) and no say.
            kept = [(piece, count) for piece, count in zip(pieces, counts, strict=True) if count > 0]
            if not kept:
                msg = "no micro-batch holds a valid target; check the targets or weight_fn"
                raise ValueError(msg)
            total = math.fsum(count for _, count in kept)
            self._pieces = [piece for piece, _ in kept]
            self._weights = [count / total for _, count in kept]
        self._keep_graph = len(self._pieces) == 1 and self._backend == "double_backward"
        self._graph: list[Tensor] = []
        self.loss, self.gradient = self._linearise()

    # products

    def matvec(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return H v. Exact up to rounding; one backward pass through the kept gradient graph.

        Raises:
            ValueError: `v` has another shape.
            RuntimeError: the weights were changed after the operator was built.
        """
        if tuple(v.shape) != (self.n,):
            msg = f"v has shape {tuple(v.shape)}; a product needs a vector of shape ({self.n},)"
            raise ValueError(msg)
        self._check_unchanged()
        self.n_products += 1
        with self._exact_arithmetic():
            return self._product(v.detach())

    def _product(self, v: Tensor) -> Tensor:
        direction = self._unflatten(v.to(device=self.device))
        if self._keep_graph:
            return self._second_backward(self._graph, direction, retain=True)
        result = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        for piece, weight in zip(self._pieces, self._weights, strict=True):
            if self._backend == "double_backward":
                with self._measuring():
                    _, graph = self._gradient_graph(piece)
                result.add_(self._second_backward(graph, direction, retain=False), alpha=weight)
            else:
                result.add_(self._forward_over_reverse(piece, direction), alpha=weight)
        return result

    def matmat(self, V: Float[Tensor, "n b"]) -> Float[Tensor, "n b"]:
        """Return H V, one column after the other: on CPU batching vectors through autograd costs more than it saves."""
        if V.ndim != 2 or V.shape[0] != self.n:
            msg = f"V has shape {tuple(V.shape)}; products need a matrix of shape ({self.n}, b)"
            raise ValueError(msg)
        if V.shape[1] == 0:
            return torch.zeros(self.n, 0, dtype=self.dtype, device=self.device)
        return torch.stack([self.matvec(column) for column in V.unbind(1)], dim=1)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return H v for a vector, H V for a matrix."""
        return self.matvec(v) if v.ndim == 1 else self.matmat(v)

    def noise_floor(self) -> float:
        """Return how far a product of a unit vector may be off, in units of the eigenvalues.

        The largest of: asymmetry |u'Hv - v'Hu|, repeatability |Hu - Hu|, non-linearity |H(u+v) - Hu - Hv|, on Gaussian
        unit vectors and on a vector drawn towards the top eigenvectors (a Gaussian one sees only |H|_F / sqrt(n)).
        Measured once per operator, 8 products. A residual far below it cannot be reached.
        """
        if self._noise_floor is None:
            generator = torch_generator(0, "noise floor")
            draws = torch.randn(2, self.n, generator=generator, dtype=torch.float64)
            u, v = (draws / draws.norm(dim=1, keepdim=True)).to(device=self.device, dtype=self.dtype).unbind(0)
            Hu, Hv = self.matvec(u), self.matvec(v)
            errors = [(self.matvec(u) - Hu).norm(), (self.matvec(u + v) - Hu - Hv).norm(), (u @ Hv - v @ Hu).abs()]
            if float(Hu.norm()) > 0:
                x = Hu / Hu.norm()
                Hx = self.matvec(x)
                x = Hx / Hx.norm().clamp_min(torch.finfo(self.dtype).tiny)
                Hx = self.matvec(x)
                errors += [(self.matvec(x + u) - Hx - Hu).norm(), (u @ Hx - x @ Hu).abs(), (self.matvec(x) - Hx).norm()]
            self._noise_floor = float(torch.stack([error.double() for error in errors]).max())
        return self._noise_floor

    # inside

    def _linearise(self) -> tuple[float, Tensor]:
        """Return loss and gradient; keep the gradient's graph when there is a single piece."""
        loss = 0.0
        gradient = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        for piece, weight in zip(self._pieces, self._weights, strict=True):
            with self._measuring():
                value, graph = self._gradient_graph(piece, create_graph=self._keep_graph)
            loss += weight * float(value.detach())
            gradient.add_(self._flatten([g.detach() for g in graph]), alpha=weight)
            if self._keep_graph:
                self._graph = graph
        if not math.isfinite(loss) or not bool(torch.isfinite(gradient).all()):
            msg = f"the loss ({loss}) or its gradient is not finite; lower the learning rate or inspect the batch"
            raise NonFiniteError(msg)
        return loss, gradient

    def _gradient_graph(self, piece: Any, *, create_graph: bool = True) -> tuple[Tensor, list[Tensor]]:
        loss = self._loss_fn(self._model, piece)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            msg = f"loss_fn returned {shape}; it must return a scalar tensor (a mean over the batch)"
            raise ValueError(msg)
        loss = loss.reshape(())
        if not loss.requires_grad:
            msg = "the loss does not depend on any parameter; loss_fn must call the model without torch.no_grad()"
            raise ValueError(msg)
        active = [self._params[i] for i in self._active]
        gradients = torch.autograd.grad(loss, active, create_graph=create_graph, materialize_grads=True)
        return loss, list(gradients)

    def _second_backward(self, graph: list[Tensor], direction: list[Tensor], *, retain: bool) -> Tensor:
        """Return d(gradient . direction)/dw for a gradient that still carries its graph."""
        pairs = [(g, direction[i]) for g, i in zip(graph, self._active, strict=True) if g.requires_grad]
        if not pairs:  # a loss linear in its parameters
            return torch.zeros(self.n, dtype=self.dtype, device=self.device)
        outputs = [g for g, _ in pairs]
        directions = [v for _, v in pairs]
        active = [self._params[i] for i in self._active]
        with _explaining_missing_derivatives():
            product = torch.autograd.grad(outputs, active, directions, retain_graph=retain, materialize_grads=True)
        return self._flatten([p.detach() for p in product])

    def _forward_over_reverse(self, piece: Any, direction: list[Tensor]) -> Tensor:
        """Return the same product as d/dt gradient(w + t direction): forward mode over reverse mode."""
        objective = _Objective(self._model, self._loss_fn)
        active = {f"model.{self._names[i]}": self._params[i].detach() for i in self._active}
        tangent = {f"model.{self._names[i]}": direction[i] for i in self._active}

        def loss(values: dict[str, Tensor]) -> Tensor:
            result: Tensor = torch.func.functional_call(objective, values, (piece,))
            return result.reshape(())

        with self._measuring(), _explaining_missing_derivatives():
            product = torch.func.jvp(torch.func.grad(loss), (active,), (tangent,))[1]
        return self._flatten([product[name].detach() for name in active])

    def _unflatten(self, v: Tensor) -> list[Tensor]:
        parts = v.split(self._sizes)
        return [
            part.view(parameter.shape).to(parameter.dtype) for part, parameter in zip(parts, self._params, strict=True)
        ]

    def _flatten(self, active: list[Tensor]) -> Tensor:
        """Return one vector from the active parameters' tensors, zeros for the frozen ones."""
        if len(active) == len(self._params):
            return torch.cat([part.reshape(-1).to(self.dtype) for part in active])
        full = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        parts = full.split(self._sizes)
        for i, values in zip(self._active, active, strict=True):
            parts[i].copy_(values.reshape(-1))
        return full

    def _weight_state(self) -> list[tuple[int, int]]:
        """Return what changes when a weight is written to (version) or replaced (address), selected or not."""
        return [(parameter._version, parameter.data_ptr()) for parameter in self._model.parameters()]

    def _check_unchanged(self) -> None:
        if self._weight_state() != self._state:
            msg = "the weights changed after the operator was built; build a new HessianOperator for the new weights"
            raise RuntimeError(msg)

    @contextlib.contextmanager
    def _exact_arithmetic(self) -> Iterator[None]:
        """No autocast, no TF32 or bfloat16 inside float32 products, backward passes included; put back afterwards."""
        precisions = [backend.fp32_precision for backend in _float32_backends()]
        try:
            for backend in _float32_backends():
                backend.fp32_precision = "ieee"
            with torch.inference_mode(False), torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            for backend, precision in zip(_float32_backends(), precisions, strict=True):
                backend.fp32_precision = precision

    @contextlib.contextmanager
    def _measuring(self) -> Iterator[None]:
        """Eval mode, gradients on, exact arithmetic; everything put back afterwards."""
        modes = [(module, module.training) for module in self._model.modules()]
        cpu_state = torch.get_rng_state()
        cuda_state = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        try:
            for module, _ in modes:
                module.training = False
            with self._exact_arithmetic(), torch.enable_grad():
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            torch.set_rng_state(cpu_state)
            if cuda_state is not None:
                torch.cuda.set_rng_state(cuda_state, self.device)


class _Objective(nn.Module):
    """Loss function and model as one module, so that the weights can be replaced functionally."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        super().__init__()
        self.model = model
        self._loss_fn = loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self._loss_fn(self.model, batch)


def _float32_backends() -> tuple[Any, ...]:
    """Return the libraries whose float32 products can be told to use fewer bits.

    Their own switches and not `allow_tf32` or `set_float32_matmul_precision`: a program that used the other interface
    could not read its setting any more.
    """
    backends: Any = torch.backends  # made at run time, unknown to type checkers
    return backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul


@contextlib.contextmanager
def _explaining_missing_derivatives() -> Iterator[None]:
    """Say what to do when an operation has no second derivative, or none in forward mode."""
    try:
        yield
    except RuntimeError as error:  # NotImplementedError is one
        text = str(error).splitlines()[0]
        if ("derivative for" in text and "not implemented" in text) or "Trying to use forward AD" in text:
            msg = (
                f"{text.rstrip('.')}. The model uses an operation without a second derivative; with "
                "scaled_dot_product_attention select SDPBackend.MATH inside loss_fn"
            )
            raise RuntimeError(msg) from error
        raise


def count_targets(batch: Any) -> float:
    """Return over how many terms a mean loss runs on this batch, by the rule in `HessianOperator`."""
    tensors = list(_tensors(batch))
    masks = [tensor for tensor in tensors if tensor.dtype == torch.bool]
    if masks:
        return float(masks[-1].sum())
    integers = [t for t in tensors if not t.is_floating_point() and not t.is_complex()]
    if integers:
        return float((integers[-1] != IGNORED_TARGET).sum())
    return float(tensors[0].shape[0])


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _tensors(value)


def _split(batch: Any, size: int) -> list[Any]:
    """Cut every tensor in the batch along its first axis."""
    lengths = {tensor.shape[0] for tensor in _tensors(batch) if tensor.ndim > 0}
    if len(lengths) != 1:
        found = sorted(lengths) or f"no tensor in a {type(batch).__name__}"
        msg = (
            f"microbatch_size needs a batch whose tensors share their first axis, found {found}; "
            "pass tensors, tuples, lists or dicts, or microbatch_size=None"
        )
        raise ValueError(msg)
    (length,) = lengths

    def cut(start: int) -> Callable[[Tensor], Tensor]:
        return lambda tensor: tensor[start : start + size] if tensor.ndim > 0 else tensor

    return [map_tensors(cut(start), batch) for start in range(0, length, size)]


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Return the batch (tensors in tuples, lists and dicts) with `function` applied to every tensor."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {key: map_tensors(function, item) for key, item in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, item) for item in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map_tensors(function, item) for item in batch)
    return batch


def _select_parameters(
    model: nn.Module, params: Sequence[str] | Sequence[nn.Parameter] | Callable[[str], bool] | None
) -> list[tuple[str, nn.Parameter]]:
    named = list(model.named_parameters())
    if params is None:
        chosen = named
    elif callable(params):
        chosen = [(name, parameter) for name, parameter in named if params(name)]
    else:
        chosen = _listed_parameters(named, [params] if isinstance(params, str) else list(params))
    if not chosen:
        msg = "params selects no parameter; use names from model.named_parameters()"
        raise ValueError(msg)
    return chosen


def _listed_parameters(
    named: list[tuple[str, nn.Parameter]], wanted: Iterable[str | nn.Parameter]
) -> list[tuple[str, nn.Parameter]]:
    by_name = dict(named)
    by_identity = {id(parameter): name for name, parameter in named}
    chosen: list[tuple[str, nn.Parameter]] = []
    for item in wanted:
        name = item if isinstance(item, str) else by_identity.get(id(item))
        if name is None or name not in by_name:
            shown = repr(item) if isinstance(item, str) else f"a tensor of shape {tuple(item.shape)}"
            msg = f"params holds {shown}, which is no parameter of the model; use names from model.named_parameters()"
            raise ValueError(msg)
        if name in (earlier for earlier, _ in chosen):
            msg = f"params holds {name!r} twice; name every parameter once"
            raise ValueError(msg)
        chosen.append((name, by_name[name]))
    return chosen


def _slices(names: list[str], sizes: list[int]) -> dict[str, slice]:
    slices, start = {}, 0
    for name, size in zip(names, sizes, strict=True):
        slices[name] = slice(start, start + size)
        start += size
    return slices
