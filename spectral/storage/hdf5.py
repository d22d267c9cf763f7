"""HDF5 details shared by writer and reader: opening, attributes, superblock, error text."""

import json
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from spectral.errors import ResultsFileError
from spectral.storage.schema import GIH_SCHEMA_NAME, SCHEMA_NAME, SCHEMA_VERSION

LIBVER = ("v110", "v110")
"""Oldest format with single-writer-multiple-reader access; pinned so that files do not change with the library."""

LONG_ATTRIBUTES = "long_attributes"
"""Root group for text that exceeds what an HDF5 attribute can hold (64 kB)."""

_LONGEST_ATTRIBUTE = 60_000
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HDF5_ERRORS = (OSError, RuntimeError, KeyError)


def open_reader(path: Path) -> h5py.File:
    """Open a finished, live or crashed file for reading.

    HDF5's own lock is left out: our writer guards itself, and readers must work on read-only file systems. HDF5 refuses
    to open a file in two ways in one process, so when the caller has it open elsewhere (in xarray, say) that way is
    tried too; a plain open of a live or crashed file is refused by a flag inside it.
    """
    failure: OSError | None = None
    for options in ({"swmr": True, "locking": False}, {"locking": False}, {"swmr": True}, {}):
        try:
            return h5py.File(path, "r", **options)
        except OSError as error:
            if failure is None:
                failure = error
            if "not the same" not in str(error) and "match" not in str(error):
                break
    raise failure if failure is not None else OSError("no way to open")


def set_attributes(target: h5py.Group | h5py.Dataset, attributes: Mapping[str, Any]) -> None:
    """Store numbers, number lists and fixed-length strings; None is skipped.

    Raises:
        ValueError: a value of another kind, which the single-writer mode could not hold.
    """
    for key, value in attributes.items():
        if value is None:
            continue
        if isinstance(value, str):
            target.attrs.create(key, fixed_string(value))
            continue
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            msg = f"attribute {key}={value!r} is neither text nor numbers; convert it first"
            raise ValueError(msg)
        target.attrs.create(key, array.astype(np.int8) if array.dtype.kind == "b" else array)


def fixed_string(text: str) -> np.ndarray:
    """Return `text` as a fixed-length UTF-8 scalar; variable-length strings are impossible in single-writer mode."""
    data = text.encode("utf-8")
    return np.array(data, dtype=h5py.string_dtype("utf-8", max(len(data), 1)))


def get_attributes(source: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Return the user's attributes as plain Python values, without those of dimension scales."""
    hidden = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "DIMENSION_LABELS"}
    found: dict[str, Any] = {}
    for key in sorted(source.attrs):
        if key in hidden or key.startswith("_Net"):
            continue
        value = source.attrs[key]
        if isinstance(value, bytes):
            found[key] = value.decode("utf-8")
        elif isinstance(value, np.generic):
            found[key] = value.item()
        elif isinstance(value, np.ndarray):
            found[key] = value.tolist()
        else:
            found[key] = value
    return found


def set_root_attributes(file: h5py.File, attributes: Mapping[str, Any]) -> None:
    """Store root attributes; text too long for an attribute becomes a dataset in `/long_attributes`."""
    short = {}
    for key, value in attributes.items():
        if isinstance(value, str) and len(value.encode("utf-8")) > _LONGEST_ATTRIBUTE:
            data = np.frombuffer(value.encode("utf-8"), dtype=np.uint8)
            group = file.require_group(LONG_ATTRIBUTES)
            scale = group.create_dataset(f"{key}_byte", data=np.arange(len(data), dtype=np.int32), chunks=(len(data),))
            scale.make_scale(f"{key}_byte")
            group.create_dataset(key, data=data, chunks=(len(data),)).dims[0].attach_scale(scale)
        else:
            short[key] = value
    set_attributes(file, short)


def get_root_attributes(file: h5py.File) -> dict[str, Any]:
    """Return root attributes, those too long for HDF5 included."""
    found = get_attributes(file)
    for key, dataset in file.get(LONG_ATTRIBUTES, {}).items():
        if not dataset.is_scale:
            found[key] = dataset[()].tobytes().decode("utf-8")
    return found


