"""How a results file comes into being: built under a temporary name, filled, and published whole."""

import contextlib
import fcntl
import hashlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
)
from spectral.storage.layout import RunLayout
from spectral.storage.rows import checked_rows, committed_rows
from spectral.storage.schema import (
    COUNTED_GROUPS,
    SCHEMA_VERSION,
    DatasetSpec,
    counter_of,
    dataset_table,
    group_axes,
)

COPY_BYTES = 32 * 1024 * 1024
INDEX_BYTES = 16 * 1024
"""Room for the chunk index of one dataset to grow in one commit; an upper guess."""


@dataclass(frozen=True)
class Original:
    """What a copy of a results file takes over beside the rows.

    Attributes:
        file: the old file, open for reading.
        layout: its sizes and labels.
        root: attributes of the run.
        probes: name -> array.
        attributes: of every dataset and probe.
        rows: that can be trusted, per entry of `COUNTED_GROUPS`.
    """

    file: h5py.File
    layout: RunLayout
    root: dict[str, Any]
    probes: dict[str, np.ndarray]
    attributes: dict[str, dict[str, Any]]
    rows: tuple[int, ...]


def new_file(
    target: Path,
    layout: RunLayout,
    root: Mapping[str, Any],
    probes: Mapping[str, np.ndarray],
    dataset_attributes: Mapping[str, Mapping[str, Any]],
) -> tuple[h5py.File, Path]:
    """Build all objects of an empty file under a temporary name: nothing may be added once the writer mode is on.

    In memory first: HDF5 that meets a full disk cannot even close its file, and the process ends in a crash.
    """
    table = dataset_table(layout)
    unknown = set(dataset_attributes) - {s.path for s in table} - {f"probes/{name}" for name in probes}
    if unknown:
        msg = f"attributes given for unknown datasets {sorted(unknown)}; see the schema"
        raise KeyError(msg)
    with h5py.File(target.name, "x", driver="core", backing_store=False, libver=LIBVER) as file:
        set_root_attributes(file, root)
        _add_process_datasets(file)
        _add_groups(file, layout, table, dataset_attributes)
        for name, values in probes.items():
            _add_probe(file.require_group("probes"), name, values, dataset_attributes.get(f"probes/{name}", {}))
        file.flush()
        image = file.id.get_file_image()
    temporary = temporary_beside(target)
    try:
        temporary.write_bytes(image)
        return h5py.File(temporary, "r+", libver=LIBVER, locking=False), temporary
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise write_error(target, error) from error


@contextlib.contextmanager
def original(target: Path) -> Iterator[Original]:
    """Open a finished or crashed file to be copied; damage raises `ResultsFileError`."""
    closed = check_superblock(target)
    with reading(target), open_reader(target) as old:
        check_schema(old, target)
        root = get_root_attributes(old)
        if root["schema_version"] != SCHEMA_VERSION:
            msg = f"{target} has schema {root['schema_version']}, not {SCHEMA_VERSION}; start a new run"
            raise ResultsFileError(msg)
        if not closed:
            check_allocated(old, target)
        layout = RunLayout.from_json(root["layout_json"])
        table = dataset_table(layout)
        probes = {n: d[()] for n, d in old.get("probes", {}).items() if not d.is_scale}
        attributes = {f"probes/{name}": get_attributes(old[f"probes/{name}"]) for name in probes}
        attributes |= {s.path: get_attributes(old[s.path]) for s in table}
        rows = checked_rows(old, table, committed_rows(old, table))
        yield Original(file=old, layout=layout, root=root, probes=probes, attributes=attributes, rows=rows)


def _add_process_datasets(file: h5py.File) -> None:
    counters = tuple(name.encode() for name in COUNTED_GROUPS)
    # Chunked although tiny: HDF5 since 1.14.4 cannot read contiguous datasets of a live file.
    for name, data, axis, labels, long_name in (
        ("committed", np.zeros(len(counters), np.uint64), "counter", counters, "Rows that are complete"),
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


def copy_rows(source: Original, new: h5py.File, temporary: Path, target: Path, kept: Sequence[int]) -> None:
    """Copy the first rows of every group, `kept` per entry of `COUNTED_GROUPS`."""
    reserve_for_copy(source, new, temporary)
    for spec in dataset_table(source.layout):
        copy_dataset(source, new, target, spec, kept[counter_of(spec.group)])
    new["committed"][:] = kept


def copy_dataset(source: Original, new: h5py.File, target: Path, spec: DatasetSpec, rows: int) -> None:
    """Copy the first rows of one dataset."""
    new[spec.path].resize(rows, axis=0)
    for start, stop in row_blocks(spec, rows):
        with reading(target):
            values = source.file[spec.path][start:stop]
        new[spec.path][start:stop] = values


def row_blocks(spec: DatasetSpec, rows: int) -> Iterator[tuple[int, int]]:
    """Yield first and last row (exclusive) of pieces that fit into memory."""
    block = max(1, COPY_BYTES // max(1, math.prod(spec.row_shape) * np.dtype(spec.dtype).itemsize))
    for start in range(0, rows, block):
        yield start, min(start + block, rows)


def reserve_for_copy(source: Original, new: h5py.File, temporary: Path, *, extra: int = 0) -> None:
    """Allocate the space of a whole copy and `extra` bytes more, before HDF5 learns of its rows."""
    size = int(source.file.id.get_filesize()) + INDEX_BYTES * len(dataset_table(source.layout)) + extra
    descriptor = os.open(temporary, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, int(new.id.get_filesize()), size)
    finally:
        os.close(descriptor)


def publish(file: h5py.File, temporary: Path, target: Path, *, replace: bool) -> int:
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
def exclusive(path: Path) -> Iterator[None]:
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
def discard_on_error(file: h5py.File, temporary: Path, target: Path) -> Iterator[None]:
    """Leave nothing of an unfinished file behind; what the disk refuses becomes a `ResultsFileError`."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError, RuntimeError):
            file.close()
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, FileExistsError):
            raise exists_already(target) from error
        if isinstance(error, OSError | RuntimeError):
            raise write_error(target, error) from error
        raise


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what HDF5 says about a damaged file into a `ResultsFileError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        msg = f"{path} cannot be read ({reason(error)}); restore a copy or start a new run"
        raise ResultsFileError(msg) from error


def write_error(path: Path, error: BaseException) -> ResultsFileError:
    """Return the error of a disk that refuses, with the remedy."""
    msg = f"{path} could not be written ({reason(error)}); free some space or check the disk, then resume the run"
    return ResultsFileError(msg)


def exists_already(path: Path) -> ResultsFileError:
    """Return the error of a name that is taken."""
    return ResultsFileError(f"{path} exists already; resume that run or choose another name")
