"""Training in stages: which parameters move, for how long, by gradient descent or by gradient flow.

A stage is followed from one measured time to the next. Nothing but the parameters, the time and what the optimiser
remembers passes over such a time, so a run that is interrupted there and resumed repeats every bit.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from spectral.errors import ConfigError, NonFiniteError
from spectral.gih.compression import CompressedChains
from spectral.gih.engine import Engine
from spectral.models import DisentangledTransformer, LastTokenLoss
from spectral.randomness import torch_generator

Optimizer = Literal["sgd", "adam"]

FLOW_RTOL = 1e-7
FLOW_ATOL = 1e-10
DENSE_UNTIL = 100  # epochs that are all measured
PER_DECADE = 50


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training.

    Attributes:
        train: names of the parameters that move, for example ("c",); the others stand still.
        epochs: updates of gradient descent (passes over the chains, with `batch_size`); 0 with a flow.
        lr: learning rate of the descent.
        flow_time: follow the gradient flow d theta / dt = -dL/d theta for this long instead; lr 1 passes time 1 per
            epoch. 0 = descent.
        optimizer: `sgd` (no momentum: plain gradient descent) or `adam`.
        batch_size: sequences per update; 0 = all, one update per epoch.
    """

    train: tuple[str, ...]
    epochs: int = 0
    lr: float = 1.0
    flow_time: float = 0.0
    optimizer: Optimizer = "sgd"
    batch_size: int = 0

    @property
    def length(self) -> str:
        """Return in words how long the stage is."""
        return f"flow time {self.flow_time:g}" if self.flow_time else f"{self.epochs:,} epochs at lr {self.lr:g}"

    def faults(self) -> list[str]:
        """Return what is wrong with the stage, one line per fault."""
        name = "+".join(self.train) or "an empty name"
        found = []
        if not self.train:
            found.append("a stage trains nothing; name at least one parameter, for example c")
        if self.epochs < 0 or self.flow_time < 0 or not math.isfinite(self.flow_time):
            found.append(f"stage {name} has a negative or infinite length; give epochs or flow_time above 0")
        elif (self.epochs > 0) == (self.flow_time > 0):
            found.append(f"stage {name} needs either epochs or flow_time above 0, exactly one of them")
        if self.epochs and not (self.lr > 0 and math.isfinite(self.lr)):
            found.append(f"stage {name} has lr={self.lr}, so it trains nothing; give a finite lr above 0")
        if self.batch_size < 0:
            found.append(f"stage {name} has batch_size={self.batch_size}; give 0 for all sequences, or a size")
        if self.flow_time > 0 and (self.optimizer != "sgd" or self.batch_size):
            found.append(f"stage {name} follows the gradient flow of all sequences; leave optimizer and batch_size out")
        return found

    def measured_times(self) -> list[float]:
        """Return the epochs (of a descent) or times (of a flow) to stop at: 0, logarithmically spaced ones, the end.

        A descent also stops at each of the first 100 epochs.
        """
        if self.flow_time:
            decades = math.log10(self.flow_time)
            n = max(2, round(max(decades, 1.0) * PER_DECADE / 5) + 1)
            return [0.0, *np.logspace(min(0.0, decades - 1), decades, n)[:-1].tolist(), self.flow_time]
        n = max(2, round(math.log10(max(self.epochs, 10)) * PER_DECADE))
        spaced = np.round(np.logspace(0, math.log10(self.epochs), n)).astype(int)
        epochs = sorted({*range(min(DENSE_UNTIL, self.epochs) + 1), *spaced.tolist(), self.epochs})
        return [float(epoch) for epoch in epochs]


