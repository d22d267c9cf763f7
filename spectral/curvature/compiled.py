"""Hessian products as compiled code, compiled once and used for every later set of weights.

The gradient and its vector-Jacobian product are traced once into one graph of tensor operations. That graph falls into
two parts: what depends on the weights and the batch only, and what depends on the vector too. The first part runs once
per snapshot and leaves the intermediate values that the second one reads; the second part is compiled and costs about
1.4 gradients a product on CPU, where an eager product costs 2 to 2.5. Weights, buffers, batch, intermediate values and
vector are inputs of the compiled code, nothing is a constant in it.

Compiling takes 20 to 40 s and a C++ compiler (CPU) or Triton (GPU). Where it fails, or where the result differs from
the eager one, a warning says so and the eager products go on.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from spectral.curvature.conditions import exact_arithmetic
from spectral.curvature.objective import LossFunction, Objective
from spectral.curvature.parameters import ParameterVector
from spectral.curvature.sums import joint_norm

# How far compiled and eager results may lie apart, relative to their norm. Another order of summation moves float32
# results by about 1e-6; a wrong derivative moves them by far more.
AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-10}


class Linearised:
    """A compiled product with the values of one snapshot and one piece of the batch filled in.

    Attributes:
        gradient: of the piece's loss, by the traced graph: to be compared with the eager one.
    """

    def __init__(self, product: Callable[[list[Tensor]], list[Tensor]], gradient: list[Tensor]) -> None:
        self._product = product
        self.gradient = gradient

    def product(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """Return the product with a direction given as one tensor per active parameter, in the same form."""
        with torch.no_grad():
            return self._product(list(direction))


class CompiledProduct:
    """Compiled Hessian products for one model, one loss and one shape of batch.

        compiled = spectral.CompiledProduct()
        for ... in training:
            operator = spectral.HessianOperator(model, loss_fn, batch, compiled=compiled)

    The first operator traces, compiles and checks; later ones only fill in their weights. A batch of another shape (a
    ragged last micro-batch) goes through the eager product.

    Attributes:
        usable: False after tracing or compiling failed, or a result disagreed with the eager one.
        checked: whether a compiled product has been found equal to an eager one.
        seconds: spent on tracing and compiling.
        reason: why it is not usable, one line; empty while it is.
        largest_disagreement: relative, between compiled and eager results over all checks.
    """

    def __init__(self) -> None:
        self.usable = True
        self.checked = False
        self.seconds = 0.0
        self.reason = ""
        self.largest_disagreement = 0.0
        self._signature: tuple[Any, ...] | None = None
        self._prepare: fx.GraphModule | None = None
        self._apply: Callable[..., Any] | None = None
        self._whole: Callable[..., Any] | None = None

    def linearise(
        self, model: nn.Module, loss_fn: LossFunction, vector: ParameterVector, piece: Any, *, keep: bool
    ) -> Linearised | None:
        """Fill in the weights of the model and one piece of the batch; called under `measuring`.

        Args:
            keep: hold the intermediate values (as much memory as the gradient's graph). Otherwise every product
                computes them again, about 2 gradients each.

        Returns:
            None where this piece has another shape than the compiled one, or compiling failed.
        """
        values = _Inputs(model, loss_fn, vector, piece)
        signature = (*values.signature, keep)
        if self._signature is None:
            self._signature = signature
            started = time.perf_counter()
            try:
                self._compile(values, keep=keep)
            except RuntimeError as error:  # what torch.func, make_fx, Dynamo and Inductor raise
                self._give_up(f"the Hessian product cannot be compiled ({type(error).__name__}: {_first_line(error)})")
            self.seconds = time.perf_counter() - started
        if not self.usable or signature != self._signature:
            return None
        assert self._prepare is not None
        with torch.no_grad():
            *residuals, last = self._prepare(*values.flat)
        if not keep:
            whole, flat = self._whole, values.flat
            assert whole is not None
            return Linearised(lambda direction: list(whole(*flat, *direction)), list(last))
        product = self._apply
        assert product is not None
        if vector.device.type == "cuda":
            return Linearised(_captured(product, residuals, vector), list(last))
        return Linearised(lambda direction: list(product(*residuals, *direction)), list(last))

    def agrees(self, what: str, found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
        """Compare compiled with eager results; on disagreement warn and give the compiled ones up for good."""
        wanted = [part.detach() for part in expected]
        difference = float(joint_norm([f - w for f, w in zip(found, wanted, strict=True)]))
        length = float(joint_norm(wanted))
        relative = difference / length if length > 0 else difference
        self.largest_disagreement = max(self.largest_disagreement, relative)
        tolerance = AGREEMENT.get(expected[0].dtype, AGREEMENT[torch.float32])
        if relative <= tolerance:  # NaN is no agreement
            return True
        self._give_up(f"compiled and eager {what} differ by {relative:.1e} (allowed {tolerance:.0e})")
        return False

    def _give_up(self, reason: str) -> None:
        self.usable = False
        self.reason = reason
        self._prepare = self._apply = self._whole = None
        warnings.warn(f"{reason}; going on with eager products", RuntimeWarning, stacklevel=2)

    def _compile(self, values: "_Inputs", *, keep: bool) -> None:
        """Trace, split and compile; the first call of the compiled code, which does the work, included."""
        traced = values.trace()
        prepare, apply = _split_linear_part(traced, n_fixed=len(values.flat), n_product=len(values.active))
        self._prepare = prepare
        if keep:
            compiled = torch.compile(apply, fullgraph=True, dynamic=False)
            with torch.no_grad():
                *residuals, _ = prepare(*values.flat)
                compiled(*residuals, *values.active)
            self._apply = compiled
        else:
            whole = _first_outputs(traced, len(values.active))
            self._whole = torch.compile(whole, fullgraph=True, dynamic=False)
            with torch.no_grad():
                self._whole(*values.flat, *values.active)


class _Inputs:
    """Everything a product depends on beside the vector, as one flat list of tensors.

    Attributes:
        active: parameters that are differentiated, detached.
        flat: active parameters, other parameters, buffers, tensors of the batch.
        signature: what must be equal for a compiled product to fit.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, vector: ParameterVector, piece: Any) -> None:
        self._objective = Objective(model, loss_fn)
        chosen = {f"model.{name}" for name in vector.active_names}
        values = {name: parameter.detach() for name, parameter in self._objective.named_parameters()}
        self._active_names = [f"model.{name}" for name in vector.active_names]
        self._other_names = [name for name in values if name not in chosen]
        buffers = dict(self._objective.named_buffers())
        self._buffer_names = list(buffers)
        leaves, self._structure = pytree.tree_flatten(piece)
        self._leaves = leaves
        self._is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        batch = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
        self.active = [values[name] for name in self._active_names]
        self.flat = [*self.active, *(values[name] for name in self._other_names), *buffers.values(), *batch]
        plain = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.signature = (
            loss_fn,
            tuple(self._active_names + self._other_names + self._buffer_names),
            tuple((tuple(t.shape), t.stride(), t.dtype, t.device) for t in self.flat),
            (self._structure, plain),
        )

    def trace(self) -> fx.GraphModule:
        """Return the graph of (flat inputs, direction) -> (product parts, gradient parts)."""
        n_active, n_fixed = len(self.active), len(self.flat)

        def product_and_gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
            fixed, direction = inputs[:n_fixed], inputs[n_fixed:]

            def loss(*active: Tensor) -> Tensor:
                return self._loss([*active, *fixed[n_active:]])

            gradient_of = torch.func.grad(loss, argnums=tuple(range(n_active)))
            linearised: Any = torch.func.vjp(gradient_of, *fixed[:n_active])
            gradient, pull_back = linearised
            return (*pull_back(tuple(direction)), *gradient)

        # Tensors of their own as directions: tracing knows a tensor by its identity.
        directions = [torch.zeros_like(parameter) for parameter in self.active]
        with torch.enable_grad():
            return make_fx(product_and_gradient)(*self.flat, *directions)

    def _loss(self, flat: Sequence[Tensor]) -> Tensor:
        names = [*self._active_names, *self._other_names, *self._buffer_names]
        state, batch = dict(zip(names, flat[: len(names)], strict=True)), list(flat[len(names) :])
        leaves = [
            batch.pop(0) if is_tensor else leaf for leaf, is_tensor in zip(self._leaves, self._is_tensor, strict=True)
        ]
        piece = pytree.tree_unflatten(leaves, self._structure)
        result: Tensor = torch.func.functional_call(self._objective, state, (piece,))
        return result.reshape(())


