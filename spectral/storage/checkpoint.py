"""Checkpoints that are whole or absent: written atomically, sealed by a SHA-256, free of pickled objects."""

import contextlib
import hashlib
import io
import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from spectral.errors import CheckpointError
from spectral.storage.atomic import fsync_folder, write_bytes_atomic, write_text_atomic

_NAME = re.compile(r"step_(\d{9,})\.pt")
_PLAIN = (type(None), bool, int, float, str, bytes, torch.Tensor, torch.nn.Parameter)
_CONTAINERS = (list, tuple, set)


def checkpoint_name(step: int) -> str:
    """Return the file name of the checkpoint at `step`."""
    return f"step_{step:09d}.pt"


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write `state` to `path` in one step that survives a power loss, and its SHA-256 to `path` + `.sha256`.

    Args:
        path: the file; its folder exists.
        state: tensors, numbers, text, bytes, None, and dicts, lists, tuples or sets of them.

    Raises:
        TypeError: `state` holds anything else, which would need trust to load again.
        CheckpointError: the file could not be written; an earlier one of this name is still there.
    """
    target, seal = Path(path), _sidecar(Path(path))
    _require_plain(state, "state")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    earlier = seal.read_bytes() if seal.exists() else None
    try:
        # The seal first: a kill between the two leaves a seal without a file, which is no checkpoint. The other way
        # round it would leave a file without a seal, and a run whose first checkpoint that is could not go on.
        write_text_atomic(seal, f"{hashlib.sha256(data).hexdigest()}  {target.name}\n")
        write_bytes_atomic(target, data)
    except OSError as error:
        with contextlib.suppress(OSError):
            if earlier is None:
                seal.unlink(missing_ok=True)
            else:
                write_bytes_atomic(seal, earlier)
        msg = f"checkpoint {target} could not be written ({error.strerror}); free some space, then resume the run"
        raise CheckpointError(msg) from error


def load_checkpoint(path: str | os.PathLike[str], *, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the state stored at `path` after checking it against its SHA-256.

    Raises:
        CheckpointError: missing, damaged, unsealed, or not a state of plain tensors and scalars.
    """
    target = Path(path)
    data = _verified_bytes(target)
    try:
        state = torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises many kinds: zip, pickle, runtime errors
        msg = f"checkpoint {target} is no plain torch file; use an earlier checkpoint"
        raise CheckpointError(msg) from error
    if not isinstance(state, dict):
        msg = f"checkpoint {target} holds {type(state).__name__}, not a state; use an earlier checkpoint"
        raise CheckpointError(msg)
    return state


def list_checkpoints(folder: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """Return (step, path) of the checkpoints in `folder` by ascending step, unverified; empty for no folder."""
    place = Path(folder)
    if not place.is_dir():
        return []
    found = [(int(match[1]), entry) for entry in place.iterdir() if (match := _NAME.fullmatch(entry.name))]
    return sorted(found)


def find_newest_checkpoint(
    folder: str | os.PathLike[str], *, map_location: str | torch.device = "cpu"
) -> tuple[Path, dict[str, Any], list[str]]:
    """Return path and state of the newest good checkpoint, and the reasons why newer ones were skipped.

    Raises:
        CheckpointError: the folder has no checkpoint, or none that is whole.
    """
    skipped: list[str] = []
    for _, path in reversed(list_checkpoints(folder)):
        try:
            return path, load_checkpoint(path, map_location=map_location), skipped
        except CheckpointError as error:
            skipped.append(str(error))
    if skipped:
        msg = f"none of the {len(skipped)} checkpoints in {folder} is whole (newest: {skipped[0]}); start a new run"
    else:
        msg = f"{folder} holds no checkpoint yet; start the run again"
    raise CheckpointError(msg)


def prune_checkpoints(folder: str | os.PathLike[str], keep_last: int, marked: set[int]) -> list[Path]:
    """Delete all but the newest `keep_last` checkpoints and those of the `marked` steps.

    Nothing is deleted unless the newest checkpoint matches its checksum.

    Returns:
        What was deleted.

    Raises:
        ValueError: `keep_last` below 1.
        CheckpointError: a file could not be deleted.
    """
    if keep_last < 1:
        msg = f"keep_last={keep_last} would delete the newest checkpoint; keep at least 1"
        raise ValueError(msg)
    found = list_checkpoints(folder)
    doomed = [path for step, path in found[:-keep_last] if step not in marked]
    if not doomed or not _is_whole(found[-1][1]):
        return []
    try:
        for path in doomed:
            path.unlink()
            _sidecar(path).unlink(missing_ok=True)
        fsync_folder(folder)
    except OSError as error:
        msg = f"old checkpoints in {folder} cannot be deleted ({error.strerror}); check its permissions"
        raise CheckpointError(msg) from error
    return doomed


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _is_whole(path: Path) -> bool:
    try:
        _verified_bytes(path)
    except CheckpointError:
        return False
    return True


def _verified_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"checkpoint {path} cannot be read ({error.strerror}); check the path or use an earlier checkpoint"
        raise CheckpointError(msg) from error
    try:
        seal = _sidecar(path).read_text(encoding="ascii").split()
    except (OSError, ValueError) as error:
        msg = f"checkpoint {path} has no readable .sha256 beside it; use an earlier checkpoint"
        raise CheckpointError(msg) from error
    if not seal or hashlib.sha256(data).hexdigest() != seal[0]:
        msg = f"checkpoint {path} is damaged ({len(data)} bytes, wrong checksum); use an earlier checkpoint"
        raise CheckpointError(msg)
    return data


def _require_plain(value: Any, where: str) -> None:
    # Exact types: NumPy's float64 is a float, yet it is stored as a NumPy object that a safe load refuses.
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _require_plain(key, f"a key of {where}")
            _require_plain(item, f"{where}[{key!r}]")
    elif type(value) in _CONTAINERS:
        for index, item in enumerate(value):
            _require_plain(item, f"{where}[{index}]")
    elif type(value) not in _PLAIN:
        msg = f"{where} is {type(value).__name__}; store tensors, plain numbers or text"
        raise TypeError(msg)
