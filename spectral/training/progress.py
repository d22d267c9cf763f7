"""What a person sees while a run goes on: a progress bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Protocol, TextIO, runtime_checkable

from tqdm import tqdm


@runtime_checkable
class Stream(Protocol):
    """What a line can be printed to; a captured stream of a test lacks parts of `TextIO`."""

    def write(self, text: str, /) -> object:
        """Write some text."""

    def flush(self) -> object:
        """Let nothing wait."""


class Progress:
    """Shows steps, loss, induction accuracy, the largest eigenvalue and the time left.

    Args:
        total: steps of the whole run.
        stream: where to write; a terminal gets a bar, anything else one line now and then.
        lines: how many plain lines a whole run prints.
    """

    def __init__(self, total: int, *, stream: TextIO | None = None, lines: int = 20) -> None:
        self._stream = stream or sys.stderr
        self._total, self._initial = total, 0
        self._facts: dict[str, str] = {}
        self._every = max(1, total // lines)
        self._next_line = 0
        self._started = time.monotonic()
        self._bar: tqdm[None] | None = None

    def start(self, initial: int) -> None:
        """Begin to count time, with `initial` steps done before (a resumed run)."""
        self._initial = self._next_line = initial
        self._started = time.monotonic()
        if self._stream.isatty():
            self._bar = tqdm(total=self._total, initial=initial, file=self._stream, unit="step", dynamic_ncols=True)

    def update(self, step: int, **facts: float | None) -> None:
        """Show that `step` steps are done; facts are `loss`, `accuracy`, `lambda_1`."""
        self._facts |= {name: f"{value:.3g}" for name, value in facts.items() if value is not None}
        if self._bar is not None:
            if facts:
                self._bar.set_postfix(self._facts, refresh=False)
            self._bar.update(step - self._bar.n)
        elif step >= self._next_line or step == self._total:
            self._next_line = step + self._every
            shown = "  ".join(f"{name} {value}" for name, value in self._facts.items())
            print(
                f"step {step}/{self._total}  {shown}  {self._time_left(step)}".rstrip(), file=self._stream, flush=True
            )

    def message(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        say(text, bar=self._bar, stream=self._stream)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

    def _time_left(self, step: int) -> str:
        return time_left(self._started, step - self._initial, self._total - step)


def say(text: str, *, bar: "tqdm[None] | None", stream: Stream) -> None:
    """Print a line without disturbing the bar, if there is one."""
    if bar is not None:
        bar.write(text, file=stream)
    else:
        print(text, file=stream, flush=True)


def time_left(started: float, done: int, left: int) -> str:
    """Return in words how long `left` steps will take, if they go on as the `done` ones since `started` (monotonic)."""
    if done <= 0 or left <= 0:
        return ""
    seconds = (time.monotonic() - started) / done * left
    return f"{seconds / 60:.0f} min left" if seconds >= 120 else f"{seconds:.0f} s left"