def _split_linear_part(
    traced: fx.GraphModule, *, n_fixed: int, n_product: int
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a traced graph into what is computed once per snapshot and what is computed once per vector.

    Returns:
        prepare: fixed inputs -> (*intermediate values, gradient parts as a list).
        apply: (*intermediate values, *direction) -> product parts.
    """
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    output = next(node for node in traced.graph.nodes if node.op == "output")
    results = list(output.args[0])
    product, gradient = results[:n_product], results[n_product:]
    linear = set(inputs[n_fixed:])
    for node in traced.graph.nodes:
        if node.op != "output" and any(argument in linear for argument in node.all_input_nodes):
            linear.add(node)
    needed = dict.fromkeys(
        argument
        for node in traced.graph.nodes
        if node in linear
        for argument in node.all_input_nodes
        if argument not in linear
    )
    # A part of the product that the direction does not reach (a loss linear in a parameter) is a fixed zero.
    needed.update(dict.fromkeys(node for node in product if node not in linear))

    first, second = fx.Graph(), fx.Graph()
    in_first: dict[fx.Node, fx.Node] = {}
    in_second: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        if node in linear or node.op == "output":
            continue
        in_first[node] = first.node_copy(node, in_first.__getitem__)
    first.output((*(in_first[node] for node in needed), [in_first[node] for node in gradient]))
    for i, node in enumerate(needed):
        in_second[node] = second.placeholder(f"value_{i}")
    for node in inputs[n_fixed:]:
        in_second[node] = second.node_copy(node)
    for node in traced.graph.nodes:
        if node in linear and node.op != "placeholder":
            in_second[node] = second.node_copy(node, in_second.__getitem__)
    second.output(tuple(in_second[node] for node in product))
    return _tidied(traced, first), _tidied(traced, second)


def _first_outputs(traced: fx.GraphModule, count: int) -> fx.GraphModule:
    """Return the graph with its first outputs only."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        if node.op == "output":
            graph.output(tuple(copies[result] for result in node.args[0][:count]))
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return _tidied(traced, graph)


def _tidied(traced: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    module = fx.GraphModule(traced, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _captured(
    product: Callable[..., Any], residuals: list[Tensor], vector: ParameterVector
) -> Callable[[list[Tensor]], list[Tensor]]:
    """Record one product on a GPU as a CUDA graph, so that replaying it is one launch instead of hundreds."""
    static = [torch.zeros_like(parameter) for parameter in vector.active_parameters]
    side: Any = torch.cuda.Stream(vector.device)
    side.wait_stream(torch.cuda.current_stream(vector.device))
    with torch.cuda.stream(side), torch.no_grad(), exact_arithmetic(vector.device):
        for _ in range(2):  # libraries set up their workspaces outside of the recording
            product(*residuals, *static)
    torch.cuda.current_stream(vector.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad(), exact_arithmetic(vector.device):
        results = list(product(*residuals, *static))

    def replay(direction: list[Tensor]) -> list[Tensor]:
        torch._foreach_copy_(static, direction)
        graph.replay()
        return [result.clone() for result in results]

    return replay


def _first_line(error: BaseException) -> str:
    """Return the first line that says something: Dynamo begins with a line that only announces the next one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    informative = [line for line in lines if not line.endswith("raised:")]
    return (informative or lines or ["no message"])[0]
