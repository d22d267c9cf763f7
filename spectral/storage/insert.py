"""Snapshots measured later, put among those of a finished file in the order of their steps."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from spectral.storage.new_file import (
    Original,
    copy_dataset,
    discard_on_error,
    exclusive,
    new_file,
    original,
    publish,
    reading,
    reserve_for_copy,
    row_blocks,
)
from spectral.storage.results import INSERTED, ResultsWriter
from spectral.storage.schema import COUNTED_GROUPS, DatasetSpec, counter_of, dataset_table
from spectral.storage.values import stored_value

_SNAPSHOT = list(COUNTED_GROUPS).index("snapshot")


def insert_snapshots(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Add snapshot rows to a file that nobody writes to; rows that it holds stay as they are, bit for bit.

    The copy with all rows replaces the file in one step: a reader or a crash meets either. What a row lacks is stored
    as NaN or -1. The steps are listed in the root attribute `inserted_steps`.

    Args:
        path: the results file.
        rows: each `group/name` -> array of the row's shape, and `step`, as in `ResultsWriter.append_snapshot`.

    Raises:
        ValueError: a step that is stored already or given twice, a wrong shape or type. KeyError: unknown dataset.
        ResultsFileError: missing, damaged or foreign file, a writer at work, no space for the copy.
    """
    if not rows:
        return
    target = Path(path)
    with exclusive(target):
        with original(target) as old:
            layout = old.layout
            added = _by_dataset(dataset_table(old.layout), rows)
            kept = old.rows[_SNAPSHOT]
            group = COUNTED_GROUPS["snapshot"][0]
            before, new = old.file[f"{group}/step"][:kept], added[f"{group}/step"]
            steps = np.concatenate([before, new])
            if len(np.unique(steps)) < len(steps):
                twice = sorted({int(s) for s in new if (steps == s).sum() > 1})
                msg = f"steps {twice} are stored in {target} already or given twice; leave them out"
                raise ValueError(msg)
            order = np.argsort(steps, kind="stable")
            inserted = sorted({*(int(s) for s in old.root.get(INSERTED, ())), *(int(s) for s in new)})
            file, temporary = new_file(target, old.layout, {**old.root, INSERTED: inserted}, old.probes, old.attributes)
            with discard_on_error(file, temporary, target):
                extra = sum(math.prod(s.chunks) * np.dtype(s.dtype).itemsize for s in dataset_table(old.layout))
                reserve_for_copy(old, file, temporary, extra=len(rows) * extra)
                _merge(old, file, target, added, order)
        with discard_on_error(file, temporary, target):
            lock = publish(file, temporary, target, replace=True)
        with ResultsWriter(target, file, layout, lock) as writer:
            writer.set_status("finished")


def _by_dataset(table: Sequence[DatasetSpec], rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return all new rows of every snapshot dataset, in the order given."""
    specs = {spec.path: spec for spec in table if counter_of(spec.group) == _SNAPSHOT}
    known = {spec.path for spec in table}
    arrays = {p: np.full((len(rows), *s.row_shape), s.fill_value, s.dtype) for p, s in specs.items()}
    for i, row in enumerate(rows):
        for name, value in row.items():
            if name == "step":
                continue
            if name not in specs:
                if name not in known and np.size(value) == 0:
                    continue  # of a dataset that this layout leaves out
                msg = f"{name} is no snapshot dataset of this file"
                raise KeyError(msg)
            arrays[name][i] = stored_value(specs[name], value)
        for group in COUNTED_GROUPS["snapshot"]:
            arrays[f"{group}/step"][i] = int(row["step"])
    return arrays


def _merge(old: Original, new: h5py.File, target: Path, added: Mapping[str, np.ndarray], order: np.ndarray) -> None:
    """Fill the new file: snapshot groups in `order` (old rows first, then the new ones), the others as they were."""
    kept = old.rows[_SNAPSHOT]
    for spec in dataset_table(old.layout):
        counter = counter_of(spec.group)
        if counter != _SNAPSHOT:
            copy_dataset(old, new, target, spec, old.rows[counter])
            continue
        new[spec.path].resize(len(order), axis=0)
        for start, stop in row_blocks(spec, len(order)):
            block = order[start:stop]
            from_old = block < kept
            values = np.empty((len(block), *spec.row_shape), spec.dtype)
            values[~from_old] = added[spec.path][block[~from_old] - kept]
            if from_old.any():
                with reading(target):  # old rows keep their order, so those of a block are neighbours
                    values[from_old] = old.file[spec.path][int(block[from_old][0]) : int(block[from_old][-1]) + 1]
            new[spec.path][start:stop] = values
    new["committed"][:] = [len(order) if i == _SNAPSHOT else rows for i, rows in enumerate(old.rows)]
