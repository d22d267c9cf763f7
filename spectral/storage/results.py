"""The writer of `results.h5`: rows appear whole, in order, and survive a kill.

A commit is: write the rows, flush, advance the counter `committed`, flush (and fsync for a snapshot). Readers trust the
counter alone, so an interrupted commit is invisible. HDF5 runs in single-writer-multiple-reader mode throughout, the
only one whose files stay coherent when the writer dies at any moment.
"""

import contextlib
import errno
import fcntl
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from spectral.errors import ResultsFileError
from spectral.storage.atomic import fsync_folder, temporary_beside
from spectral.storage.hdf5 import (
    LIBVER,
    check_allocated,
    check_schema,
    check_superblock,
    get_attributes,
    get_root_attributes,
    open_reader,
    reason,
    set_attributes,
    set_root_attributes,
    stored_end_of_file,
)
from spectral.storage.layout import RunLayout
from spectral.storage.rows import checked_snapshot_rows, committed_rows
from spectral.storage.schema import (
    SCHEMA_NAME,
    SCHEMA_VERSION,
    SNAPSHOT_GROUPS,
    STATUS_CODES,
    DatasetSpec,
    dataset_table,
    group_axes,
)

_COPY_BYTES = 32 * 1024 * 1024
_INDEX_BYTES = 16 * 1024
"""Room for the chunk index of one dataset to grow in one commit; an upper guess."""


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
            int(file[group]["step"][rows - 1]) if rows else -1
            for group, rows in zip(("train", SNAPSHOT_GROUPS[0]), self._committed, strict=True)
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
            raise _exists(target)
        file, temporary = _new_file(target, layout, root, probes or {}, dataset_attributes or {})
        with _discard_on_error(file, temporary, target):
            lock = _publish(file, temporary, target, replace=False)
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
        with _exclusive(target):
            closed = check_superblock(target)
            with _translate(target, "read"), open_reader(target) as old:
                check_schema(old, target)
                root = get_root_attributes(old)
                if root["schema_version"] != SCHEMA_VERSION:
                    msg = f"{target} has schema {root['schema_version']}, not {SCHEMA_VERSION}; start a new run"
                    raise ResultsFileError(msg)
                if not closed:
                    check_allocated(old, target)
                layout = RunLayout.from_json(root["layout_json"])
                probes = {n: d[()] for n, d in old.get("probes", {}).items() if not d.is_scale}
                kept = {f"probes/{name}": get_attributes(old[f"probes/{name}"]) for name in probes}
                kept |= {s.path: get_attributes(old[s.path]) for s in dataset_table(layout)}
                file, temporary = _new_file(target, layout, root, probes, kept)
                with _discard_on_error(file, temporary, target):
                    _copy_rows(old, file, target, layout, last_step)
            with _discard_on_error(file, temporary, target):
                lock = _publish(file, temporary, target, replace=True)
        return cls(target, file, layout, lock)

    @property
    def committed(self) -> tuple[int, int]:
        """Rows of `/train` and rows of every snapshot group that a reader may see."""
        return self._committed[0], self._committed[1]

    @property
    def last_steps(self) -> tuple[int, int]:
        """Step of the last committed row of `/train` and of the snapshots; -1 for none."""
        return self._last_steps[0], self._last_steps[1]

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
        steps = {name: value for name, value in values.items() if name.rsplit("/", 1)[-1] == "step"}
        if len({int(value) for value in steps.values()}) > 1:
            msg = f"one snapshot has several steps {steps}; give one"
            raise ValueError(msg)
        step = self._check_step("snapshot", next(iter(steps.values()), None), self._last_steps[1])
        arrays = {}
        for name, value in values.items():
            if name == "step":
                continue
            if name.startswith("train/"):
                msg = f"{name} is no snapshot dataset; use append_train"
                raise KeyError(msg)
            array = self._convert(name, value)
            if array is not None:
                arrays[name] = array
        arrays |= {f"{group}/step": np.asarray(step) for group in SNAPSHOT_GROUPS}
        self._commit(1, step, arrays)

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
                raise _write_error(self.path, error) from error
        finally:
            os.close(self._lock)

    def __enter__(self) -> "ResultsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _commit(self, counter: int, step: int, arrays: dict[str, np.ndarray]) -> None:
        row = self._committed[counter]
        groups = ("train",) if counter == 0 else SNAPSHOT_GROUPS
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
            if counter == 1:
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
            os.posix_fallocate(self._lock, self._file.id.get_filesize(), chunks + _INDEX_BYTES * len(specs))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO):
                raise _write_error(self.path, error) from error

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
            raise _write_error(self.path, error) from error

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
        if hasattr(value, "detach"):
            value = value.detach().cpu()
        array = np.asarray(value)
        if spec is None:
            if array.size == 0:
                return None
            msg = f"{name} is no dataset of this file; known in its group: {', '.join(self._siblings(name)) or 'none'}"
            raise KeyError(msg)
        if array.shape != spec.row_shape:
            msg = f"{name} has row shape {spec.row_shape} over {spec.dims[1:]}, got {array.shape}; reshape it"
            raise ValueError(msg)
        if array.dtype.kind == "c" or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            exact = array.dtype.kind in "biuf" and bool(np.all(array == array.astype(spec.dtype)))
            if not exact:
                msg = f"{name} is stored as {spec.dtype}, which cannot hold {array.dtype} values; convert them"
                raise ValueError(msg)
        return array.astype(spec.dtype)

    def _siblings(self, name: str) -> list[str]:
        group = name.split("/")[0]
        return [spec.name for spec in self._specs.values() if spec.group == group]


