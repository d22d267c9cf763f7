"""The Hessian of any model's loss as a linear operator.

H = d²L/dw², L = loss_fn(model, batch) a scalar mean loss, w the model's parameters as one flat vector of length n in
the order of `named_parameters()`. H is never formed: products come from differentiating the gradient a second time.

Price: the gradient's graph is built once and kept, so a product is one backward pass through it, about twice the price
of a gradient. With `microbatch_size` the graph of one micro-batch at a time is built and dropped inside every product
(about 3.7 gradients), which bounds the memory; `keep_graphs` keeps them all. A `CompiledProduct` does the same
arithmetic in compiled code.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectral.curvature.batches import weighted_pieces
from spectral.curvature.compiled import CompiledProduct, Linearised
from spectral.curvature.conditions import exact_arithmetic, explaining_missing_derivatives, measuring
from spectral.curvature.objective import LossFunction, Objective, checked_loss
from spectral.curvature.parameters import ParameterChoice, ParameterVector
from spectral.curvature.sums import joint_norm, norm, products_with
from spectral.errors import NonFiniteError
from spectral.randomness import torch_generator

BACKENDS = ("auto", "double_backward", "forward_over_reverse", "compiled")
COLUMNS_AT_ONCE = 8  # vectors per batched product on a GPU


class LossOperator(ABC):
    """A symmetric n x n matrix made of second derivatives of a mean loss at the current weights.

    What the kinds have in common: the flat vector, micro-batches and their weights, counting, conditions, noise. A
    subclass linearises one piece of the batch at a time (`_linearise_piece`) and multiplies (`_product`).
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        *,
        params: ParameterChoice,
        microbatch_size: int | None,
        weight_fn: Callable[[Any], float] | None,
    ) -> None:
        self._model = model
        self._vector = ParameterVector(model, params)
        self.n = self._vector.n
        self.shape = (self.n, self.n)
        self.dtype, self.device = self._vector.dtype, self._vector.device
        self.parameter_slices = self._vector.slices
        self.n_products = 0
        self._noise_floor: float | None = None
        self._pieces, self._weights = weighted_pieces(batch, microbatch_size, weight_fn)
        self.loss, self.gradient = self._linearise()

    def matvec(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the product with v. Exact up to rounding.

        Raises:
            ValueError: `v` has another shape.
            RuntimeError: the weights were changed after the operator was built.
        """
        if tuple(v.shape) != (self.n,):
            msg = f"v has shape {tuple(v.shape)}; a product needs a vector of shape ({self.n},)"
            raise ValueError(msg)
        self._vector.require_unchanged()
        self.n_products += 1
        with exact_arithmetic(self.device):
            return self._product(v.detach())

    def matmat(self, V: Float[Tensor, "n b"]) -> Float[Tensor, "n b"]:
        """Return the products with the columns of V.

        On a GPU several columns go through autograd at once, because small models leave it idle. On CPU one after the
        other: there a batched pass costs 3.3 gradients a column instead of 2.1.
        """
        if V.ndim != 2 or V.shape[0] != self.n:
            msg = f"V has shape {tuple(V.shape)}; products need a matrix of shape ({self.n}, b)"
            raise ValueError(msg)
        if V.shape[1] == 0:
            return torch.zeros(self.n, 0, dtype=self.dtype, device=self.device)
        if self.device.type == "cuda":
            batched = self._batched_products(V.detach().T)
            if batched is not None:
                return batched
        return torch.stack([self.matvec(column) for column in V.unbind(1)], dim=1)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return the product with a vector or with the columns of a matrix."""
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
            errors = [norm(self.matvec(u) - Hu), norm(self.matvec(u + v) - Hu - Hv), _asymmetry(u, Hu, v, Hv)]
            if float(norm(Hu)) > 0:
                x = Hu / float(norm(Hu))
                Hx = self.matvec(x)
                x = Hx / max(float(norm(Hx)), torch.finfo(self.dtype).tiny)
                Hx = self.matvec(x)
                errors += [norm(self.matvec(x + u) - Hx - Hu), _asymmetry(u, Hu, x, Hx), norm(self.matvec(x) - Hx)]
            self._noise_floor = float(torch.stack(errors).max())
        return self._noise_floor

    # for the subclasses

    @abstractmethod
    def _linearise_piece(self, index: int, piece: Any) -> tuple[float, list[Tensor]]:
        """Return loss and gradient of one piece; keep what products will need."""

    @abstractmethod
    def _product(self, v: Tensor) -> Tensor:
        """Return the product with a detached vector of the right shape."""

    def _batched_products(self, rows: Float[Tensor, "b n"]) -> Float[Tensor, "n b"] | None:
        """Return all products from batched passes; None where the kind or its state has no such pass."""
        return None

    def _linearise(self) -> tuple[float, Tensor]:
        loss, gradient = 0.0, self._vector.zeros()
        for index, (piece, weight) in enumerate(zip(self._pieces, self._weights, strict=True)):
            with measuring(self._model, self.device):
                value, parts = self._linearise_piece(index, piece)
            loss += weight * value
            gradient.add_(self._vector.flatten(parts), alpha=weight)
        if not math.isfinite(loss) or not bool(torch.isfinite(gradient).all()):
            msg = f"the loss ({loss}) or its gradient is not finite; lower the learning rate or inspect the batch"
            raise NonFiniteError(msg)
        return loss, gradient


class HessianOperator(LossOperator):
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
            price; also the only one for models with custom forward derivatives), `compiled` (a `CompiledProduct` of
            its own), `auto` = `compiled` when `compiled` is given, else `double_backward`.
        weight_fn: how many terms the mean of `loss_fn` runs over on a piece of the batch; default
            `spectral.curvature.batches.count_targets`: the sum of a boolean tensor in the batch if there is one, else
            the number of integer targets that are not -100, else the length of the first axis.
        keep_graphs: keep the graph of every micro-batch: as much memory as the whole batch, products as cheap as
            without micro-batches, and on CPU cheaper where the tensors of one micro-batch fit into the cache.
        compiled: compiled code to share between the operators of one run; where it fails or disagrees with the eager
            product it warns and this operator goes on without it.

    Attributes:
        shape: (n, n).
        dtype, device: of the vectors.
        loss: the loss, float.
        gradient: [n], the gradient of the loss, detached.
        n_products: products computed so far, each vector of a `matmat` counting as one.
        parameter_slices: name -> slice of the flat vector.
        backend: what computes the products: `double_backward`, `forward_over_reverse` or `compiled`.

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
        params: ParameterChoice = None,
        microbatch_size: int | None = None,
        backend: str = "auto",
        weight_fn: Callable[[Any], float] | None = None,
        keep_graphs: bool = False,
        compiled: CompiledProduct | None = None,
    ) -> None:
        if backend not in BACKENDS:
            msg = f"backend={backend!r} is unknown; use one of {', '.join(BACKENDS)}"
            raise ValueError(msg)
        self._loss_fn = loss_fn
        if backend == "auto":
            backend = "double_backward" if compiled is None else "compiled"
        elif backend == "compiled":
            compiled = compiled or CompiledProduct()
        self.backend = backend
        self._compiled = compiled if backend == "compiled" else None
        self._keep_all = keep_graphs
        self._graphs: dict[int, list[Tensor]] = {}
        self._linearised: dict[int, Linearised] = {}
        super().__init__(model, batch, params=params, microbatch_size=microbatch_size, weight_fn=weight_fn)
        if self._compiled is not None and not self._linearised:
            self.backend = "double_backward"

    @property
    def _keep(self) -> bool:
        return self._keep_all or len(self._pieces) == 1

    # inside

    def _linearise_piece(self, index: int, piece: Any) -> tuple[float, list[Tensor]]:
        loss = checked_loss(self._loss_fn(self._model, piece))
        compiled = self._compiled is not None and self._compiled.usable
        keep = self._keep and self.backend != "forward_over_reverse"
        # Compiled code is checked against the graph, and where it fails the graph goes on.
        gradient = self._gradient(loss, create_graph=compiled or keep)
        if not (compiled and self._linearise_compiled(index, piece, gradient)) and keep:
            self._graphs[index] = gradient
        return float(loss.detach()), gradient

    def _linearise_compiled(self, index: int, piece: Any, gradient: list[Tensor]) -> bool:
        """Prepare the compiled product for one piece; True = it agrees with the eager gradient and product."""
        compiled = self._compiled
        assert compiled is not None
        linearised = compiled.linearise(self._model, self._loss_fn, self._vector, piece, keep=self._keep)
        if linearised is None:
            return False
        agrees = compiled.agrees("gradient", linearised.gradient, gradient)
        if agrees and not compiled.checked:
            # The gradient as direction: it reaches the outliers, which a random vector of this length hardly sees.
            direction = [g.detach() / self._norm(gradient) for g in gradient]
            expected = self._second_backward(gradient, direction, retain=True)
            agrees = compiled.checked = compiled.agrees("product", linearised.product(direction), expected)
        if agrees:
            self._linearised[index] = linearised
        return agrees

    def _norm(self, parts: list[Tensor]) -> Tensor:
        length = joint_norm([part.detach() for part in parts])
        result: Tensor = length.clamp_min(torch.finfo(self.dtype).tiny).to(self.dtype)
        return result

    def _product(self, v: Tensor) -> Tensor:
        direction = self._vector.unflatten(v)
        result: Tensor | None = None
        for index, (piece, weight) in enumerate(zip(self._pieces, self._weights, strict=True)):
            part = self._vector.flatten(self._piece_product(index, piece, direction))
            if len(self._pieces) == 1:
                return part
            result = part.mul_(weight) if result is None else result.add_(part, alpha=weight)
        assert result is not None
        return result

    def _piece_product(self, index: int, piece: Any, direction: list[Tensor]) -> list[Tensor]:
        if index in self._linearised:
            return self._linearised[index].product(direction)
        if index in self._graphs:
            return self._second_backward(self._graphs[index], direction, retain=True)
        with measuring(self._model, self.device):
            if self.backend == "forward_over_reverse":
                return self._forward_over_reverse(piece, direction)
            graph = self._gradient(checked_loss(self._loss_fn(self._model, piece)), create_graph=True)
        return self._second_backward(graph, direction, retain=False)

    def _batched_products(self, rows: Tensor) -> Tensor | None:
        if len(self._graphs) != len(self._pieces):
            return None
        self._vector.require_unchanged()
        self.n_products += len(rows)
        results = []
        with exact_arithmetic(self.device):
            for chunk in rows.split(COLUMNS_AT_ONCE):
                columns = [self._vector.unflatten(row) for row in chunk]
                directions = [torch.stack(parts) for parts in zip(*columns, strict=True)]
                total: Tensor | None = None
                for index, weight in enumerate(self._weights):
                    parts = self._second_backward(self._graphs[index], directions, retain=True, batched=True)
                    flat = [self._vector.flatten([part[i] for part in parts]) for i in range(len(chunk))]
                    piece = weight * torch.stack(flat, dim=1)
                    total = piece if total is None else total + piece
                assert total is not None
                results.append(total)
        return torch.cat(results, dim=1)

    def _gradient(self, loss: Tensor, *, create_graph: bool) -> list[Tensor]:
        return list(
            torch.autograd.grad(loss, self._vector.active_parameters, create_graph=create_graph, materialize_grads=True)
        )

    def _second_backward(
        self, graph: list[Tensor], direction: list[Tensor], *, retain: bool, batched: bool = False
    ) -> list[Tensor]:
        """Return d(gradient . direction)/dw for a gradient that still carries its graph."""
        active = self._vector.active_parameters
        pairs = [(g, v) for g, v in zip(graph, direction, strict=True) if g.requires_grad]
        if not pairs:  # a loss linear in its parameters
            return [torch.zeros_like(v) for v in direction]
        with explaining_missing_derivatives():
            return list(
                torch.autograd.grad(
                    [g for g, _ in pairs],
                    active,
                    [v for _, v in pairs],
                    retain_graph=retain,
                    materialize_grads=True,
                    is_grads_batched=batched,
                )
            )

    def _forward_over_reverse(self, piece: Any, direction: list[Tensor]) -> list[Tensor]:
        """Return the same product as d/dt gradient(w + t direction): forward mode over reverse mode."""
        objective = Objective(self._model, self._loss_fn)
        names = [f"model.{name}" for name in self._vector.active_names]
        active = dict(zip(names, (p.detach() for p in self._vector.active_parameters), strict=True))
        tangent = dict(zip(names, direction, strict=True))

        def loss(values: dict[str, Tensor]) -> Tensor:
            result: Tensor = torch.func.functional_call(objective, values, (piece,))
            return result.reshape(())

        with explaining_missing_derivatives():
            product = torch.func.jvp(torch.func.grad(loss), (active,), (tangent,))[1]
        return [product[name] for name in names]


def _asymmetry(u: Tensor, Hu: Tensor, v: Tensor, Hv: Tensor) -> Tensor:
    """Return |u'Hv - v'Hu|, zero for an exactly symmetric H, as a float64 scalar."""
    return (products_with(u[None], Hv) - products_with(v[None], Hu)).abs()[0]
