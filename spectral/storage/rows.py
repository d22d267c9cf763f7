"""How many rows of a results file can be trusted."""

import time
from collections.abc import Sequence

import h5py

from spectral.storage.schema import DatasetSpec


def committed_rows(file: h5py.File, table: Sequence[DatasetSpec]) -> tuple[int, int]:
    """Return the trusted rows of `/train` and of the snapshot groups: the counter, or the shortest dataset if less."""
    n_train, n_snapshots = (int(count) for count in file["committed"][:])
    for spec in table:
        if spec.path in file:
            length = file[spec.path].shape[0]
            if spec.group == "train":
                n_train = min(n_train, length)
            else:
                n_snapshots = min(n_snapshots, length)
    return n_train, n_snapshots


def checked_snapshot_rows(file: h5py.File, table: Sequence[DatasetSpec], rows: int) -> int:
    """Return `rows`, or one less when a checksum of the last row fails.

    After a power loss the counter can be ahead of a row that never reached the disk. Such a row was never
    acknowledged, and there is at most one.
    """
    if rows == 0:
        return 0
    for spec in table:
        if spec.fletcher32 and spec.path in file and not _readable(file[spec.path], rows - 1):
            return rows - 1
    return rows


def _readable(dataset: h5py.Dataset, row: int) -> bool:
    for pause in (0.01, 0.05, 0.2):
        try:
            dataset[row]
        except OSError:
            time.sleep(pause)  # a live writer may be in the middle of this chunk
        else:
            return True
    return False
