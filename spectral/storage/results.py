"""The writer of `results.h5`: rows appear whole, in order, and survive a kill.

A commit is: write the rows, flush, advance the counter `committed`, flush (and fsync for a snapshot). Readers trust the
counter alone, so an interrupted commit is invisible. HDF5 runs in single-writer-multiple-reader mode throughout, the
only one whose files stay coherent when the writer dies at any moment.
"""

import errno
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from spectral.errors import ResultsFileError
from spectral.storage.hdf5 import reason, stored_end_of_file
from spectral.storage.layout import RunLayout
from spectral.storage.new_file import (
    INDEX_BYTES,
    copy_rows,
    discard_on_error,
    exclusive,
    exists_already,
    new_file,
    original,
    publish,
    write_error,
)
from spectral.storage.schema import (
    COUNTED_GROUPS,
    SCHEMA_NAME,
    SCHEMA_VERSION,
    STATUS_CODES,
    DatasetSpec,
    dataset_table,
)
from spectral.storage.values import stored_value

INSERTED = "inserted_steps"
"""Attribute of the root: steps of all snapshots that were measured later, ascending."""


class ResultsWriter:
    """The one writer of a results file. Make it with `create` or `reopen`; close it, or use it as a context manager.

    After a failed commit the writer refuses further rows; what was committed stays readable and `reopen` continues it.
    """

    def __init__(self, path: Path, file: h5py.File, layout: RunLayout, lock: int) -> None:
        self.path = path
        self.layout = layout
        self._file: h5py.File | None = file
        self._lock = lock
        self._specs = {spec.path: spec for spec in dataset_table(layout)}
        self._datasets = {name: file[name] for name in self._specs}
        self._counter, self._status, self._heartbeat = file["committed"], file["status"], file["heartbeat"]
        self._committed = [int(count) for count in self._counter[:]]
        self._last_steps = [
            int(file[groups[0]]["step"][rows - 1]) if rows else -1
            for groups, rows in zip(COUNTED_GROUPS.values(), self._committed, strict=True)
        ]
        self._failure: str | None = None

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        layout: RunLayout,
        *,
        attributes: Mapping[str, Any] | None = None,
        probes: Mapping[str, np.ndarray] | None = None,
        dataset_attributes: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> "ResultsWriter":
        """Make a new results file and return its writer; an existing file is never touched.

        Args:
            path: where the file goes; its folder exists.
            layout: sizes and labels of the run.
            attributes: facts about the run for the root: text, numbers or lists of numbers of any length.
            probes: name -> integer or bool array, stored once under `/probes` with its SHA-256.
            dataset_attributes: `group/name` -> attributes to add or override, for example chance levels.

        Raises:
            ResultsFileError: the file exists, or cannot be written.
            KeyError: `dataset_attributes` names an unknown dataset.
            ValueError: a probe or an attribute of a kind that cannot be stored.
        """
        target = Path(path)
        root = {
            **(attributes or {}),
            "schema": SCHEMA_NAME,
            "schema_version": SCHEMA_VERSION,
            "Conventions": "CF-1.11",
            "layout_json": layout.to_json(),
        }
        root.setdefault("created_utc", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        if target.exists():
            raise exists_already(target)
        file, temporary = new_file(target, layout, root, probes or {}, dataset_attributes or {})
        with discard_on_error(file, temporary, target):
            lock = publish(file, temporary, target, replace=False)
        return cls(target, file, layout, lock)

    @classmethod
    def reopen(cls, path: str | os.PathLike[str], *, last_step: int) -> "ResultsWriter":
        """Continue a finished or crashed file after `last_step`; later rows are dropped.

        Good rows are copied through a reader into a new file that then replaces the old one. Repair in place is never
        tried: clearing the write flag of a crashed file can lose all of it.

        Args:
            path: the results file.
            last_step: step of the checkpoint that training continues from; rows with `step <= last_step` are kept.

        Raises:
            ResultsFileError: missing, damaged or foreign file, another writer at work, or no space for the copy.
        """
        target = Path(path)
        with exclusive(target):
            with original(target) as old:
                kept = [
                    int(np.searchsorted(old.file[f"{groups[0]}/step"][:rows], last_step, side="right"))
                    for groups, rows in zip(COUNTED_GROUPS.values(), old.rows, strict=True)
                ]
                layout = old.layout
                root = dict(old.root)
                if INSERTED in root:
                    root[INSERTED] = [int(step) for step in root[INSERTED] if step <= last_step]
                file, temporary = new_file(target, layout, root, old.probes, old.attributes)
                with discard_on_error(file, temporary, target):
                    copy_rows(old, file, temporary, target, kept)
            with discard_on_error(file, temporary, target):
                lock = publish(file, temporary, target, replace=True)
        return cls(target, file, layout, lock)

    @property
    def committed(self) -> tuple[int, int, int]:
        """Rows of `/train`, of every snapshot group and of `/causal` that a reader may see."""
        train, snapshots, causal = self._committed
        return train, snapshots, causal

    @property
    def committed_by_run(self) -> tuple[int, int, int]:
        """`committed` without the snapshots that `insert_snapshots` added: what the run's checkpoints count."""
        train, snapshots, causal = self._committed
        inserted = self._file.attrs.get(INSERTED, ()) if self._file is not None else ()
        return train, snapshots - sum(int(step) <= self._last_steps[1] for step in inserted), causal

    @property
    def last_steps(self) -> tuple[int, int, int]:
        """Step of the last committed row of `/train`, of the snapshots and of `/causal`; -1 for none."""
        train, snapshot, causal = self._last_steps
        return train, snapshot, causal

    def append_train(self, row: Mapping[str, Any]) -> None:
        """Commit one row of `/train`. Safe against a kill at once, against power loss from the next snapshot on.

        Args:
            row: dataset name (without group) -> number; `step` is required and must increase. What is missing is
                stored as NaN or -1.

        Raises:
            KeyError: unknown name. ValueError: no step, a step that does not increase, no single number.
            ResultsFileError: the row could not be written; rows committed before stay readable.
        """
        values = {f"train/{name}": value for name, value in row.items()}
        step = self._check_step("train", values.get("train/step"), self._last_steps[0])
        values["train/train_step"] = step
        arrays = {name: self._convert(name, value) for name, value in values.items()}
        self._commit(0, step, {name: array for name, array in arrays.items() if array is not None})

    def append_snapshot(self, values: Mapping[str, Any]) -> None:
        """Commit one row in every snapshot group; on return it is on disk.

        Args:
            values: `group/name` -> array of the row's shape, and `step`, which must increase. A step given as
                `group/step` must agree. What is missing is stored as NaN or -1.

        Raises:
            KeyError: unknown dataset. ValueError: no step, a step that does not increase, a wrong shape or type.
            ResultsFileError: the row could not be written; rows committed before stay readable.
        """
        self._append("snapshot", values)

    def append_causal(self, values: Mapping[str, Any]) -> None:
        """Commit one row of `/causal`; on return it is on disk.

        Args:
            values: as in `append_snapshot`, with names `causal/name`.

        Raises:
            KeyError, ValueError, ResultsFileError: as `append_snapshot`.
        """
        self._append("causal", values)

    def set_status(self, status: str) -> None:
        """Store how the run stands: `running`, `finished` or `failed`.

        Raises:
            ValueError: another word. ResultsFileError: it could not be written.
        """
        if status not in STATUS_CODES:
            msg = f"status {status!r} is unknown; use one of {', '.join(STATUS_CODES)}"
            raise ValueError(msg)

        def write(file: h5py.File) -> None:
            self._status[0] = STATUS_CODES[status]
            self._heartbeat[0] = time.time()
            file.flush()
            os.fsync(self._lock)

        self._write(write)

    def close(self) -> None:
        """Close the file so that any HDF5 reader opens it; does nothing the second time.

        Raises:
            ResultsFileError: the last bytes could not be written. Committed rows stay readable.
        """
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
            os.ftruncate(self._lock, stored_end_of_file(self._lock))  # what was reserved and not used
            os.fsync(self._lock)
        except (OSError, RuntimeError) as error:
            if self._failure is None:
                raise write_error(self.path, error) from error
        finally:
            os.close(self._lock)

    def __enter__(self) -> "ResultsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, what: str, values: Mapping[str, Any]) -> None:
        """Check and commit one row of every group that the entry `what` counts."""
        counter, groups = list(COUNTED_GROUPS).index(what), COUNTED_GROUPS[what]
        steps = {name: value for name, value in values.items() if name.rsplit("/", 1)[-1] == "step"}
        if len({int(value) for value in steps.values()}) > 1:
            msg = f"one {what} row has several steps {steps}; give one"
            raise ValueError(msg)
        step = self._check_step(what, next(iter(steps.values()), None), self._last_steps[counter])
        arrays = {}
        for name, value in values.items():
            if name == "step":
                continue
            for other, foreign in COUNTED_GROUPS.items():
                if other != what and name.split("/")[0] in foreign:
                    msg = f"{name} is no {what} dataset; use append_{other}"
                    raise KeyError(msg)
            array = self._convert(name, value)
            if array is not None:
                arrays[name] = array
        arrays |= {f"{group}/step": np.asarray(step) for group in groups}
        self._commit(counter, step, arrays)

    def _commit(self, counter: int, step: int, arrays: dict[str, np.ndarray]) -> None:
        row = self._committed[counter]
        groups = list(COUNTED_GROUPS.values())[counter]
        self._reserve([spec for spec in self._specs.values() if spec.group in groups])

        def write(file: h5py.File) -> None:
            for name, dataset in self._datasets.items():
                if self._specs[name].group in groups:
                    # Also where nothing is written: all datasets of a group keep one length.
                    dataset.id.set_extent((row + 1, *dataset.shape[1:]))
                    if name in arrays:
                        dataset[row] = arrays[name]
            file.flush()
            self._counter[counter] = row + 1
            self._heartbeat[0] = time.time()
            # The counter follows in a flush of its own: within one flush HDF5 promises no order.
            file.flush()
            if "train" not in groups:
                os.fsync(self._lock)

        self._write(write)
        self._committed[counter], self._last_steps[counter] = row + 1, step

    def _reserve(self, specs: list[DatasetSpec]) -> None:
        """Allocate the space of one row before HDF5 learns of the row.

        HDF5 cannot take back a row that met a full disk: closing fails too, and the process ends in a crash.
        """
        if self._file is None:
            return
        chunks = sum(math.prod(spec.chunks) * np.dtype(spec.dtype).itemsize for spec in specs)
        try:
            os.posix_fallocate(self._lock, self._file.id.get_filesize(), chunks + INDEX_BYTES * len(specs))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO):
                raise write_error(self.path, error) from error

    def _write(self, write: Callable[[h5py.File], None]) -> None:
        if self._file is None:
            msg = f"{self.path} is closed; reopen it to go on"
            raise ResultsFileError(msg)
        if self._failure is not None:
            msg = f"{self.path} takes no rows since a write failed ({self._failure}); resume the run"
            raise ResultsFileError(msg)
        try:
            write(self._file)
        except (OSError, RuntimeError) as error:
            self._failure = reason(error)
            raise write_error(self.path, error) from error

    def _check_step(self, what: str, value: Any, last: int) -> int:
        if value is None:
            msg = f"the {what} row has no step; add it"
            raise ValueError(msg)
        step = int(value)
        if step <= last:
            msg = f"step {step} of the {what} row does not follow {last}; steps must increase"
            raise ValueError(msg)
        return step

    def _convert(self, name: str, value: Any) -> np.ndarray | None:
        """Check one value against its dataset; None for an empty value of a dataset that this layout leaves out."""
        spec = self._specs.get(name)
        if spec is not None:
            return stored_value(spec, value)
        if np.size(value) == 0:
            return None
        msg = f"{name} is no dataset of this file; known in its group: {', '.join(self._siblings(name)) or 'none'}"
        raise KeyError(msg)

    def _siblings(self, name: str) -> list[str]:
        group = name.split("/")[0]
        return [spec.name for spec in self._specs.values() if spec.group == group]
