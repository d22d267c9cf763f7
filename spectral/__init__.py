"""Hessian eigenspectra, gradients and attention circuits through the induction-head phase transition.

Five lines for a model and a loss of your own:

    import spectral
    operator = spectral.HessianOperator(model, loss_fn, batch)      # loss_fn(model, batch) -> scalar mean loss
    spectrum = spectral.top_eigenpairs(operator, k=10, k_negative=3)
    print(spectrum.top.values, spectrum.top.error_bounds, spectrum.top.converged)
    print(spectral.gradient_alignment(spectrum, operator.gradient).cumulative)
"""

from spectral import behaviour, circuits
from spectral.config import RunConfig
from spectral.curvature import (
    Eigenpairs,
    GradientAlignment,
    HessianOperator,
    SpectralDensity,
    Spectrum,
    gradient_alignment,
    spectral_density,
    top_eigenpairs,
)
from spectral.detection import Transition, detect_transition
from spectral.errors import UserError
from spectral.models import Transformer, next_token_loss
from spectral.storage import Run, open_run
from spectral.training.monitor import SpectralMonitor
from spectral.version import __version__

__all__ = [
    "Eigenpairs",
    "GradientAlignment",
    "HessianOperator",
    "Run",
    "RunConfig",
    "SpectralDensity",
    "SpectralMonitor",
    "Spectrum",
    "Transformer",
    "Transition",
    "UserError",
    "__version__",
    "behaviour",
    "circuits",
    "detect_transition",
    "gradient_alignment",
    "next_token_loss",
    "open_run",
    "spectral_density",
    "top_eigenpairs",
]
