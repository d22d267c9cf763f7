"""Training a model and measuring it on the way."""

from spectral.training.loop import Outcome, Trainer
from spectral.training.monitor import SpectralMonitor, judge_run
from spectral.training.progress import Progress

__all__ = ["Outcome", "Progress", "SpectralMonitor", "Trainer", "judge_run"]