def check_superblock(path: Path) -> bool:
    """Check that the file at `path` can be one of ours and was not cut short.

    Returns:
        Whether the writer closed it: False for a live or crashed file, whose length proves nothing yet.

    Raises:
        ResultsFileError: empty, no HDF5, another HDF5 format, or shorter than its superblock says.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(48)
        size = path.stat().st_size
    except OSError as error:
        msg = f"{path} cannot be read ({reason(error)}); check the path and its permissions"
        raise ResultsFileError(msg) from error
    if not head:
        msg = f"{path} is empty; restore a copy or start the run again"
        raise ResultsFileError(msg)
    if not head.startswith(_SIGNATURE):
        msg = f"{path} is not an HDF5 file; give a run folder or its results.h5"
        raise ResultsFileError(msg)
    if len(head) < 48:
        msg = f"{path} is truncated to {size} bytes; restore a copy or start the run again"
        raise ResultsFileError(msg)
    if head[8] != 3:
        raise foreign(path, schema=_schema_of(path))
    flags, end_of_file = head[11], struct.unpack_from("<Q", head, 28)[0]
    closed = flags == 0
    # Also for a live or crashed file: the writer reserves space before it grows. HDF5 itself would read zeros beyond
    # the end, or wait for a writer that does not exist.
    if size < end_of_file:
        msg = f"{path} is truncated: {size} of {end_of_file} bytes are there; copy it again from its source"
        raise ResultsFileError(msg)
    return closed


def stored_end_of_file(descriptor: int) -> int:
    """Return where the content of the closed file behind `descriptor` ends, as its superblock says."""
    return int(struct.unpack("<Q", os.pread(descriptor, 8, 28))[0])


def check_allocated(file: h5py.File, path: Path) -> None:
    """Check that chunks without checksum lie inside a file that was not closed.

    HDF5 reads zeros beyond the end of a file, so a cut copy of a crashed file would give wrong numbers in silence.

    Raises:
        ResultsFileError: a chunk lies beyond the end of the file.
    """
    size = path.stat().st_size

    def visit(name: str, node: h5py.Group | h5py.Dataset) -> None:
        if not isinstance(node, h5py.Dataset) or node.fletcher32 or node.chunks is None:
            return
        for index in range(node.id.get_num_chunks()):
            chunk = node.id.get_chunk_info(index)
            if chunk.byte_offset + chunk.size > size:
                msg = f"{path} is truncated: /{name} continues beyond its {size} bytes; copy it again from its source"
                raise ResultsFileError(msg)

    file.visititems(visit)


def check_schema(file: h5py.File, path: Path) -> None:
    """Check that the file follows a schema this program can read.

    Raises:
        ResultsFileError: not ours, or of another major version.
    """
    attributes = get_attributes(file)
    if attributes.get("schema") != SCHEMA_NAME or "committed" not in file:
        raise foreign(path, schema=attributes.get("schema"))
    version = str(attributes.get("schema_version", "0.0"))
    major, own = version.split(".")[0], SCHEMA_VERSION.split(".")[0]
    if major != own:
        remedy = "update the program" if int(major) > int(own) else "migrate the file first"
        msg = f"{path} has schema {version} and this program reads {own}.x; {remedy}"
        raise ResultsFileError(msg)


def _schema_of(path: Path) -> Any:
    """Return the schema that a file of another format names, if it names any and can be read."""
    try:
        with h5py.File(path) as file:
            return get_attributes(file).get("schema")
    except OSError:
        return None


def foreign(path: Path, *, schema: Any = None) -> ResultsFileError:
    """Return the error for an HDF5 file that another program wrote, or another part of this one."""
    if schema == GIH_SCHEMA_NAME:
        how = "draw it with visualize_results.py or read it with spectral.gih.GIHResults"
        return ResultsFileError(f"{path} holds a run of train-gih; {how}")
    return ResultsFileError(f"{path} was not written by this suite; give a run folder or its results.h5")


def reason(error: BaseException) -> str:
    """Return the cause in a few words: HDF5 wraps the system's message in a paragraph."""
    text = str(error)
    match = re.search(r"error message = '([^']+)'", text)
    if match:
        return match.group(1)
    if isinstance(error, OSError) and error.strerror and "\n" not in error.strerror:
        return error.strerror
    return " ".join(text.split())[:200] or type(error).__name__


def config_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's configuration from root attributes, empty when none was stored."""
    loaded = json.loads(attributes.get("config_json", "{}"))
    return loaded if isinstance(loaded, dict) else {}
