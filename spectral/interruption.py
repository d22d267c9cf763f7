"""Ctrl-C and SIGTERM as a request: a loop looks at it between two steps, saves itself and ends."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


class Interruption:
    """Whether somebody has asked for the end.

    Attributes:
        requested: set by the first signal; a second one raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextlib.contextmanager
    def watched(self, tell: Callable[[str], None] | None = None) -> Iterator[None]:
        """Take both signals inside the block; outside of the main thread the caller's own handlers stay.

        Args:
            tell: receives the name of the first signal.
        """

        def stop(number: int, _frame: Any) -> None:
            if self.requested:
                raise KeyboardInterrupt
            self.requested = True
            if tell is not None:
                with contextlib.suppress(RuntimeError):  # the signal came in the middle of another line
                    tell(signal.Signals(number).name)

        previous = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, stop)
        except ValueError:  # not the main thread
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
