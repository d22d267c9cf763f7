"""What a run needs before its first step: device, optimizer, detector, curvature settings, and checks of all of it."""

import os

import torch

from spectral.config import RunConfig
from spectral.curvature.backends import why_impossible
from spectral.curvature.certify import FLOOR_FACTOR
from spectral.curvature.krylov import ROUNDING
from spectral.data import DataSource
from spectral.detection import OnlineDetector
from spectral.detection.signals import FAMILY_OF, LOG_SIGNALS
from spectral.detection.thresholds import LEVELS
from spectral.errors import ConfigError
from spectral.models import Transformer, next_token_criterion, next_token_logits, next_token_loss
from spectral.training.parameter_blocks import spectrum_blocks
from spectral.training.spectrum import CurvatureSettings, Subject
from spectral.training.update import rate_of

# What `--compile auto` reckons with. Round figures and no measurement: a resumed run must decide as the first one did.
CPU_FLOPS = 20e9
SAVED_GRADIENTS = 0.8  # per product, in units of a gradient's price: about 2.1 eager, 1.3 compiled
PRODUCTS_PER_SNAPSHOT = 50
COMPILE_SECONDS = 45.0
ONLINE_FACTOR = 5.0  # online level of one signal, in units of the run's
LEAST_GAIN = 3.0  # times what compiling costs
CACHED_PATTERN_BYTES = 2 * 2**20  # attention patterns of one piece that stay in a core's cache