def _new_file(
    target: Path,
    layout: RunLayout,
    root: Mapping[str, Any],
    probes: Mapping[str, np.ndarray],
    dataset_attributes: Mapping[str, Mapping[str, Any]],
) -> tuple[h5py.File, Path]:
    """Build all objects of an empty file under a temporary name: nothing may be added once the writer mode is on."""
    table = dataset_table(layout)
    unknown = set(dataset_attributes) - {s.path for s in table} - {f"probes/{name}" for name in probes}
    if unknown:
        msg = f"attributes given for unknown datasets {sorted(unknown)}; see the schema"
        raise KeyError(msg)
    temporary = temporary_beside(target)
    with _translate(target, "written"):
        file = h5py.File(temporary, "x", libver=LIBVER, locking=False)
    with _discard_on_error(file, temporary, target):
        set_root_attributes(file, root)
        _add_process_datasets(file)
        _add_groups(file, layout, table, dataset_attributes)
        for name, values in probes.items():
            _add_probe(file.require_group("probes"), name, values, dataset_attributes.get(f"probes/{name}", {}))
    return file, temporary


def _add_process_datasets(file: h5py.File) -> None:
    # Chunked although tiny: HDF5 since 1.14.4 cannot read contiguous datasets of a live file.
    for name, data, axis, labels, long_name in (
        ("committed", np.zeros(2, np.uint64), "counter", (b"train", b"snapshot"), "Rows that are complete"),
        ("status", np.zeros(1, np.int8), "process", (b"writer",), "Run status: 0 running, 1 finished, 2 failed"),
        ("heartbeat", np.array([time.time()]), "process", (b"writer",), "Time of the last commit, Unix epoch"),
    ):
        dataset = file.create_dataset(name, data=data, chunks=data.shape)
        set_attributes(dataset, {"units": "s" if name == "heartbeat" else "1", "long_name": long_name})
        if name == "heartbeat":
            set_attributes(dataset, {"wall_clock": 1})
        if axis not in file:
            file.create_dataset(axis, data=np.array(labels), chunks=(len(labels),)).make_scale(axis)
        dataset.dims[0].attach_scale(file[axis])


def _add_groups(
    file: h5py.File,
    layout: RunLayout,
    table: tuple[DatasetSpec, ...],
    dataset_attributes: Mapping[str, Mapping[str, Any]],
) -> None:
    for group, axes in group_axes(layout).items():
        for axis in axes:
            if axis.values is not None:
                scale = file.create_dataset(f"{group}/{axis.name}", data=axis.values, chunks=axis.values.shape)
                scale.make_scale(axis.name)
                set_attributes(scale, {"units": "1", "long_name": axis.long_name})
    for spec in table:
        dataset = file.create_dataset(
            spec.path,
            shape=(0, *spec.row_shape),
            maxshape=(None, *spec.row_shape),
            dtype=spec.dtype,
            chunks=spec.chunks,
            fillvalue=spec.fill_value,
            fletcher32=spec.fletcher32,
        )
        set_attributes(dataset, {**spec.attributes, **dataset_attributes.get(spec.path, {})})
        if spec.name == spec.dims[0]:
            dataset.make_scale(spec.name)
    for spec in table:
        for position, dim in enumerate(spec.dims):
            if spec.name != dim:
                file[spec.path].dims[position].attach_scale(file[f"{spec.group}/{dim}"])


