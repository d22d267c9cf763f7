"""Figures of a run, each a function from a `Run` to a matplotlib figure."""

from spectral.plots.attention import attention_patterns
from spectral.plots.behaviour import loss_and_accuracy, loss_by_position
from spectral.plots.causes import causal_effects
from spectral.plots.command import draw_run
from spectral.plots.curvature import eigenvalues, eigenvector_blocks, gradient_alignment
from spectral.plots.figures import FIGURES
from spectral.plots.heads import circuit_metrics, head_scores
from spectral.plots.source import MissingDataError
from spectral.plots.summary import summary

__all__ = [
    "FIGURES",
    "MissingDataError",
    "attention_patterns",
    "causal_effects",
    "circuit_metrics",
    "draw_run",
    "eigenvalues",
    "eigenvector_blocks",
    "gradient_alignment",
    "head_scores",
    "loss_and_accuracy",
    "loss_by_position",
    "summary",
]
