"""Files that appear whole or not at all.

Every small file of a run (configuration, verdicts, checkpoints, reports) is written to a temporary neighbour, forced
to disk and renamed over its target, so a reader never meets half of one and a crash leaves the old version in place.
"""

import contextlib
import os
import secrets
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file at `path` by `data` in one step that survives a power loss.

    Raises:
        OSError: the data could not be written; the old file is untouched and no temporary file is left.
    """
    target = Path(path)
    temporary = temporary_beside(target)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(target.parent)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file at `path` by `text` (UTF-8) in one step that survives a power loss.

    Raises:
        OSError: the text could not be written; the old file is untouched.
    """
    write_bytes_atomic(path, text.encode("utf-8"))


def temporary_beside(target: Path) -> Path:
    """Return an unused hidden name in the folder of `target`: a rename is atomic only within one file system."""
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")


def fsync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames and deletions in `folder` durable; a rename alone is atomic but may be lost at power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale_temporaries(folder: str | os.PathLike[str]) -> list[str]:
    """Delete what killed writers left in `folder` and return the names. Call only while holding the run's lock."""
    removed = []
    for entry in sorted(Path(folder).glob(f".*{TEMPORARY_SUFFIX}")):
        if entry.is_file() and not entry.is_symlink():
            entry.unlink()
            removed.append(entry.name)
    return removed
