"""What a run will cost, measured on a few steps of it before anything is written."""

import time
from dataclasses import dataclass

import torch

from spectral.config import RunConfig
from spectral.curvature import HessianOperator
from spectral.data import DataSource
from spectral.models import Transformer, next_token_loss
from spectral.training.measure import measure_behaviour, measure_circuits
from spectral.training.setup import make_optimizer, select_device

TYPICAL_PRODUCTS = 60  # per snapshot of the default size; the real number depends on the spectrum
TIMED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Size and expected cost of a run.

    Attributes:
        n_parameters: of the model.
        n_steps: optimizer steps.
        snapshot_steps: when snapshots are taken.
        step_seconds: one optimizer step.
        product_seconds: one Hessian-vector product.
        snapshot_seconds: one snapshot at `TYPICAL_PRODUCTS` products.
        device: where it was timed.
    """

    n_parameters: int
    n_steps: int
    snapshot_steps: list[int]
    step_seconds: float
    product_seconds: float
    snapshot_seconds: float
    device: str

    @property
    def seconds(self) -> float:
        """Expected wall-clock time of the run, without figures."""
        return self.n_steps * self.step_seconds + len(self.snapshot_steps) * self.snapshot_seconds

    def describe(self) -> str:
        """Return the estimate as lines for a person."""
        steps = self.snapshot_steps
        if len(steps) > 6:
            listed = ", ".join(map(str, [*steps[:3]])) + ", ..., " + ", ".join(map(str, steps[-2:]))
        else:
            listed = ", ".join(map(str, steps)) or "none"
        measuring = len(steps) * self.snapshot_seconds
        share = measuring / self.seconds if self.seconds else 0.0
        return (
            f"parameters: {self.n_parameters:,}\n"
            f"schedule: {self.n_steps} steps, {len(steps)} snapshots at {listed}\n"
            f"time: about {_human(self.seconds)} on {self.device} ({self.step_seconds * 1e3:.1f} ms a step, "
            f"{self.snapshot_seconds:.2f} s a snapshot of {TYPICAL_PRODUCTS} products; {share:.0%} of it measuring)"
        )


def estimate(config: RunConfig) -> Estimate:
    """Time a few steps and products of a run on this machine; nothing is written."""
    if config.n_threads:
        torch.set_num_threads(config.n_threads)
    device = select_device(config.device)
    source = DataSource(config, device)
    model = Transformer.from_config(config).to(device)
    optimizer = make_optimizer(config, model)
    step_seconds = 0.0
    for i in range(TIMED_STEPS + 1):
        started = time.perf_counter()
        loss = next_token_loss(model, source.batch(i).tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        float(loss.detach())
        if i:  # the first one sets things up
            step_seconds += (time.perf_counter() - started) / TIMED_STEPS
    steps = config.snapshot_steps()
    product_seconds = snapshot_seconds = 0.0
    if steps:
        operator = HessianOperator(
            model,
            next_token_loss,
            source.curvature_probe.tokens,
            microbatch_size=config.eigen_microbatch_size or None,
        )
        v = operator.gradient / operator.gradient.norm()
        float(operator.matvec(v).norm())
        started = time.perf_counter()
        float(operator.matvec(v).norm())
        product_seconds = time.perf_counter() - started
        started = time.perf_counter()
        measure_behaviour(model, source)
        measure_circuits(model, source)
        snapshot_seconds = time.perf_counter() - started + TYPICAL_PRODUCTS * product_seconds
    return Estimate(
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        n_steps=config.num_steps,
        snapshot_steps=steps,
        step_seconds=step_seconds,
        product_seconds=product_seconds,
        snapshot_seconds=snapshot_seconds,
        device=str(device),
    )


def _human(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
