"""Generalised induction heads on n-gram Markov chains: the disentangled transformer, exact and fast."""

from spectral.gih.compression import CompressedChains, compress
from spectral.gih.config import GIHConfig, gih_preset_names, load_gih_preset
from spectral.gih.engine import Engine, compressed_loss, subset_forces
from spectral.gih.generalisation import GeneralisationRow, generalisation
from spectral.gih.information import SubsetInformation, dirichlet_tables, subset_information
from spectral.gih.layer_two import LayerTwo
from spectral.gih.references import Reference, references
from spectral.gih.results import GIHResults, is_gih_run
from spectral.gih.runner import GIHRun, Measurement, Progress, draw_chains
from spectral.gih.stages import Stage, StageTrainer
from spectral.gih.theory import (
    Conserved,
    SelectionCurve,
    conserved,
    exclusion_rates,
    growth_rate,
    logarithmic_growth,
    offset_gaps,
    selection_descent,
    selection_flow,
)

__all__ = [
    "CompressedChains",
    "Conserved",
    "Engine",
    "GIHConfig",
    "GIHResults",
    "GIHRun",
    "GeneralisationRow",
    "LayerTwo",
    "Measurement",
    "Progress",
    "Reference",
    "SelectionCurve",
    "Stage",
    "StageTrainer",
    "SubsetInformation",
    "compress",
    "compressed_loss",
    "conserved",
    "dirichlet_tables",
    "draw_chains",
    "exclusion_rates",
    "generalisation",
    "gih_preset_names",
    "growth_rate",
    "is_gih_run",
    "load_gih_preset",
    "logarithmic_growth",
    "offset_gaps",
    "references",
    "selection_descent",
    "selection_flow",
    "subset_forces",
    "subset_information",
]
