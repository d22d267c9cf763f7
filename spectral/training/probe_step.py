"""Does learning happen in the top space? Some steps of a run again, with the updates projected on it or off it.

From one state of a run several variants take the same number of steps on the same batches. In each of them the
optimizer does its normal step; then its update, delta = w_after - w_before (momentum, preconditioner and weight decay
included), is replaced by its projection, and the optimizer's own state goes on with the gradients that it has seen.

    unchanged   delta as it is: what the run itself did
    top         P delta, P = the orthogonal projection on the span of the k largest Hessian eigenvectors
    bulk        delta - P delta
    random      Q delta, Q = the projection on a random space of dimension k: what k dimensions alone would do

The top space moves, so every variant takes it again at its own weights every `refresh` steps; that is the price, about
50 Hessian-vector products each time for k = 10. Projections are computed in float64 on orthonormalised vectors.

Sources: Gur-Ari, Roberts, Dyer 2018, "Gradient descent happens in a tiny subspace" (arXiv 1812.04754); Song, Ahn, Yun
2025, "Does SGD really happen in tiny subspaces?" (arXiv 2405.16002): on the top space learning stops, off it
it goes on.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectral.behaviour import induction_accuracy, induction_loss, uniform_loss
from spectral.config import RunConfig
from spectral.data import DataSource
from spectral.errors import ConfigError, NonFiniteError, RunDirectoryError
from spectral.models import Transformer, next_token_loss
from spectral.randomness import derive_seed, torch_generator
from spectral.storage import write_text_atomic
from spectral.storage.run_directory import plain_json
from spectral.training.measure import evaluating
from spectral.training.progress import Progress
from spectral.training.restore import (
    Origin,
    Replica,
    environment,
    environment_differences,
    find_origin,
    read_run_config,
    run_conditions,
)
from spectral.training.setup import make_deterministic, select_device
from spectral.training.spectrum import CurvatureSettings, take_spectrum

SCHEMA_VERSION = "1.0"
VARIANTS = {
    "unchanged": "the optimizer's update as it is",
    "top": "its projection on the span of the top eigenvectors",
    "bulk": "its projection off that span",
    "random": "its projection on a random space of the same dimension",
}
LAST = 10  # the final training loss is a mean over so many batches
TOO_SMALL = 0.01  # nats; a smaller fall of the probe loss is not shared out,
NOISES = 5.0  # nor one that is smaller than so many times its jitter
MOST, LITTLE = 0.8, 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """What one variant did. N = steps, M = measurements, R = times that its space was taken.

    Attributes:
        loss: [N] training loss of the batch of each step, before the update, nats.
        update_norm: [N] length of the optimizer's update before projection, parameter units.
        update_share: [N] share of its squared length inside the variant's space (the top space; for `random` the
            random one), range [0, 1], chance k/n.
        gradient_share: [N] the same for the batch's gradient.
        measured_steps: [M] updates of the run completed when it was measured: the first and the last, and some between.
        probe_loss: [M] loss on the curvature probe, nats.
        induction_loss: [M] loss where the context determines the next token, on the behaviour probe, nats.
        induction_accuracy: [M] share of right first choices there, range [0, 1].
        space_steps: [R] updates completed when the space was taken.
        eigenvalues: [R, k] of the top space, descending, nats per squared parameter unit; [R, 0] for `random`.
        n_certified: [R] how many of them met `eigen_rtol`.
        space_overlap: [R] share of the space that lies in the one before it, range [0, 1], first NaN, chance k/n.
        n_products: Hessian-vector products spent.
        diverged: updates completed when loss or gradient became NaN or infinite; None = never. What would have come
            afterwards is NaN.
    """

    loss: np.ndarray
    update_norm: np.ndarray
    update_share: np.ndarray
    gradient_share: np.ndarray
    measured_steps: np.ndarray
    probe_loss: np.ndarray
    induction_loss: np.ndarray
    induction_accuracy: np.ndarray
    space_steps: np.ndarray
    eigenvalues: np.ndarray
    n_certified: np.ndarray
    space_overlap: np.ndarray
    n_products: int
    diverged: int | None

    @property
    def steps(self) -> np.ndarray:
        """[N] updates of the run completed before each step."""
        return np.arange(len(self.loss)) + int(self.measured_steps[0])

    @property
    def final_loss(self) -> float:
        """Mean training loss of the last batches, 10 or fewer."""
        return float(np.mean(self.loss[-LAST:]))

    @property
    def space_kept(self) -> float:
        """Mean of `space_overlap`; NaN where the space was taken once."""
        return float(np.mean(self.space_overlap[1:])) if len(self.space_overlap) > 1 else math.nan

    @property
    def jitter(self) -> float:
        """Standard deviation of `probe_loss` about a smooth curve, from second differences; 0 with fewer than 5 values.

        For independent deviations e the variance of e[i] - 2 e[i + 1] + e[i + 2] is 6 times theirs.
        """
        if len(self.probe_loss) < 5:
            return 0.0
        return float(np.sqrt(np.mean(np.diff(self.probe_loss, 2) ** 2) / 6))

    def change(self, name: str) -> float:
        """Return the last minus the first value of `probe_loss`, `induction_loss` or `induction_accuracy`."""
        values = getattr(self, name)
        return float(values[-1] - values[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeStep:
    """The variants side by side, and where they began.

    Attributes:
        run: name of the run.
        step: updates completed at the beginning.
        settings: the arguments: n_steps, k, refresh, measure_interval, seed.
        n_parameters: n.
        checkpoint: file name of the checkpoint from which the step was reached; None = the initialisation.
        replayed: updates done again to get from there to `step`.
        differences: conditions (PyTorch, threads, device) that differ from those of the run; with none, replay and
            `unchanged` equal the run bit for bit.
        skipped: checkpoints that were passed over, and why.
        yardsticks: chance levels and ceilings by name.
        variants: name -> what it did, in the order of `VARIANTS`.
        final_weights: name -> [n] weights at the end, float64; not part of the file.
    """

    run: str
    step: int
    settings: Mapping[str, int]
    n_parameters: int
    checkpoint: str | None
    replayed: int
    differences: tuple[str, ...]
    skipped: tuple[str, ...]
    yardsticks: Mapping[str, float]
    variants: Mapping[str, Trajectory]
    final_weights: Mapping[str, Tensor] = dataclasses.field(repr=False)

    @property
    def n_products(self) -> int:
        """Hessian-vector products of all variants."""
        return sum(variant.n_products for variant in self.variants.values())

    @property
    def origin(self) -> str:
        """Where the steps began, in words."""
        start = f"checkpoint {self.checkpoint}" if self.checkpoint else "the initialisation"
        steps = "1 step" if self.replayed == 1 else f"{self.replayed:,} steps"
        return f"{start}, {steps} replayed" if self.replayed else start

    @property
    def readable(self) -> bool:
        """Whether the probe loss of `unchanged` falls clearly enough to ask where the fall happens."""
        unchanged = self.variants["unchanged"]
        return unchanged.change("probe_loss") <= -max(TOO_SMALL, NOISES * unchanged.jitter)

    def share_of_progress(self, name: str) -> float:
        """Return a variant's fall of the probe loss in units of that of `unchanged`; NaN where that hardly falls."""
        if not self.readable:
            return math.nan
        return self.variants[name].change("probe_loss") / self.variants["unchanged"].change("probe_loss")

    def sentence(self) -> str:
        """Read the result: what the projections left of the fall of the probe loss."""
        n_steps, k = self.settings["n_steps"], self.settings["k"]
        unchanged = self.variants["unchanged"]
        whole = unchanged.change("probe_loss")
        if unchanged.diverged is not None:
            return f"The unchanged updates diverge within {n_steps} steps, so there is nothing to compare with."
        if not self.readable:
            return (
                f"Unchanged updates change the probe loss by {whole:+.3f} nats in {n_steps} steps (jitter "
                f"{unchanged.jitter:.3f}): no fall, or too small a one to tell where it happens; take more steps or "
                "begin at another one."
            )
        shares = {}
        for name in ("bulk", "top", "random"):
            share = self.share_of_progress(name)
            shares[name] = f"{round(100 * share)} %" if math.isfinite(share) else "nothing (diverged)"
        return (
            f"Unchanged updates lower the probe loss by {-whole:.2f} nats in {n_steps} steps. Of that fall, updates "
            f"off the top {k} directions reach {shares['bulk']}, updates on them {shares['top']}, on a random space "
            f"{shares['random']}: {self._judgement()}"
        )

    def _judgement(self) -> str:
        top, bulk = self.share_of_progress("top"), self.share_of_progress("bulk")
        if not (math.isfinite(top) and math.isfinite(bulk)):
            return "a variant that diverges says nothing about learning."
        if min(top, bulk) >= MOST:
            return "here either space learns on its own."
        if max(top, bulk) < MOST:
            return "here neither space accounts for learning on its own."
        where = "does not happen" if bulk > top else "happens"
        much = "" if min(top, bulk) <= LITTLE else "mostly "
        return f"here learning {much}{where} in the top space."

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the weights as JSON-ready values; NaN becomes None."""
        found: dict[str, Any] = plain_json(
            {
                "schema_version": SCHEMA_VERSION,
                "run": self.run,
                "step": self.step,
                "settings": dict(self.settings),
                "n_parameters": self.n_parameters,
                "checkpoint": self.checkpoint,
                "replayed": self.replayed,
                "differences": list(self.differences),
                "skipped": list(self.skipped),
                "yardsticks": dict(self.yardsticks),
                "n_products": self.n_products,
                "sentence": self.sentence(),
                "variants": {name: dataclasses.asdict(variant) for name, variant in self.variants.items()},
            }
        )
        return found

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_dict()` as JSON, whole or not at all; the folder is made when missing.

        Raises:
            RunDirectoryError: the disk refused.
        """
        target = Path(path)
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(target, text)
        except OSError as error:
            msg = f"{target} could not be written ({error.strerror}); choose another place with --output"
            raise RunDirectoryError(msg) from error
        return target


