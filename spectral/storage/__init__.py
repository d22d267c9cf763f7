"""What a run leaves on disk, and how it survives kills, full disks and power loss."""

from spectral.storage.atomic import write_bytes_atomic, write_text_atomic
from spectral.storage.checkpoint import (
    checkpoint_name,
    find_newest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from spectral.storage.circuit_definitions import stores_top1_copying
from spectral.storage.insert import insert_snapshots
from spectral.storage.layout import RunLayout
from spectral.storage.reader import Run, open_run
from spectral.storage.results import ResultsWriter
from spectral.storage.run_directory import RunDirectory
from spectral.storage.schema import SCHEMA_VERSION, DatasetSpec, dataset_table

__all__ = [
    "SCHEMA_VERSION",
    "DatasetSpec",
    "ResultsWriter",
    "Run",
    "RunDirectory",
    "RunLayout",
    "checkpoint_name",
    "dataset_table",
    "find_newest_checkpoint",
    "insert_snapshots",
    "list_checkpoints",
    "load_checkpoint",
    "open_run",
    "prune_checkpoints",
    "save_checkpoint",
    "stores_top1_copying",
    "write_bytes_atomic",
    "write_text_atomic",
]
