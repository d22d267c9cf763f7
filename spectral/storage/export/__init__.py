"""A run in the formats of other programs: CSV, Parquet, NetCDF, pickle."""

from spectral.storage.export.command import FORMATS, export_run
from spectral.storage.export.tables import TidyTable, tidy_tables

__all__ = ["FORMATS", "TidyTable", "export_run", "tidy_tables"]