def _add_probe(group: h5py.Group, name: str, values: np.ndarray, attributes: Mapping[str, Any]) -> None:
    array = np.ascontiguousarray(values)
    if array.dtype.kind not in "biu" or array.ndim == 0 or array.size == 0:
        msg = f"probe {name!r} is {array.dtype} of shape {array.shape}; give a non-empty array of integers or bools"
        raise ValueError(msg)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    extra = {"units": "1", "long_name": f"Probe array {name}", **attributes, "sha256": digest}
    if array.dtype.kind == "b":
        # netCDF has no bool; this is how xarray marks one.
        array, extra["dtype"] = array.astype(np.int8), "bool"
    dataset = group.create_dataset(name, data=array, chunks=array.shape, fletcher32=True)
    set_attributes(dataset, extra)
    for position, size in enumerate(array.shape):
        scale = group.create_dataset(f"{name}_dim{position}", data=np.arange(size, dtype=np.int64), chunks=(size,))
        scale.make_scale(f"{name}_dim{position}")
        dataset.dims[position].attach_scale(scale)


def _copy_rows(old: h5py.File, new: h5py.File, target: Path, layout: RunLayout, last_step: int) -> None:
    table = dataset_table(layout)
    with _translate(target, "read"):
        n_train, n_snapshots = committed_rows(old, table)
        n_snapshots = checked_snapshot_rows(old, table, n_snapshots)
        kept = [
            int(np.searchsorted(old[f"{group}/step"][:rows], last_step, side="right"))
            for group, rows in (("train", n_train), (SNAPSHOT_GROUPS[0], n_snapshots))
        ]
    for spec in table:
        rows = kept[0] if spec.group == "train" else kept[1]
        dataset = new[spec.path]
        dataset.resize(rows, axis=0)
        if spec.path not in old:
            continue
        block = max(1, _COPY_BYTES // max(1, math.prod(spec.row_shape) * np.dtype(spec.dtype).itemsize))
        for start in range(0, rows, block):
            stop = min(start + block, rows)
            with _translate(target, "read"):
                values = old[spec.path][start:stop]
            dataset[start:stop] = values
    new["committed"][:] = kept


def _publish(file: h5py.File, temporary: Path, target: Path, *, replace: bool) -> int:
    """Switch to writer mode, then give the file its name: no reader or crash ever meets it half built.

    Returns:
        A descriptor that holds a shared lock for the writer's life: it keeps other writers out and readers pass.
    """
    file.flush()
    file.swmr_mode = True
    file.flush()
    lock = os.open(temporary, os.O_RDWR | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: the run's own lock must do
            fcntl.flock(lock, fcntl.LOCK_SH)
        os.fsync(lock)
        if replace:
            os.replace(temporary, target)
        else:
            # A link fails where the name exists, a rename would overwrite it.
            os.link(temporary, target)
            temporary.unlink()
        fsync_folder(target.parent)
    except BaseException:
        os.close(lock)
        raise
    return lock


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold the file against other writers while it is copied."""
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino != path.stat().st_ino:
            raise BlockingIOError
    except BlockingIOError as error:
        os.close(descriptor)  # type: ignore[arg-type]
        msg = f"{path} is in use by another process; wait until it ends"
        raise ResultsFileError(msg) from error
    except OSError as error:
        if descriptor is None:
            msg = f"{path} cannot be opened ({reason(error)}); check the path"
            raise ResultsFileError(msg) from error
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _discard_on_error(file: h5py.File, temporary: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError, RuntimeError):
            file.close()
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, FileExistsError):
            raise _exists(target) from error
        if isinstance(error, OSError | RuntimeError):
            raise _write_error(target, error) from error
        raise


@contextlib.contextmanager
def _translate(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        if verb == "written":
            raise _write_error(path, error) from error
        msg = f"{path} cannot be {verb} ({reason(error)}); restore a copy or start a new run"
        raise ResultsFileError(msg) from error


def _write_error(path: Path, error: BaseException) -> ResultsFileError:
    msg = f"{path} could not be written ({reason(error)}); free some space or check the disk, then resume the run"
    return ResultsFileError(msg)


def _exists(path: Path) -> ResultsFileError:
    return ResultsFileError(f"{path} exists already; resume that run or choose another name")
