"""What a person sees while the runs of a study are trained: one bar for all on a terminal, plain lines elsewhere."""

import math
import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

from spectral.training.progress import say, time_left

_LINES_PER_RUN = 10


class StudyProgress:
    """Shows events of several runs at once.

    Args:
        n_steps: of all runs that are to be trained, from their first step.
        stream: where to write; a terminal gets a bar.
    """

    def __init__(self, n_steps: int, *, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._done: dict[str, int] = {}
        self._next_line: dict[str, int] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._bar: tqdm[None] | None = None
        if self._stream.isatty():
            self._bar = tqdm(total=n_steps, file=self._stream, unit="step", dynamic_ncols=True)

    def tell(self, event: dict[str, Any]) -> None:
        """Show one event."""
        run = event["run"]
        if event["event"] == "message":
            self.say(f"{run}: {event['text']}")
        elif event["event"] == "done":
            state = "finished" if event["finished"] else "interrupted and saved"
            self.say(f"{run}: {state} after {event['seconds']:.0f} s")
        else:
            self._step(run, event)

    def say(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        say(text, bar=self._bar, stream=self._stream)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

    def _step(self, run: str, event: dict[str, Any]) -> None:
        step, total = event["step"], event["total"]
        names = {"loss": "loss", "accuracy": "accuracy", "lambda_1": "lambda_1"}
        facts = "  ".join(f"{word} {event[name]:.3g}" for name, word in names.items() if name in event)
        if run not in self._done:
            self._started[run] = (time.monotonic(), step)
            self._next_line[run] = step
        advance = step - self._done.get(run, 0)
        self._done[run] = step
        if self._bar is not None:
            self._bar.set_postfix_str(f"{run} {step / total:.0%}  {facts}", refresh=False)
            self._bar.update(advance)
        elif step >= self._next_line[run]:
            self._next_line[run] = step + max(1, total // _LINES_PER_RUN)
            self.say(f"{run}: step {step}/{total}  {facts}  {self._time_left(run, step, total)}".rstrip())

    def _time_left(self, run: str, step: int, total: int) -> str:
        begun, first = self._started[run]
        return time_left(begun, step - first, total - step)


def human(seconds: float) -> str:
    """Return a duration in a unit that suits it."""
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
