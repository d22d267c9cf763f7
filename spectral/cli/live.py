"""The live page on the command line: `visualize_results.py RUN --live`, and `train.py --live` beside the training.

Beside a training the page is served by a process of its own, which only reads: training bits and exit codes are those
of a run without it. It ends by itself soon after the run.
"""

import argparse
import contextlib
import os
import socket
import sys
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from spectral.errors import ConfigError

PORT = 8050
LIVE_FLAGS = {
    "port": f"of the live page; 0 takes a free one (default: {PORT})",
    "host": "address the live page listens on (default: 127.0.0.1, this machine alone)",
    "open": "open the live page in a browser",
}


def add_live_flags(parser: Any) -> None:
    """Add the flags that go with `--live`."""
    parser.add_argument("--port", type=int, default=None, help=LIVE_FLAGS["port"])
    parser.add_argument("--host", default=None, help=LIVE_FLAGS["host"])
    parser.add_argument("--open", action="store_true", help=LIVE_FLAGS["open"])


def check_live_flags(chosen: argparse.Namespace | Mapping[str, Any]) -> None:
    """Refuse flags that say where the live page stands when none was asked for.

    Raises:
        ConfigError: one of them without `--live`.
    """
    values = vars(chosen) if isinstance(chosen, argparse.Namespace) else chosen
    given = [name for name in LIVE_FLAGS if values[name] is not None and values[name] is not False]
    if given and not values["live"]:
        raise ConfigError([f"--{given[0]} is about the live page; add --live or drop it"])


def serve_live(path: Path, *, host: str | None, port: int | None, open_browser: bool) -> int:
    """Serve a run's page until Ctrl-C; return the exit code."""
    from spectral.plots.live import RunWatch, listen, serve

    watch = RunWatch(path)
    with listen(*_place(host, port)) as listening:
        _announce(listening, watch.path, open_browser=open_browser)
        with contextlib.suppress(KeyboardInterrupt):
            serve(watch, listening)
    return 0


@contextlib.contextmanager
def live_page_beside(command: Mapping[str, Any]) -> Iterator[Callable[[Path], None]]:
    """Take the port before anything is written, and yield what starts the page of a run folder; idle without `--live`.

    Raises:
        ConfigError: the port is in use, or flags of the live page without it.
    """
    check_live_flags(command)
    if not command["live"]:
        yield lambda path: None
        return
    from spectral.plots.live.sockets import listen

    with listen(*_place(command["host"], command["port"])) as listening:

        def start(path: Path) -> None:
            _announce(listening, path, open_browser=command["open"])
            _start_process(path, listening)

        yield start


def _place(host: str | None, port: int | None) -> tuple[str, int]:
    from spectral.plots.live.sockets import LOOPBACK

    return host or LOOPBACK, PORT if port is None else port


def _announce(listening: socket.socket, path: Path, *, open_browser: bool) -> None:
    from spectral.plots.live.sockets import is_loopback, url

    if not is_loopback(listening):
        print(
            f"warning: --host {listening.getsockname()[0]} lets every machine that reaches this one read {path}; "
            "there is no password",
            file=sys.stderr,
        )
    print(f"live page of {path}: {url(listening)}", flush=True)
    if open_browser:
        webbrowser.open(url(listening))


def _start_process(path: Path, listening: socket.socket) -> None:
    root = str(Path(__file__).parents[2])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
    }
    os.set_inheritable(listening.fileno(), True)
    arguments = [sys.executable, "-m", "spectral.cli.live_process", str(path), str(listening.fileno())]
    os.posix_spawn(
        sys.executable,
        arguments,
        environment,
        file_actions=[(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in (0, 1)],
        setsid=True,  # Ctrl-C reaches the training alone, and the page can still say how it ended
    )
