"""What a run needs before its first step: device, optimizer, detector, and checks of all of it."""

import os

import torch

from spectral.config import RunConfig
from spectral.data import DataSource
from spectral.detection import OnlineDetector
from spectral.detection.signals import FAMILY_OF, LOG_SIGNALS
from spectral.detection.thresholds import LEVELS
from spectral.errors import ConfigError
from spectral.models import Transformer


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
        ConfigError: no such device, no usable data, a model that does not fit, or more eigenvalues than parameters.
    """
    device = select_device(config.device)
    DataSource(config, device)
    try:
        n = sum(parameter.numel() for parameter in Transformer.from_config(config).parameters())
    except (RuntimeError, MemoryError) as error:  # torch reports a refused allocation as RuntimeError
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise ConfigError(
            [
                f"--d_model {config.d_model}, --n_layers {config.n_layers} and --vocab_size {config.vocab_size} make "
                "a model that does not fit into memory; lower one of them"
            ]
        ) from None
    wanted = config.track_top_k_eigenvalues + config.track_negative_eigenvalues
    if config.eigen_interval and wanted > n:
        raise ConfigError(
            [
                f"--track_top_k_eigenvalues {config.track_top_k_eigenvalues} and --track_negative_eigenvalues "
                f"{config.track_negative_eigenvalues} ask for more than the {n} eigenvalues there are; lower them"
            ]
        )


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
    """Return the run's significance, moved into the range for which online thresholds are calibrated."""
    return min(max(config.significance, min(LEVELS)), max(LEVELS))