def probe_step(
    run_path: str | os.PathLike[str],
    step: int,
    *,
    n_steps: int = 100,
    k: int = 10,
    refresh: int = 10,
    measure_interval: int = 5,
    seed: int | None = None,
    from_start: bool = False,
    device: str | None = None,
    progress: Callable[[int], Progress] | None = None,
) -> ProbeStep:
    """Take some steps of a run again, with the updates unchanged, on the top space, off it, and on a random space.

    Nothing is written. The run may be finished, interrupted or going on. The number of threads of the run is used,
    because bits depend on it.

    Args:
        run_path: folder of a run of `train.py`.
        step: updates completed at the beginning. The newest checkpoint at or before it is replayed forward.
        n_steps: updates of every variant; they may go beyond the end of the run.
        k: dimension of the spaces.
        refresh: take the spaces again every this many steps; 0 = only at the beginning.
        measure_interval: measure on the probes every this many steps.
        seed: of the Lanczos starts and random spaces; None = the run's.
        from_start: where no checkpoint is early enough, replay from the initialisation.
        device: where to compute; None = the run's choice.
        progress: makes the display from the number of updates to do; None = silent.

    Raises:
        ConfigError: an argument that cannot be.
        RunDirectoryError: no run of `train.py` there. CheckpointError: no usable checkpoint at or before the step.
        NonFiniteError: the run itself has diverged at that step.
    """
    path = Path(run_path)
    config = read_run_config(path)
    _check_arguments(path, config, step, n_steps=n_steps, k=k, refresh=refresh, measure_interval=measure_interval)
    place = _select_device(device or config.device, config, path)
    make_deterministic(place)
    source = DataSource(config, place)
    n = sum(parameter.numel() for parameter in Transformer.from_config(config).parameters())
    if k > n:
        raise ConfigError([f"--k {k} is larger than the {n:,} parameters of {path}; lower it"])
    origin = find_origin(path, config, step, from_start=from_start, map_location=place)
    settings = {"n_steps": n_steps, "k": k, "refresh": refresh, "measure_interval": measure_interval}
    settings["seed"] = config.seed if seed is None else seed
    with run_conditions(config, origin, place):
        display = None if progress is None else progress(step - origin.step + len(VARIANTS) * n_steps)
        if display is not None:
            display.start(0)
        try:
            return _compare(path, config, source, origin, step, settings, n, display)
        finally:
            if display is not None:
                display.close()


