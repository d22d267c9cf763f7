"""Training a model and measuring it on the way."""

from spectral.training.judge import judge_run, verdict_document
from spectral.training.loop import Outcome, Trainer
from spectral.training.monitor import SpectralMonitor
from spectral.training.progress import Progress

__all__ = ["Outcome", "Progress", "SpectralMonitor", "Trainer", "judge_run", "verdict_document"]
