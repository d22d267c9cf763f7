"""Several runs beside each other: overlays, medians over seeds, and a page with a table of transitions."""

from spectral.plots.compare.command import compare_runs
from spectral.plots.compare.figures import overlay, spectra, transition_times
from spectral.plots.compare.runs import Comparison, read_comparison

__all__ = ["Comparison", "compare_runs", "overlay", "read_comparison", "spectra", "transition_times"]