class StageTrainer:
    """Trains the parameters of one stage.

    Args:
        model: is changed in place.
        chains: the training set.
        stage: what to do.
        loss, eps: see `spectral.models.last_token_losses`.
        seed: of the order of mini-batches.

    Raises:
        ConfigError: the stage trains nothing, or a parameter that the model does not have.
    """

    def __init__(
        self,
        model: DisentangledTransformer,
        chains: CompressedChains,
        stage: Stage,
        *,
        loss: LastTokenLoss = "double_softmax",
        eps: float = 1e-4,
        seed: int = 0,
    ) -> None:
        faults = stage.faults()
        known = dict(model.named_parameters())
        unknown = [name for name in stage.train if name not in known]
        if unknown:
            faults.append(f"a stage trains {', '.join(unknown)}, which the model lacks; choose from {', '.join(known)}")
        if stage.batch_size > chains.n_sequences:
            faults.append(
                f"batch_size={stage.batch_size} exceeds the {chains.n_sequences} sequences; reduce it or use 0"
            )
        if faults:
            raise ConfigError(faults)
        self.time = 0.0
        self._model, self._chains, self._stage, self._seed = model, chains, stage, seed
        self._loss, self._eps = loss, eps
        self._parameters = [known[name] for name in stage.train]
        self._engine = Engine(model, chains, training=stage.train)
        self._first_step: float | None = None
        self._adam = torch.optim.Adam(self._parameters, lr=stage.lr) if stage.optimizer == "adam" else None

    def advance(self, until: float | int, *, watch: Callable[[], bool] | None = None) -> bool:
        """Train up to this epoch (of a descent) or time (of a flow).

        Args:
            until: where to stop.
            watch: called after every epoch, when `time` and `state_dict` are up to date; False stops there.

        Returns:
            Whether `until` was reached.

        Raises:
            NonFiniteError: a parameter became NaN or infinite.
        """
        going = True
        if self._stage.flow_time:
            if until > self.time:
                self._flow(float(until))
            self.time = float(until)
        while going and self.time < until:
            self._epoch(int(self.time))
            self.time += 1.0
            going = watch is None or watch()
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self._parameters):
            name = "+".join(self._stage.train)
            msg = f"training {name} diverged before time {self.time:g} of its stage; reduce lr={self._stage.lr:g}"
            raise NonFiniteError(msg)
        return self.time >= until

    def state_dict(self) -> dict[str, Any]:
        """Return everything beside the model's parameters that the rest of the stage depends on."""
        # A copy: what an optimiser hands out goes on changing with it.
        adam = copy.deepcopy(self._adam.state_dict()) if self._adam else None
        return {"time": self.time, "first_step": self._first_step, "adam": adam}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; the model must have been put back before the trainer was built."""
        self.time, self._first_step = state["time"], state["first_step"]
        if self._adam:
            self._adam.load_state_dict(copy.deepcopy(state["adam"]))

    def _gradients(self, engine: Engine) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            value = engine.training_loss(loss=self._loss, eps=self._eps)
        return torch.autograd.grad(value, self._parameters)

    def _epoch(self, epoch: int) -> None:
        for engine in self._batches(epoch):
            gradients = self._gradients(engine)
            with torch.no_grad():
                for parameter, gradient in zip(self._parameters, gradients, strict=True):
                    if self._adam:
                        parameter.grad = gradient
                    else:
                        parameter.sub_(gradient, alpha=self._stage.lr)
            if self._adam:
                self._adam.step()
                self._adam.zero_grad()

    def _batches(self, epoch: int) -> Iterator[Engine]:
        if not self._stage.batch_size:
            yield self._engine
            return
        order = torch.randperm(self._chains.n_sequences, generator=torch_generator(self._seed, "gih batches", epoch))
        for chosen in order.split(self._stage.batch_size):
            yield Engine(self._model, self._chains.take(chosen), training=self._stage.train)

    def _flow(self, until: float) -> None:
        sizes = [parameter.numel() for parameter in self._parameters]

        def put(flat: NDArray[np.float64]) -> None:
            with torch.no_grad():
                for parameter, part in zip(self._parameters, torch.from_numpy(flat).split(sizes), strict=True):
                    parameter.copy_(part.view_as(parameter))

        def velocity(_: float, flat: NDArray[np.float64]) -> NDArray[np.float64]:
            put(flat)
            return -torch.cat([gradient.flatten() for gradient in self._gradients(self._engine)]).double().numpy()

        start = torch.cat([parameter.detach().flatten() for parameter in self._parameters]).double().numpy().copy()
        span = until - self.time
        first = None if self._first_step is None else min(self._first_step, span)
        solution = solve_ivp(
            velocity, (self.time, until), start, method="RK45", rtol=FLOW_RTOL, atol=FLOW_ATOL, first_step=first
        )
        if not solution.success:
            put(start)
            msg = f"the gradient flow could not be followed beyond time {solution.t[-1]:g} ({solution.message}); "
            raise NonFiniteError(msg + "use epochs with a small lr instead")
        # The last step is cut to end at `until`; the longest one is what the solver found affordable.
        self._first_step = float(np.diff(solution.t).max())
        put(solution.y[:, -1])
