"""`python -m spectral.cli.live_process RUN DESCRIPTOR`: the process that serves the page beside a training.

`train.py --live` starts it with the socket that it has opened; it is no command of its own.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from spectral.cli.outcome import guarded

LINGER_SECONDS = 20.0  # so that open pages hear how the run ended


def serve_beside(arguments: Sequence[str]) -> int:
    """Serve a run until shortly after its end; return the exit code."""
    from spectral.plots.live import RunWatch, serve

    os.nice(5)  # the training goes first
    path, descriptor = Path(arguments[0]), int(arguments[1])
    with socket.socket(fileno=descriptor) as listening, contextlib.suppress(KeyboardInterrupt):
        serve(RunWatch(path), listening, linger=LINGER_SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: serve_beside(sys.argv[1:])))
