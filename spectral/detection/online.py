"""Online detector: announces a transition while the run is still training.

Each signal moves through none -> candidate -> confirmed, or is revoked when its level does not stay. The run as a
whole is `transition_confirmed` once signals of two families agree. The offline verdict replaces all of this at the
end; the online one is early and therefore rougher.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spectral.detection.gates import MIN_AFTER, holds, persists
from spectral.detection.online_statistic import OnlineScan, scan_online, soon_over, under_way
from spectral.detection.statistic import Array
from spectral.detection.thresholds import (
    FIRST_LOOK,
    confirm_after,
    kind_of,
    kind_scales,
    online_calibration_id,
    threshold,
)

Number = int | float | np.integer[Any] | np.floating[Any]

AGREEMENT = 0.05
MIN_FAMILIES = 2


@dataclass(frozen=True, kw_only=True)
class OnlineEvent:
    """One change of state.

    Attributes:
        step: optimizer step of the snapshot that caused it.
        kind: "candidate", "confirmed", "revoked" for a signal; "transition_confirmed", "transition_revoked" for the
            run.
        signal: its name, None for the run.
        family: of the signal, None for the run.
        midpoint: estimated 50 % point in steps.
        statistic: T at this moment, scaled for the kind of change (see `thresholds.kind_scales`); None for the run.
        threshold: h that T is compared with.
        signals: the agreeing signals, for events of the run.
    """

    step: float
    kind: str
    signal: str | None
    family: str | None
    midpoint: float
    statistic: float | None
    threshold: float
    signals: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self) | {"signals": list(self.signals)}


@dataclass(kw_only=True)
class _Track:
    """What is known of one signal: its history, and the sigmoid that its state is about."""

    steps: list[float]
    values: list[float]
    status: str = "none"
    kept: int = 0
    midpoint: float = 0.0
    width: float = 0.0
    amplitude: float = 0.0
    statistic: float | None = None


class OnlineDetector:
    """Watches several signals of one run.

    `update` depends on the past only: what comes later never changes an event. All state is the raw history and a few
    numbers, so a detector restored from `state_dict` gives the same events as one that was never interrupted. The
    statistic is deterministic; `seed` is kept with the state so that a run's settings travel together.
    """

    def __init__(
        self,
        signals: Mapping[str, str],
        *,
        planned_steps: Number,
        significance: float = 0.05,
        seed: int = 0,
        min_snapshots: int = FIRST_LOOK,
        log_signals: Collection[str] = (),
    ) -> None:
        """Prepare to watch.

        Args:
            signals: name of each signal -> its family, for example "behaviour", "circuits", "spectrum".
            planned_steps: length of the run in optimizer steps.
            significance: probability that one null signal is confirmed at any time of the run, in [0.01, 0.2].
            seed: the run's seed.
            min_snapshots: snapshots before the first look, at least 10 (the thresholds count looks from there on).
            log_signals: signals to be analysed as logarithms; their values <= 0 are skipped.

        Raises:
            ValueError: for no signals, an unknown log signal, or numbers out of range.
        """
        if not signals:
            msg = "no signals given, but the detector needs at least one; pass for example {'loss': 'behaviour'}"
            raise ValueError(msg)
        if not planned_steps > 0 or not math.isfinite(planned_steps):
            msg = f"planned_steps={planned_steps} must be positive and finite; pass the run's number of steps"
            raise ValueError(msg)
        if min_snapshots < FIRST_LOOK:
            msg = f"min_snapshots={min_snapshots} is below {FIRST_LOOK}, where the thresholds start; raise it"
            raise ValueError(msg)
        unknown = sorted(set(log_signals) - set(signals))
        if unknown:
            msg = f"log_signals names {unknown}, which are not among the signals {sorted(signals)}; fix the name"
            raise ValueError(msg)
        threshold(50, significance)  # raises when out of range
        self._families = dict(signals)
        self._planned = float(planned_steps)
        self._significance = float(significance)
        self._seed = int(seed)
        self._min_snapshots = int(min_snapshots)
        self._log = frozenset(log_signals)
        self._tracks = {name: _Track(steps=[], values=[]) for name in self._families}
        self._last_step: float | None = None
        self._agreed: list[str] = []  # signals behind the last confirmation of the run, empty when revoked
        self._agreed_midpoint = 0.0

    @property
    def statistics(self) -> dict[str, float]:
        """Latest scaled T per signal; NaN before enough snapshots."""
        return {name: math.nan if k.statistic is None else k.statistic for name, k in self._tracks.items()}

    @property
    def thresholds(self) -> dict[str, float]:
        """Threshold h that each signal's T is compared with; NaN before two snapshots tell the spacing."""
        return {name: self._threshold(track) for name, track in self._tracks.items()}

    @property
    def states(self) -> dict[str, str]:
        """State per signal: none, candidate, confirmed or revoked."""
        return {name: track.status for name, track in self._tracks.items()}

    @property
    def transition_confirmed(self) -> bool:
        """Whether two families agree at this moment."""
        return bool(self._agreed)

    def update(self, step: Number, values: Mapping[str, Number | None]) -> list[OnlineEvent]:
        """Take one snapshot and return what changed, signals first, the run last.

        Args:
            step: optimizer step, larger than that of the call before.
            values: the signals measured there. A missing or non-finite one leaves its signal as it was.

        Raises:
            ValueError: for a step that does not increase or an unknown signal.
        """
        now = float(step)
        if not math.isfinite(now) or (self._last_step is not None and now <= self._last_step):
            msg = f"step={now:g} does not follow {self._last_step}, but steps must increase; update once per snapshot"
            raise ValueError(msg)
        unknown = sorted(set(values) - set(self._families))
        if unknown:
            msg = f"unknown signals {unknown}; this detector watches {sorted(self._families)}"
            raise ValueError(msg)
        self._last_step = now
        fresh = []
        for name, track in self._tracks.items():
            value = self._prepared(name, values.get(name))
            if value is not None:
                track.steps.append(now)
                track.values.append(value)
                fresh.append(name)
        events = self._scan(now, [name for name in fresh if len(self._tracks[name].steps) >= self._min_snapshots])
        return events + self._judge_run(now)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as plain lists, numbers, strings, booleans and None."""
        return {
            "calibration_id": online_calibration_id(),
            "families": dict(self._families),
            "planned_steps": self._planned,
            "significance": self._significance,
            "seed": self._seed,
            "min_snapshots": self._min_snapshots,
            "log_signals": sorted(self._log),
            "last_step": self._last_step,
            "agreed": list(self._agreed),
            "agreed_midpoint": self._agreed_midpoint,
            "tracks": {name: asdict(track) for name, track in self._tracks.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of a detector of the same signals; its settings are taken over.

        A state saved under an older calibration (`calibration_id`) loads too: what was announced stays announced, and
        the history, which is raw, is judged by the present thresholds from the next snapshot on.

        Raises:
            ValueError: when the signals differ.
        """
        if dict(state["families"]) != self._families:
            msg = (
                f"the saved state watches {dict(state['families'])}, this detector {self._families}; build it with "
                "the saved signals"
            )
            raise ValueError(msg)
        self._planned = float(state["planned_steps"])
        self._significance = float(state["significance"])
        self._seed = int(state["seed"])
        self._min_snapshots = int(state["min_snapshots"])
        self._log = frozenset(state["log_signals"])
        self._last_step = None if state["last_step"] is None else float(state["last_step"])
        self._agreed = list(state["agreed"])
        self._agreed_midpoint = float(state["agreed_midpoint"])
        # Copies: the caller's checkpoint must not grow with the run.
        self._tracks = {
            name: _Track(**(fields | {"steps": list(fields["steps"]), "values": list(fields["values"])}))
            for name, fields in state["tracks"].items()
        }

    def _prepared(self, name: str, value: Number | None) -> float | None:
        if value is None:
            return None
        number = float(value)
        if name in self._log:
            number = math.log(number) if number > 0 else math.nan
        return number if math.isfinite(number) else None

    def _threshold(self, track: _Track) -> float:
        if len(track.steps) < 2:
            return math.nan
        return threshold(self._planned_snapshots(track), self._significance)

    def _planned_snapshots(self, track: _Track) -> float:
        return self._planned / float(np.median(np.diff(track.steps))) + 1

    def _scan(self, step: float, names: list[str]) -> list[OnlineEvent]:
        events = []
        groups: dict[tuple[float, ...], list[str]] = {}
        for name in names:  # signals measured at the same steps share their designs
            groups.setdefault(tuple(self._tracks[name].steps), []).append(name)
        for axis, members in groups.items():
            t = (np.array(axis) - axis[0]) / self._planned
            rows = np.array([self._tracks[name].values for name in members], dtype=np.float64)
            scan = scan_online(t, rows)
            kinds = kind_of(scan.phi, scan.width, float(np.median(np.diff(t))))
            for i, name in enumerate(members):
                track = self._tracks[name]
                scale = kind_scales(self._planned_snapshots(track))[kinds[i]]
                statistic = float(scan.statistic[i] * scale)
                track.statistic = statistic if math.isfinite(statistic) else None
                kind = self._advance(track, t, scan, i)
                if kind is not None:
                    events.append(
                        OnlineEvent(
                            step=step,
                            kind=kind,
                            signal=name,
                            family=self._families[name],
                            midpoint=axis[0] + track.midpoint * self._planned,
                            statistic=track.statistic,
                            threshold=self._threshold(track),
                        )
                    )
        return sorted(events, key=lambda event: list(self._families).index(str(event.signal)))

    def _advance(self, track: _Track, t: Array, scan: OnlineScan, row: int) -> str | None:
        """Move one signal's state; return the kind of event, if any."""
        if track.status == "confirmed":
            # Its sigmoid is settled: T may fade once the change lies far back, only a lost level revokes.
            # One that was confirmed under way is judged once enough has come after it.
            enough = np.count_nonzero(t > track.midpoint + track.width / 2) >= MIN_AFTER
            test = persists if enough else holds
            stays = test(t, scan.filtered[row], midpoint=track.midpoint, width=track.width, amplitude=track.amplitude)
            if not stays:
                track.status = "revoked"
                return "revoked"
        midpoint, width, amplitude = (float(values[row]) for values in (scan.midpoint, scan.width, scan.amplitude))
        passes = track.statistic is not None and track.statistic > self._threshold(track) and under_way(t, scan, row)
        if track.status == "candidate" and not passes:
            track.status, track.kept = "revoked", 0
            return "revoked"
        if not passes:
            return None
        moved = abs(midpoint - track.midpoint) > AGREEMENT
        if track.status == "confirmed":
            if not moved or abs(amplitude) < 0.5 * abs(track.amplitude):
                return None
            if amplitude * track.amplitude < 0:
                track.status, track.kept = "revoked", 0  # the change was undone
                return "revoked"
            if abs(amplitude) <= abs(track.amplitude):
                return None
            # A larger change elsewhere unseats it: a small early step must not hide the transition.
        track.midpoint, track.width, track.amplitude = midpoint, width, amplitude
        if track.status != "candidate":
            track.status, track.kept = "candidate", 0
            return "candidate"
        track.kept = 0 if moved else track.kept + 1
        waited = track.kept >= confirm_after(self._planned_snapshots(track))
        if waited and soon_over(t, scan, np.array([row]))[0]:
            track.status = "confirmed"
            return "confirmed"
        return None

    def _judge_run(self, step: float) -> list[OnlineEvent]:
        agreeing = self._agreeing()
        if bool(agreeing) == bool(self._agreed):
            return []
        if agreeing:
            places = [self._tracks[name].steps[0] + self._tracks[name].midpoint * self._planned for name in agreeing]
            self._agreed_midpoint = float(np.median(places))
        event = OnlineEvent(
            step=step,
            kind="transition_confirmed" if agreeing else "transition_revoked",
            signal=None,
            family=None,
            midpoint=self._agreed_midpoint,
            statistic=None,
            threshold=float(np.nanmax(list(self.thresholds.values()))),
            signals=tuple(agreeing or self._agreed),
        )
        self._agreed = agreeing
        return [event]

    def _agreeing(self) -> list[str]:
        """Return the signals of the largest agreement that spans two families and holds a confirmed signal.

        Candidates may second a confirmed signal, but two candidates alone are no agreement: a spike of the loss often
        shows in the spectrum as well.
        """
        alive = {n: k for n, k in self._tracks.items() if k.status in ("candidate", "confirmed")}
        best: list[str] = []
        for anchor in alive.values():
            start = anchor.steps[0] + anchor.midpoint * self._planned
            near = [
                name
                for name, track in alive.items()
                if 0 <= track.steps[0] + track.midpoint * self._planned - start <= AGREEMENT * self._planned + 1e-9
            ]
            families = {self._families[name] for name in near}
            confirmed = any(alive[name].status == "confirmed" for name in near)
            if len(families) >= MIN_FAMILIES and confirmed and len(near) > len(best):
                best = near
        return best
