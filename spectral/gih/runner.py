"""One experiment from its settings to rows of measurements."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from spectral.curvature import HessianOperator, top_eigenpairs
from spectral.data import MarkovBatch, markov_chains
from spectral.gih.compression import compress
from spectral.gih.config import GIHConfig
from spectral.gih.engine import Engine, compressed_loss
from spectral.gih.stages import Stage, StageTrainer
from spectral.randomness import torch_generator

EXACT_SPECTRUM = 200  # parameters up to which all eigenvalues are computed
TOP_EIGENVALUES = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """One row: the weights after `time` of a stage and what they do.

    The losses belong to the same weights, before the next update. Both kinds are always present; they are different
    quantities and share no axis.

    Attributes:
        stage: index of the stage, from 0.
        time: epochs of a descent or time of a flow since the stage began.
        w: [head, offset] relative-position weights.
        c: [subset] coefficients.
        a: weight of layer 2.
        shares: [subset] p_S = c_S^2 / sum c^2.
        sum_squares: sum c^2.
        own_offset: [head] share of a head's attention on its target offset, in [0, 1].
        forces: [subset] J_S, see `spectral.gih.subset_forces`; NaN with the standard normaliser.
        train_double_softmax, train_nll: mean losses on the training chains, nats.
        validation_double_softmax, validation_nll: the same on held-out chains; NaN without any.
        accuracy: share of held-out chains whose target is the most probable token; NaN without any.
        eigenvalues: [k] of the Hessian of the training loss in all parameters, descending, nats per squared parameter
            unit; None where not measured. All of them up to 200 parameters, else the 10 largest.
    """

    stage: int
    time: float
    w: Float64[Tensor, "head offset"]
    c: Float64[Tensor, " subset"]
    a: float
    shares: Float64[Tensor, " subset"]
    sum_squares: float
    own_offset: Float64[Tensor, " head"]
    forces: Float64[Tensor, " subset"]
    train_double_softmax: float
    train_nll: float
    validation_double_softmax: float
    validation_nll: float
    accuracy: float
    eigenvalues: Float64[Tensor, " k"] | None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is: stage (from 0) of n_stages, and time of the total time of this stage."""

    stage: int
    n_stages: int
    time: float
    total: float