def project(vector: Tensor, basis: Tensor) -> Tensor:
    """Return the orthogonal projection of a vector [n] on the span of orthonormal columns [n, k]."""
    return basis @ (basis.T @ vector)


def _compare(
    path: Path,
    config: RunConfig,
    source: DataSource,
    origin: Origin,
    step: int,
    settings: dict[str, int],
    n: int,
    display: Progress | None,
) -> ProbeStep:
    differences = environment_differences(origin.environment, environment(source.device)) if origin.environment else []
    if display is not None:
        for reason in origin.skipped:
            display.message(f"skipped a damaged checkpoint: {reason}")
        if differences:
            display.message(f"warning: other conditions than those of the run, so other bits: {', '.join(differences)}")
    start = Replica.at(origin, config, source)
    while start.completed < step:
        loss = start.replay(path)
        if display is not None:
            display.update(start.completed - origin.step, loss=loss)
    first = _TopSpace(start, settings)
    done = step - origin.step
    variants, weights = {}, {}
    for name in VARIANTS:
        if display is not None:
            display.message(f"{name}: {VARIANTS[name]}")
        replica = start.fork()
        space = _RandomSpace(n, settings, source.device, step) if name == "random" else first.copy()
        variants[name] = _follow(name, replica, space, settings, display, done)
        # The products of the first space were spent once, for all that begin with it.
        first.n_products = 0
        weights[name] = _flat(replica.model)
        done += settings["n_steps"]
    return ProbeStep(
        run=path.resolve().name,
        step=step,
        settings=settings,
        n_parameters=n,
        checkpoint=origin.checkpoint,
        replayed=step - origin.step,
        differences=tuple(differences),
        skipped=origin.skipped,
        yardsticks=_yardsticks(start, settings["k"] / n),
        variants=variants,
        final_weights=weights,
    )


