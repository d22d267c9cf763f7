"""The detector's verdict as figures show it: a band from onset to end, a line at the midpoint, and a sentence.

Figures never look for a transition themselves; there is one detector, and its words are in `transitions.json`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib import patheffects
from matplotlib.axes import Axes

from spectral.plots.style import TRANSITION
from spectral.storage import Run

REASONS = {
    "not_significant": "no change is significant",
    "too_small": "the change is too small",
    "too_wide": "the change is too slow to be abrupt",
    "not_persistent": "the change does not last",
    "too_few_snapshots": "too few snapshots",
    "at_edge": "the change touches the edge of the run",
    "non_finite": "a signal has missing values",
    "one_family": "only one family of signals changed abruptly",
    "families_disagree": "families of signals changed at different times",
    "no_signals": "no signal was measured",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The run's verdict, times in optimizer steps.

    Attributes:
        judged: whether the detector has judged the run.
        detected: whether there is a dated abrupt transition; only then are the times set.
        verdict: the detector's word, "" when not judged.
        reason: why not, when not.
        onset: 10 % point.
        midpoint: 50 % point.
        end: 90 % point.
        interval: 90 % interval of the midpoint.
        p_value: corrected for the number of signals.
        sentence: all of it in words.
    """

    judged: bool
    detected: bool
    verdict: str
    reason: str | None
    onset: float | None
    midpoint: float | None
    end: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    sentence: str

    @property
    def band_key(self) -> str:
        """What the colours of `mark_transition` mean, to follow the sentence; empty when nothing is drawn."""
        key = " Shaded: onset to end; darker: interval; line: midpoint."
        return key if self.detected else ""

    @property
    def line_key(self) -> str:
        """What the lines of `mark_transition_on_image` mean."""
        return " On maps: dashed, onset and end; solid, midpoint." if self.detected else ""


def read_verdict(run: Run) -> Verdict:
    """Return what `transitions.json` says of the run; not judged when the file is missing."""
    found = run.transitions.get("consensus")
    consensus: dict[str, Any] = found if isinstance(found, dict) else {}
    times = [_number(consensus.get(key)) for key in ("onset", "midpoint", "end")]
    detected = bool(consensus.get("detected")) and None not in times
    bounds = consensus.get("interval") if detected else None
    interval = (float(bounds[0]), float(bounds[1])) if isinstance(bounds, list) and len(bounds) == 2 else None
    onset, midpoint, end = times if detected else (None, None, None)
    verdict, reason, p_value = consensus.get("verdict"), consensus.get("reason"), _number(consensus.get("p_value"))
    if onset is not None and midpoint is not None and end is not None:
        sentence = f"Abrupt transition at step {_step(midpoint)}"
        if interval is not None:
            sentence += f" (90 % interval {_step(interval[0])} to {_step(interval[1])})"
        sentence += f", onset {_step(onset)}, end {_step(end)}"
        if p_value is not None:
            sentence += f", p = {p_value:.2g}"
        sentence += "."
    elif verdict:
        why = REASONS.get(str(reason), str(reason)) if reason else "no reason given"
        sentence = f"No transition detected; verdict: {verdict} ({why})"
        sentence += "." if p_value is None else f", p = {p_value:.2g}."
    elif run.status == "running":
        sentence = "No transition detected so far: the detector gives its verdict when the run ends."
    else:
        sentence = "No transition detected: the detector has not judged this run."
    return Verdict(
        judged=bool(verdict),
        detected=detected,
        verdict=str(verdict or ""),
        reason=None if reason is None else str(reason),
        onset=onset,
        midpoint=midpoint,
        end=end,
        interval=interval,
        p_value=p_value,
        sentence=sentence,
    )


def mark_transition(panels: Iterable[Axes], verdict: Verdict) -> None:
    """Draw band, interval and midpoint behind the curves of panels with a step axis; nothing when none was detected."""
    if verdict.onset is None or verdict.midpoint is None or verdict.end is None:
        return
    for axes in panels:
        axes.axvspan(verdict.onset, verdict.end, color=TRANSITION, alpha=0.16, lw=0, zorder=0.5, gid="transition-band")
        if verdict.interval is not None:
            low, high = verdict.interval
            axes.axvspan(low, high, color=TRANSITION, alpha=0.28, lw=0, zorder=0.6, gid="transition-interval")
        axes.axvline(verdict.midpoint, color=TRANSITION, lw=1.2, zorder=0.7, gid="transition-midpoint")


def mark_transition_on_image(axes: Axes, verdict: Verdict) -> None:
    """Draw onset and end (dashed) and the midpoint (solid) over a heat map, which a band would hide."""
    if verdict.onset is None or verdict.midpoint is None or verdict.end is None:
        return
    halo = [patheffects.withStroke(linewidth=2.4, foreground="white")]
    places = (
        (verdict.onset, "--", "transition-onset"),
        (verdict.midpoint, "-", "transition-midpoint"),
        (verdict.end, "--", "transition-end"),
    )
    for place, style, gid in places:
        axes.axvline(place, color=TRANSITION, ls=style, lw=1.2, path_effects=halo, gid=gid)


def _step(value: float) -> str:
    return f"{value:,.0f}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
