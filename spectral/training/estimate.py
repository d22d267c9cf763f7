"""What a run will cost, measured on a few steps of it before anything is written."""

import time
from dataclasses import dataclass

import torch

from spectral.config import RunConfig
from spectral.curvature import HessianOperator
from spectral.data import DataSource
from spectral.models import Transformer, next_token_loss
from spectral.training.measure import CausalMeter, ProbeMeter
from spectral.training.parameter_blocks import spectrum_blocks
from spectral.training.setup import COMPILE_SECONDS, choose_compile, make_optimizer, select_device

TYPICAL_PRODUCTS = 60  # per snapshot of the default size; the real number depends on the spectrum
# How much more scipy's and PyHessian's solvers take, which differs a lot between spectra (docs/performance.md).
BACKEND_FACTORS = {"spectral": 1, "scipy": 2, "pyhessian": 5}
COMPILED_PRICE = 0.65  # of an eager product
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
        snapshot_seconds: one snapshot.
        causal_steps: when causes are measured.
        causal_seconds: one measurement of causes.
        products: Hessian-vector products a snapshot, by what they are for.
        compiled: whether they are compiled, and why.
        device: where it was timed.
    """

    n_parameters: int
    n_steps: int
    snapshot_steps: list[int]
    step_seconds: float
    product_seconds: float
    snapshot_seconds: float
    causal_steps: list[int]
    causal_seconds: float
    products: dict[str, int]
    compiled: tuple[bool, str]
    device: str

    @property
    def measuring_seconds(self) -> float:
        """Expected time of all snapshots and of all measurements of causes, compiling included."""
        measured = len(self.snapshot_steps) * self.snapshot_seconds + len(self.causal_steps) * self.causal_seconds
        return measured + (COMPILE_SECONDS if self.compiled[0] else 0.0)

    @property
    def seconds(self) -> float:
        """Expected wall-clock time of the run, without figures."""
        return self.n_steps * self.step_seconds + self.measuring_seconds

    def describe(self) -> str:
        """Return the estimate as lines for a person."""
        steps = self.snapshot_steps
        if len(steps) > 6:
            listed = ", ".join(map(str, [*steps[:3]])) + ", ..., " + ", ".join(map(str, steps[-2:]))
        else:
            listed = ", ".join(map(str, steps)) or "none"
        share = self.measuring_seconds / self.seconds if self.seconds else 0.0
        counted = ", ".join(f"{name} {count}" for name, count in self.products.items())
        lines = [
            f"parameters: {self.n_parameters:,}",
            f"schedule: {self.n_steps} steps, {len(steps)} snapshots at {listed}",
            f"time: about {_human(self.seconds)} on {self.device} ({self.step_seconds * 1e3:.1f} ms a step, "
            f"{self.snapshot_seconds:.2f} s a snapshot; {share:.0%} of it measuring)",
        ]
        if steps:
            lines.append(
                f"Hessian products: about {sum(self.products.values())} a snapshot ({counted}), "
                f"{'compiled' if self.compiled[0] else 'eager'} ({self.compiled[1]})"
            )
        if self.causal_steps:
            lines.append(f"causes: {len(self.causal_steps)} times, {self.causal_seconds:.2f} s each")
        return "\n".join(lines)


def products_per_snapshot(config: RunConfig, n_blocks: int) -> dict[str, int]:
    """Return about how many products a snapshot takes, by what they are for.

    Args:
        config: of the run.
        n_blocks: parameter blocks with a spectrum of their own.
    """
    audits = config.audit_interval if config.eigen_backend == "spectral" else 0
    wanted = {
        "eigenvalues": TYPICAL_PRODUCTS * BACKEND_FACTORS[config.eigen_backend],
        "audits": round(TYPICAL_PRODUCTS / audits) if audits else 0,
        "preconditioned": _largest(config.track_preconditioned),
        "Gauss-Newton": _largest(config.track_ggn) + (config.track_top_k_eigenvalues if config.track_ggn else 0),
        "density": config.density_steps * config.density_probes,
        "trace": config.trace_products,
        "blocks": n_blocks * _largest(config.block_top_k),
    }
    return {name: count for name, count in wanted.items() if count}


def _largest(k: int) -> int:
    """Return about how many products the k largest eigenvalues of one more operator take, measured on the demo."""
    return 15 + 3 * k if k else 0


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
        loss = next_token_loss(model, source.batch(i).loss_input)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        float(loss.detach())
        if i:  # the first one sets things up
            step_seconds += (time.perf_counter() - started) / TIMED_STEPS
    steps = config.snapshot_steps()
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    compiled = choose_compile(config, n_parameters)
    products = products_per_snapshot(config, len(spectrum_blocks(config.block_spectra, model)))
    product_seconds = snapshot_seconds = causal_seconds = 0.0
    causal_steps = config.causal_steps()
    if steps:
        operator = HessianOperator(
            model,
            next_token_loss,
            source.curvature_probe.loss_input,
            microbatch_size=config.eigen_microbatch_size or None,
        )
        v = operator.gradient / operator.gradient.norm()
        float(operator.matvec(v).norm())
        started = time.perf_counter()
        float(operator.matvec(v).norm())
        product_seconds = (time.perf_counter() - started) * (COMPILED_PRICE if compiled[0] else 1.0)
        probes = ProbeMeter(config, source)
        started = time.perf_counter()
        probes.measure(model)
        snapshot_seconds = time.perf_counter() - started + sum(products.values()) * product_seconds
        if causal_steps:
            causes = CausalMeter(probes.plan, model)
            started = time.perf_counter()
            causes.measure(model)
            causal_seconds = time.perf_counter() - started
    return Estimate(
        n_parameters=n_parameters,
        n_steps=config.num_steps,
        snapshot_steps=steps,
        step_seconds=step_seconds,
        product_seconds=product_seconds,
        snapshot_seconds=snapshot_seconds,
        causal_steps=causal_steps,
        causal_seconds=causal_seconds,
        products=products if steps else {},
        compiled=compiled,
        device=str(device),
    )


def _human(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