def select_device(name: str) -> torch.device:
    """Return the device that `--device` names.

    Raises:
        ConfigError: CUDA asked for where there is none, or an index that does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError([f"--device {name}: this machine or this PyTorch has no CUDA; use --device cpu"])
        if (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                [f"--device {name}: there are {torch.cuda.device_count()} CUDA devices; use a lower index"]
            )
    return device


def check_runnable(config: RunConfig) -> None:
    """Check, before anything is written, what only the machine and the data can tell.

    Raises:
        ConfigError: no such device, no usable data, a model that does not fit, an unknown block, or eigenvalues that
            cannot be had: more than parameters, or to more digits than the precision holds.
    """
    device = select_device(config.device)
    DataSource(config, device)
    try:
        model = Transformer.from_config(config)
    except (RuntimeError, MemoryError) as error:  # torch reports a refused allocation as RuntimeError
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise ConfigError(
            [
                f"--d_model {config.d_model}, --n_layers {config.n_layers} and --vocab_size {config.vocab_size} make "
                "a model that does not fit into memory; lower one of them"
            ]
        ) from None
    n = sum(parameter.numel() for parameter in model.parameters())
    spectrum_blocks(config.block_spectra, model)
    wanted = config.track_top_k_eigenvalues + config.track_negative_eigenvalues
    if config.eigen_interval and wanted > n:
        raise ConfigError(
            [
                f"--track_top_k_eigenvalues {config.track_top_k_eigenvalues} and --track_negative_eigenvalues "
                f"{config.track_negative_eigenvalues} ask for more than the {n} eigenvalues there are; lower them"
            ]
        )
    refusal = why_impossible(
        config.eigen_backend,
        n=n,
        k=config.track_top_k_eigenvalues,
        k_negative=config.track_negative_eigenvalues,
    )
    if config.eigen_interval and refusal:
        raise ConfigError([refusal])
    attainable = attainable_rtol(config.hessian_dtype)
    if config.eigen_interval and config.eigen_rtol < attainable:
        remedy = " or add --hessian_dtype float64" if config.hessian_dtype == "float32" else ""
        raise ConfigError(
            [
                f"--eigen_rtol {config.eigen_rtol:g} is below what {config.hessian_dtype} products can show; "
                f"give at least {attainable:.1e}{remedy}"
            ]
        )


def attainable_rtol(dtype: str) -> float:
    """Return the smallest relative error of the largest eigenvalue that can be certified in this precision."""
    return FLOOR_FACTOR * ROUNDING * float(torch.finfo(getattr(torch, dtype)).eps)


def curvature_settings(config: RunConfig, n_parameters: int) -> CurvatureSettings:
    """Return how a run measures its Hessian."""
    compile_products, _ = choose_compile(config, n_parameters)
    return CurvatureSettings(
        k=config.track_top_k_eigenvalues,
        k_negative=config.track_negative_eigenvalues,
        rtol=config.eigen_rtol,
        max_products=config.max_products or None,
        microbatch_size=config.eigen_microbatch_size or None,
        dtype=getattr(torch, config.hessian_dtype),
        seed=config.seed,
        backend=config.eigen_backend,
        audit_interval=config.audit_interval,
        compile=compile_products,
        cached_piece=_cached_piece(config),
        n_preconditioned=config.track_preconditioned,
        n_ggn=config.track_ggn,
        density_steps=config.density_steps,
        density_probes=config.density_probes,
        trace_products=config.trace_products,
        block_spectra=config.block_spectra,
        block_top_k=config.block_top_k,
    )


def curvature_subject(
    config: RunConfig, model: Transformer, optimizer: torch.optim.Optimizer, source: DataSource
) -> Subject:
    """Return whose Hessian a run measures: its loss on its curvature probe."""
    return Subject(
        model=model,
        loss_fn=next_token_loss,
        batch=source.curvature_probe.loss_input,
        optimizer=optimizer,
        rate=lambda step: rate_of(config, step),
        output_fn=next_token_logits,
        criterion=next_token_criterion,
    )


def choose_compile(config: RunConfig, n_parameters: int) -> tuple[bool, str]:
    """Return whether the run's Hessian products are compiled, and why.

    A function of the configuration (and of the kind of device) alone: compiled and eager products differ in their last
    bits, so a choice by a stopwatch would make two runs of one configuration differ.
    """
    if config.eigen_interval == 0:
        return False, "nothing is measured"
    if config.eigen_backend == "pyhessian":
        return False, "PyHessian makes its own"
    if config.compile != "auto":
        return config.compile == "on", f"--compile {config.compile}"
    if select_device(config.device).type == "cuda":
        return True, "on a GPU an eager product is mostly waiting"
    saved = (
        PRODUCTS_PER_SNAPSHOT * SAVED_GRADIENTS * len(config.snapshot_steps()) * _gradient_seconds(config, n_parameters)
    )
    enough = saved > LEAST_GAIN * COMPILE_SECONDS
    return enough, f"compiling, {COMPILE_SECONDS:.0f} s, would save roughly {saved:.0f} s of this run"


def _gradient_seconds(config: RunConfig, n_parameters: int) -> float:
    """Return a rough price of one gradient on the curvature probe, from its floating point operations."""
    embedding = config.vocab_size * config.d_model
    if config.positions == "learned":
        embedding += config.seq_length * config.d_model
    tokens = config.eigen_probe_size * config.seq_length
    attention = 12 * config.n_layers * config.seq_length * config.d_model * tokens
    return (6 * (n_parameters - embedding) * tokens + attention) / CPU_FLOPS


def _cached_piece(config: RunConfig) -> int | None:
    """Return how many sequences of the probe a compiled product takes at once on a CPU; None = all of them.

    As many as keep their attention patterns in the cache (measured: 0.39 s a product with one sequence of 256 tokens
    at a time, 0.72 s with 32), and a divisor of the probe, because a ragged rest would go through eager products.
    """
    if select_device(config.device).type == "cuda":
        return None
    itemsize = torch.finfo(getattr(torch, config.hessian_dtype)).bits // 8
    most = max(1, CACHED_PATTERN_BYTES // (itemsize * config.n_heads * config.seq_length**2))
    probe = config.eigen_probe_size
    if most >= probe:
        return None
    return max(size for size in range(1, most + 1) if probe % size == 0)


def make_deterministic(device: torch.device) -> None:
    """Ask PyTorch for equal bits on equal input; on CPU its default for the operations used here."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def make_optimizer(config: RunConfig, model: Transformer) -> torch.optim.Optimizer:
    """Return the optimizer of a run."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=config.lr, momentum=config.beta1, weight_decay=config.weight_decay
        )
    # Fused: one kernel instead of a dozen per parameter; the same update rule.
    return torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


def make_detector(config: RunConfig) -> OnlineDetector | None:
    """Return the online detector of a run; None when it is switched off or there is nothing to watch."""
    if not config.detect or config.eigen_interval == 0:
        return None
    return OnlineDetector(
        FAMILY_OF,
        planned_steps=config.num_steps,
        significance=online_significance(config),
        log_signals=LOG_SIGNALS,
        seed=config.seed,
    )


def online_significance(config: RunConfig) -> float:
    """Return the level at which each signal is watched during a run.

    Five times that of the final verdict, inside the calibrated range: an alarm needs two families, and waiting for a
    signal to pass at 0.01 costs tens of snapshots where the noise before the change is not yet known.
    """
    return min(max(ONLINE_FACTOR * config.significance, min(LEVELS)), max(LEVELS))
