"""How many rows of a results file can be trusted."""

import time
from collections.abc import Sequence

import h5py

from spectral.storage.schema import COUNTED_GROUPS, DatasetSpec


def committed_rows(file: h5py.File, table: Sequence[DatasetSpec]) -> tuple[int, ...]:
    """Return the trusted rows of each entry of `COUNTED_GROUPS`: the counter, or the shortest dataset if less."""
    counts = [int(count) for count in file["committed"][:]]
    counts += [0] * (len(COUNTED_GROUPS) - len(counts))  # files of an older minor version count fewer groups
    return tuple(
        min([count, *(file[spec.path].shape[0] for spec in table if spec.group in groups and spec.path in file)])
        for count, groups in zip(counts, COUNTED_GROUPS.values(), strict=True)
    )


def checked_rows(file: h5py.File, table: Sequence[DatasetSpec], rows: Sequence[int]) -> tuple[int, ...]:
    """Return `rows`, each one less where a checksum of the last row fails.

    After a power loss a counter can be ahead of a row that never reached the disk. Such a row was never acknowledged,
    and there is at most one.
    """
    return tuple(
        count - (not _last_row_is_whole(file, [spec for spec in table if spec.group in groups], count))
        for count, groups in zip(rows, COUNTED_GROUPS.values(), strict=True)
    )


def _last_row_is_whole(file: h5py.File, table: Sequence[DatasetSpec], rows: int) -> bool:
    checked = [spec for spec in table if spec.fletcher32 and spec.path in file]
    return rows == 0 or all(_readable(file[spec.path], rows - 1) for spec in checked)


def _readable(dataset: h5py.Dataset, row: int) -> bool:
    for pause in (0.01, 0.05, 0.2):
        try:
            dataset[row]
        except OSError:
            time.sleep(pause)  # a live writer may be in the middle of this chunk
        else:
            return True
    return False