class GIHRun:
    """An experiment that trains stage after stage and can be interrupted at every row and every epoch of a descent.

    Building one draws and counts the chains. `measurements()` trains and yields; between two rows and inside `watch`
    `state_dict()` holds everything, and a run of the same settings that loads it continues with the same bits.

    Args:
        config: the settings.
        watch: called after every epoch of a descent, when `state_dict` may be taken; False ends
            `measurements` there, before its next row.

    Attributes:
        config: the settings.
        model: at its present weights.
        training, validation: the compressed chains; `validation` is None without held-out chains.
    """

    def __init__(self, config: GIHConfig, *, watch: Callable[[Progress], bool] | None = None) -> None:
        self.config = config
        self.model = config.build_model()
        self._watch = watch
        chains = compress(draw_chains(config).tokens, self.model)
        self.training = chains.take(slice(0, config.n_training))
        self.validation = chains.take(slice(config.n_training, None)) if config.n_validation else None
        self._engine = Engine(self.model, self.training)
        self._held_out = Engine(self.model, self.validation) if self.validation else None
        self._stages = config.stages()
        self._stage = 0
        self._next = 0  # index of the next measurement of this stage
        self._trainer: StageTrainer | None = None

    @property
    def finished(self) -> bool:
        """Return whether every stage is at its end."""
        return self._stage == len(self._stages)

    def measurements(self) -> Iterator[Measurement]:
        """Train to the end, yielding a row at every measured time; the first of a stage is its start.

        Ends early where `watch` says so; the next call goes on there.

        Raises:
            NonFiniteError: training diverged; the rows before were yielded.
        """
        while not self.finished:
            stage = self._stages[self._stage]
            times = stage.measured_times()
            with_spectrum = _spectrum_places(times, self.config.hessian_points)
            while self._next < len(times):
                trainer = self._trainer = self._trainer or self._make_trainer(stage)
                if not trainer.advance(times[self._next], watch=self._look):
                    return
                row = self.measure(spectrum=self._next in with_spectrum)
                self._next += 1
                if self._next == len(times):  # before the row is handed out, so that a state saved there is complete
                    self._stage, self._next, self._trainer = self._stage + 1, 0, None
                    yield row
                    break
                yield row

    def measure(self, *, spectrum: bool = False) -> Measurement:
        """Return a row of the present weights; with `spectrum` also the eigenvalues of the Hessian."""
        model, eps = self.model, self.config.eps
        train = _losses(self._engine, eps)
        held_out = _losses(self._held_out, eps) if self._held_out else (np.nan,) * 3
        plain = self.config.model == "simplified" or self.config.normaliser == "plain"
        moved = plain and model.a.item() != 0
        forces = self._engine.forces(loss=self.config.loss, eps=eps) if moved else None
        w, c = model.w.detach().clone(), model.c.detach().clone()
        target = model.offsets == torch.arange(1, model.n_heads + 1)[:, None]
        return Measurement(
            stage=self._stage,
            time=self._trainer.time if self._trainer else 0.0,
            w=w,
            c=c,
            a=model.a.item(),
            shares=model.subset_shares().detach(),
            sum_squares=float(c @ c),
            own_offset=w.softmax(1)[target],
            forces=torch.full_like(c, torch.nan) if forces is None else forces,
            train_double_softmax=train[0],
            train_nll=train[1],
            validation_double_softmax=held_out[0],
            validation_nll=held_out[1],
            accuracy=held_out[2],
            eigenvalues=self.hessian_eigenvalues() if spectrum else None,
        )

    def hessian_eigenvalues(self) -> Float64[Tensor, " k"]:
        """Return the eigenvalues of the Hessian of the training loss at the present weights, descending."""

        def loss(model: Any, chains: Any) -> Tensor:
            return compressed_loss(model, chains, loss=self.config.loss, eps=self.config.eps)

        operator = HessianOperator(self.model, loss, self.training)
        if operator.n > EXACT_SPECTRUM:
            return top_eigenpairs(operator, k=TOP_EIGENVALUES, k_negative=0).top.values.double()
        matrix = operator @ torch.eye(operator.n, dtype=operator.dtype)
        eigenvalues: Tensor = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
        return eigenvalues.flip(0).double()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on, beside the settings."""
        return {
            "config": self.config.to_dict(),
            "model": {name: value.clone() for name, value in self.model.state_dict().items()},
            "stage": self._stage,
            "next": self._next,
            "trainer": self._trainer.state_dict() if self._trainer else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the state belongs to other settings.
        """
        if state["config"] != self.config.to_dict():
            different = sorted(k for k, v in self.config.to_dict().items() if state["config"].get(k) != v)
            msg = f"the state belongs to other settings ({', '.join(different)} differ); build the run with its own"
            raise ValueError(msg)
        self.model.load_state_dict(state["model"])
        self._stage, self._next, self._trainer = state["stage"], state["next"], None
        if state["trainer"] is not None:
            self._trainer = self._make_trainer(self._stages[self._stage])
            self._trainer.load_state_dict(state["trainer"])

    def _look(self) -> bool:
        if self._watch is None or self._trainer is None:
            return True
        stage = self._stages[self._stage]
        total = stage.flow_time or float(stage.epochs)
        now = Progress(stage=self._stage, n_stages=len(self._stages), time=self._trainer.time, total=total)
        return self._watch(now)

    def _make_trainer(self, stage: Stage) -> StageTrainer:
        config = self.config
        return StageTrainer(self.model, self.training, stage, loss=config.loss, eps=config.eps, seed=config.seed)


def draw_chains(config: GIHConfig, *, return_tables: bool = False) -> MarkovBatch:
    """Draw the chains of an experiment, training ones first; a function of the settings alone."""
    return markov_chains(
        batch_size=config.n_sample,
        seq_length=config.seq_length + 1,
        vocab_size=config.vocab_size,
        parents=config.lags,
        alpha=config.alpha,
        generator=torch_generator(config.seed, "gih chains"),
        device="cpu",
        return_tables=return_tables,
        start=config.start,
    )


@torch.no_grad()
def _losses(engine: Engine, eps: float) -> tuple[float, float, float]:
    """Return double-softmax loss, cross-entropy and accuracy."""
    means = [engine.loss(loss=kind, eps=eps).item() for kind in ("double_softmax", "nll")]
    return means[0], means[1], engine.hits().double().mean().item()


def _spectrum_places(times: list[float], n_points: int) -> set[int]:
    """Return which rows of a stage carry a spectrum: evenly spread over log(1 + time), the first and last included."""
    if n_points == 0:
        return set()
    decades = np.log1p(times)
    wanted = np.linspace(0, decades[-1], max(2, n_points))
    return {int(np.abs(decades - place).argmin()) for place in wanted}
