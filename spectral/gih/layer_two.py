"""Stage III in one dimension: while only `a` moves, the loss is a smooth function of one number.

The force -dL/da is evaluated once at Chebyshev points and interpolated; descent is then a scalar map and the time of
the flow an integral, t(a) = int da / force. Nothing is approximated beyond the interpolation, whose error is returned.
"""

import copy
import math

import numpy as np
import torch
from numpy.polynomial import Chebyshev
from numpy.typing import NDArray

from spectral.gih.compression import CompressedChains
from spectral.gih.engine import Engine
from spectral.models import DisentangledTransformer, LastTokenLoss

NODES = 96
CHECKS = 7
MAX_A = 500.0


class LayerTwo:
    """The force on `a`, tabulated.

    Args:
        model: gives w, c and the start of `a`; not changed.
        chains: the training set.
        a_max: end of the table; descent beyond it is refused.
        loss, eps: see `spectral.models.last_token_losses`.

    Attributes:
        start: where `a` starts.
        error: largest difference between the table and the force at points between its nodes, in units of the largest
            force.

    Raises:
        ValueError: a table that is empty or longer than 500.
    """

    def __init__(
        self,
        model: DisentangledTransformer,
        chains: CompressedChains,
        *,
        a_max: float = 16.0,
        loss: LastTokenLoss = "double_softmax",
        eps: float = 1e-4,
    ) -> None:
        self.start = float(model.a.detach())
        if not self.start < a_max <= MAX_A:
            msg = f"a_max={a_max} with a={self.start:g} at the start; give a value above it, at most {MAX_A:g}"
            raise ValueError(msg)
        self._model = copy.deepcopy(model)
        self._engine = Engine(self._model, chains, training=["a"])
        self._loss, self._eps = loss, eps
        # A margin below the start, because descent may overshoot and come back.
        domain = [min(0.0, self.start) - 0.5, a_max]
        self._force = Chebyshev.interpolate(self._forces, NODES, domain=domain)
        between = np.linspace(domain[0], domain[1], CHECKS + 2)[1:-1]
        exact = self._forces(between)
        self.error = float(np.abs(self._force(between) - exact).max() / np.abs(exact).max())

    def force(self, a: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return -dL/da, nats per unit of a."""
        value: NDArray[np.float64] = self._force(a)
        return value

    def descend(self, *, epochs: int, lr: float = 1.0) -> NDArray[np.float64]:
        """Return a at epochs 0 .. `epochs` of gradient descent, as the plain loop would give it.

        Raises:
            ValueError: a leaves the table.
        """
        low, high = self._force.domain
        values = np.empty(epochs + 1)
        values[0] = self.start
        for epoch in range(epochs):
            values[epoch + 1] = values[epoch] + lr * self._force(values[epoch])
            if not low <= values[epoch + 1] <= high:
                msg = f"a={values[epoch + 1]:.3g} at epoch {epoch + 1} leaves the table; give a larger a_max or less lr"
                raise ValueError(msg)
        return values

    def flow_times(self, a: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return when the gradient flow reaches each of these ascending values; infinite beyond a rest point."""
        nodes, weights = np.polynomial.legendre.leggauss(16)
        edges = np.concatenate([[self.start], a])
        half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
        force = self._force(middle[:, None] + half[:, None] * nodes)
        reached = np.cumprod((force > 0).all(1)).astype(bool)
        step = np.where(reached, half * (weights / np.where(force > 0, force, 1.0)).sum(1), math.inf)
        times: NDArray[np.float64] = np.cumsum(step)
        return times

    def _forces(self, a: NDArray[np.float64]) -> NDArray[np.float64]:
        forces = []
        for value in a.tolist():
            with torch.no_grad():
                self._model.a.fill_(value)
            with torch.enable_grad():
                loss = self._engine.training_loss(loss=self._loss, eps=self._eps)
            forces.append(-float(torch.autograd.grad(loss, self._model.a)[0]))
        return np.array(forces)
