"""`--densify auto`: more snapshots for a while after the online detector has become suspicious."""

from collections.abc import Iterable
from typing import Any

from spectral.config import RunConfig
from spectral.detection import OnlineEvent

FINER = 10  # snapshots in place of one
WINDOW = 5  # intervals that a window lasts, counted from the last suspicion


def dense_interval(config: RunConfig) -> int:
    """Return the steps between dense snapshots: a tenth of the run's interval, at least 1."""
    return max(1, config.eigen_interval // FINER)


class DenseWindow:
    """Says at which steps beside the regular ones a snapshot is due.

    A window opens when a signal becomes a candidate and lasts `WINDOW` intervals of the run; a further candidate makes
    it longer, and it ends early when every candidate has been revoked. The detector itself looks at the regular
    snapshots only: its thresholds are calibrated for evenly spaced ones.

    Attributes:
        interval: steps between snapshots inside a window.
        until: last step of the window; -1 = none was open yet.
    """

    def __init__(self, config: RunConfig) -> None:
        self._on = config.densify == "auto"
        self._length = WINDOW * config.eigen_interval
        self.interval = dense_interval(config)
        self.until = -1
        self._suspected: set[str] = set()

    def due(self, step: int) -> bool:
        """Return whether a window is open at a step and a snapshot belongs there."""
        return self._on and step <= self.until and step % self.interval == 0

    def note(self, events: Iterable[OnlineEvent], step: int) -> bool:
        """Take the detector's events of a regular snapshot; return whether a window opened that was not open before."""
        if not self._on:
            return False
        was_open = step < self.until
        for event in events:
            if event.signal is None:
                continue
            if event.kind == "candidate":
                self._suspected.add(event.signal)
                self.until = step + self._length
            elif event.kind == "revoked":
                self._suspected.discard(event.signal)
                if not self._suspected:
                    self.until = min(self.until, step)
        return not was_open and step < self.until

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"until": self.until, "suspected": sorted(self._suspected)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.until = int(state["until"])
        self._suspected = set(state["suspected"])
