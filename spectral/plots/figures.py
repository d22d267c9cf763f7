"""All figures of a run by name, in the order in which a reader wants them."""

from collections.abc import Callable

from matplotlib.figure import Figure

from spectral.plots.attention import attention_patterns
from spectral.plots.behaviour import loss_and_accuracy, loss_by_position
from spectral.plots.causes import causal_effects
from spectral.plots.curvature import eigenvalues, eigenvector_blocks, gradient_alignment
from spectral.plots.heads import circuit_metrics, head_scores
from spectral.plots.summary import summary
from spectral.storage import Run

FIGURES: dict[str, Callable[[Run], Figure]] = {
    "summary": summary,
    "loss_and_accuracy": loss_and_accuracy,
    "eigenvalues": eigenvalues,
    "gradient_alignment": gradient_alignment,
    "head_scores": head_scores,
    "circuit_metrics": circuit_metrics,
    "causal_effects": causal_effects,
    "attention_patterns": attention_patterns,
    "eigenvector_blocks": eigenvector_blocks,
    "loss_by_position": loss_by_position,
}
"""Name, which is also the file name -> function from a run to a figure."""
