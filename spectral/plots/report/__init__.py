"""The page of a run, `report.html`: pictures that move with one slider, and what happened in words."""

from spectral.plots.report.page import FILE_NAME, render_page, render_report, write_report
from spectral.plots.report.payload import gather, to_json, waiting

__all__ = ["FILE_NAME", "gather", "render_page", "render_report", "to_json", "waiting", "write_report"]
