"""Advisory locks that the kernel drops when their holder dies, whatever killed it."""

import errno
import fcntl
import os
import time
from pathlib import Path

_PROBE_PAUSE = 0.02
_ATTEMPTS = 10


def take_lock(path: Path) -> int | None:
    """Take the exclusive lock of the file at `path`, made if missing.

    Returns:
        The open descriptor that holds the lock, or None while another process has it.

    Raises:
        OSError: the file cannot be opened, or its file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        for _ in range(_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # A reader that looks whether the run is alive holds the lock for an instant.
                time.sleep(_PROBE_PAUSE)
            else:
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def is_locked(path: Path) -> bool:
    """Tell whether a living process holds a lock on the file at `path`; False where there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    finally:
        os.close(descriptor)
    return False