def _follow(
    name: str, replica: Replica, space: "_Space", settings: dict[str, int], display: Progress | None, done: int
) -> Trajectory:
    """Take the steps of one variant."""
    n_steps, refresh, interval = settings["n_steps"], settings["refresh"], settings["measure_interval"]
    model = replica.model
    rows = np.full((4, n_steps), np.nan)
    begin = replica.completed
    measured = [i for i in range(n_steps + 1) if i % interval == 0 or i == n_steps]
    probes = np.full((3, len(measured)), np.nan)
    probes[:, 0] = _measure(replica)
    n_measured, diverged = 1, None
    for i in range(n_steps):
        try:
            if refresh and i and i % refresh == 0:
                space.take(replica)
            before = _flat(model)
            loss, norm = replica.update()
            if not math.isfinite(float(loss) + float(norm)):
                diverged = replica.completed - 1
                break
            delta = _flat(model) - before
            inside = project(delta, space.basis)
            if name != "unchanged":  # whose weights keep their very bits
                _write(model, before + (delta - inside if name == "bulk" else inside))
            rows[:, i] = float(loss), float(delta.norm()), _share(delta, inside), space.share(_gradient(model))
            if i + 1 == measured[n_measured]:
                probes[:, n_measured] = _measure(replica)
                n_measured += 1
        except NonFiniteError:  # from a probe or the Hessian there
            diverged = replica.completed
            break
        if display is not None:
            display.update(done + i + 1, loss=float(loss), accuracy=float(probes[2, n_measured - 1]))
    if diverged is not None and display is not None:
        display.message(f"{name}: not finite after step {diverged}; the rest of this variant is left out")
    return Trajectory(
        loss=rows[0],
        update_norm=rows[1],
        update_share=rows[2],
        gradient_share=rows[3],
        measured_steps=begin + np.array(measured),
        probe_loss=probes[0],
        induction_loss=probes[1],
        induction_accuracy=probes[2],
        space_steps=np.array(space.steps),
        eigenvalues=np.stack(space.eigenvalues),
        n_certified=np.array(space.n_certified),
        space_overlap=np.array(space.overlaps),
        n_products=space.n_products,
        diverged=diverged,
    )


class _Space:
    """A space of dimension k that is taken again now and then; `basis` [n, k] has orthonormal columns in float64."""

    def __init__(self, settings: dict[str, int]) -> None:
        self.k, self.seed = settings["k"], settings["seed"]
        self.basis: Tensor
        self.steps: list[int] = []
        self.eigenvalues: list[np.ndarray] = []
        self.n_certified: list[int] = []
        self.overlaps: list[float] = []
        self.n_products = 0

    def take(self, replica: Replica) -> None:
        """Replace the space by that of the present weights."""
        raise NotImplementedError

    def share(self, vector: Tensor) -> float:
        """Return the share of a vector's squared length inside the space; NaN for a vector of zeros."""
        return _share(vector, project(vector, self.basis))

    def _set(self, columns: Tensor, step: int, eigenvalues: np.ndarray, n_certified: int) -> None:
        basis = torch.linalg.qr(columns.double()).Q
        overlap = math.nan
        if self.steps:
            overlap = float((self.basis.T @ basis).square().sum()) / basis.shape[1]
        self.basis = basis
        self.steps.append(step)
        self.eigenvalues.append(eigenvalues)
        self.n_certified.append(n_certified)
        self.overlaps.append(overlap)


