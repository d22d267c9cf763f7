"""Curvature of a loss: Hessian products, certified eigenpairs, density, alignment."""

from spectral.curvature.alignment import GradientAlignment, block_mass, gradient_alignment, subspace_overlap
from spectral.curvature.density import SpectralDensity, spectral_density
from spectral.curvature.krylov import SymmetricOperator
from spectral.curvature.lanczos import Eigenpairs, Spectrum, top_eigenpairs
from spectral.curvature.operator import HessianOperator

__all__ = [
    "Eigenpairs",
    "GradientAlignment",
    "HessianOperator",
    "SpectralDensity",
    "Spectrum",
    "SymmetricOperator",
    "block_mass",
    "gradient_alignment",
    "spectral_density",
    "subspace_overlap",
    "top_eigenpairs",
]