class _TopSpace(_Space):
    """The span of the top eigenvectors of the Hessian on the curvature probe."""

    def __init__(self, replica: Replica, settings: dict[str, int]) -> None:
        super().__init__(settings)
        self.take(replica)

    def copy(self) -> "_TopSpace":
        other = _TopSpace.__new__(_TopSpace)
        other.__dict__ = {name: list(v) if isinstance(v, list) else v for name, v in self.__dict__.items()}
        return other

    def take(self, replica: Replica) -> None:
        config, step = replica.config, replica.completed
        basis_size = max(128, 4 * self.k)
        _, spectrum = take_spectrum(
            replica.model,
            next_token_loss,
            replica.source.curvature_probe.loss_input,
            settings=CurvatureSettings(
                k=self.k,
                k_negative=0,
                rtol=config.eigen_rtol,
                max_products=config.max_products or 3 * basis_size,
                microbatch_size=config.eigen_microbatch_size or None,
                dtype=getattr(torch, config.hessian_dtype),
            ),
            seed=derive_seed(self.seed, "probe-step", step),
        )
        top = spectrum.top
        self.n_products += spectrum.n_products
        values = np.full(self.k, np.nan)
        values[: len(top.values)] = top.values.cpu().numpy()
        self._set(top.vectors.T, step, values, int(top.converged.sum()))


class _RandomSpace(_Space):
    """A space spanned by Gaussian vectors, another one whenever it is taken."""

    def __init__(self, n: int, settings: dict[str, int], device: torch.device, step: int) -> None:
        super().__init__(settings)
        self.n, self.device = n, device
        self._draw(step)

    def take(self, replica: Replica) -> None:
        self._draw(replica.completed)

    def _draw(self, step: int) -> None:
        generator = torch_generator(self.seed, "probe-step/random", step)
        columns = torch.randn(self.n, self.k, generator=generator, dtype=torch.float64)
        self._set(columns.to(self.device), step, np.zeros(0), 0)


@torch.no_grad()
def _measure(replica: Replica) -> tuple[float, float, float]:
    """Return probe loss, induction loss and induction accuracy."""
    model, source = replica.model, replica.source
    probe = source.behaviour_probe
    with evaluating(model):
        loss = next_token_loss(model, source.curvature_probe.loss_input)
        logits = model(probe.tokens)
    return (
        float(loss),
        float(induction_loss(logits, probe.tokens, probe.predictable)),
        float(induction_accuracy(logits, probe.tokens, probe.predictable)),
    )


@torch.no_grad()
def _yardsticks(replica: Replica, share: float) -> dict[str, float]:
    probe = replica.source.behaviour_probe
    with evaluating(replica.model):
        accuracy = induction_accuracy(replica.model(probe.tokens), probe.tokens, probe.predictable)
    return {
        "loss_chance": uniform_loss(replica.config.vocab_size),
        "induction_accuracy_chance": accuracy.chance,
        "induction_accuracy_ceiling": accuracy.ceiling,
        "share_chance": share,
    }


def _flat(model: Transformer) -> Tensor:
    """Return the weights as one vector, in float64: differences of float32 weights are exact there."""
    return torch.cat([parameter.detach().double().reshape(-1) for parameter in model.parameters()])


def _gradient(model: Transformer) -> Tensor:
    return torch.cat(
        [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).double().reshape(-1)
            for parameter in model.parameters()
        ]
    )


@torch.no_grad()
def _write(model: Transformer, weights: Tensor) -> None:
    start = 0
    for parameter in model.parameters():
        parameter.copy_(weights[start : start + parameter.numel()].view_as(parameter))
        start += parameter.numel()


def _share(vector: Tensor, inside: Tensor) -> float:
    whole = float(vector.square().sum())
    return min(float(inside.square().sum()) / whole, 1.0) if whole > 0 else math.nan


def _check_arguments(path: Path, config: RunConfig, step: int, **arguments: int) -> None:
    faults = []
    if step < 0:
        faults.append(f"--step {step}; steps count from 0")
    if step > config.num_steps:
        faults.append(
            f"--step {step} lies beyond the end of {path}, which has {config.num_steps} steps; "
            f"give one from 0 to {config.num_steps}"
        )
    for name, least in (("n_steps", 1), ("k", 1), ("refresh", 0), ("measure_interval", 1)):
        if arguments[name] < least:
            faults.append(f"--{name} {arguments[name]}; it must be at least {least}")
    if faults:
        raise ConfigError(faults)


def _select_device(name: str, config: RunConfig, path: Path) -> torch.device:
    try:
        return select_device(name)
    except ConfigError:
        if name != config.device:
            raise
        raise ConfigError([f"{path} was trained with --device {name}, which is not here; add --device cpu"]) from None
    except RuntimeError as error:  # torch does not know such a device
        raise ConfigError([f"--device {name!r} is unknown; use auto, cpu, cuda or cuda:N"]) from error
