"""The observers that a model resembles one after the other while it trains on Markov chains."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral.gih.acquisition import Acquisition, Passage, acquisition
from spectral.plots.command import write_figure
from spectral.plots.panels import run_note, step_axes
from spectral.plots.style import MUTED, TRANSITION, finish, house_style, legend_right, new_figure
from spectral.storage import Run

_COLORS = {"uniform": "#999933", "unigram": "#cc6677", "bigram": "#44aa99", "bayes": "#332288"}


def staged_acquisition(run: Run, *, found: Acquisition | None = None, log_steps: bool = False) -> Figure:
    """Draw the distance of the model from every observer, and each passage from one to the next with its date.

    Args:
        run: on Markov chains.
        found: its `acquisition`; None computes it.
        log_steps: logarithmic step axis.

    Raises:
        ResultsFileError: the run was not on Markov chains, or holds no snapshot.
    """
    found = found or acquisition(run)
    with house_style():
        n = len(found.passages)
        notes = [
            run_note(run) + " " + " ".join(describe_passage(passage) for passage in found.passages),
            "Below: D = KL(first || model) - KL(second || model); above 0 the model is nearer to the second. Shaded: "
            "the detector's onset to end, line: its midpoint. Tick: last crossing of 0.",
        ]
        figure = new_figure(8.6, 2.8 + 1.25 * n, title="Staged acquisition", notes=notes)
        panels = list(figure.subplots(1 + n, 1, sharex=True, squeeze=False, height_ratios=[2.8, *[1.25] * n])[:, 0])
        _distances(panels[0], found)
        for axes, passage in zip(panels[1:], found.passages, strict=True):
            _draw_passage(axes, found, passage)
        step_axes(panels, found.steps, log_steps=log_steps)
        return finish(figure)


def draw_acquisition(
    run: Run,
    folder: Path,
    *,
    formats: Sequence[str] = ("png", "pdf"),
    dpi: int = 160,
    say: Callable[[str], None] = print,
) -> tuple[list[Path], str]:
    """Draw the figure into a folder; return the files and the passages in words, one a line."""
    found = acquisition(run)
    figure = staged_acquisition(run, found=found)
    files = write_figure(figure, "staged_acquisition", folder, formats=formats, dpi=dpi, say=say)
    return files, "\n".join(describe_passage(passage) for passage in found.passages)


def describe_passage(passage: Passage) -> str:
    """Return when the model passed from one observer to the next, and what the detector says of it."""
    names = f"{passage.first.capitalize()} to {passage.second}: "
    crossing = "never" if passage.crossing is None else f"step {passage.crossing:,.0f}"
    transition = passage.transition
    if transition.detected and transition.midpoint is not None and transition.interval is not None:
        low, high = transition.interval
        found = f"abrupt at {transition.midpoint:,.0f} (90 %: {low:,.0f} to {high:,.0f})"
    else:
        found = transition.verdict + (f", {transition.reason.replace('_', ' ')}" if transition.reason else "")
        if transition.midpoint is not None:
            found += f", midpoint about {transition.midpoint:,.0f}"
    return f"{names}{crossing}, {found}."


def _distances(axes: Axes, found: Acquisition) -> None:
    for name, curve in found.distances.items():
        axes.plot(found.steps, curve, color=_COLORS[name], lw=1.8, label=name)
    low, high = axes.get_ylim()
    for i, name in enumerate(found.nearest):  # a strip under the curves: whom the model resembles most
        left = found.steps[i] if i == 0 else (found.steps[i - 1] + found.steps[i]) / 2
        right = found.steps[i] if i == len(found.steps) - 1 else (found.steps[i] + found.steps[i + 1]) / 2
        axes.axvspan(left, right, ymin=0, ymax=0.035, color=_COLORS[name], lw=0)
    axes.set_ylim(min(low, -0.06 * high), high)
    axes.set_ylabel("KL(observer || model), nats")
    axes.set_title("distance from every observer; strip: the nearest one")
    legend_right(axes)


def _draw_passage(axes: Axes, found: Acquisition, passage: Passage) -> None:
    axes.plot(found.steps, passage.values, color="#262626", lw=1.4)
    axes.axhline(0, color=MUTED, lw=0.8)
    transition = passage.transition
    if transition.detected and transition.onset is not None and transition.end is not None:
        axes.axvspan(transition.onset, transition.end, color=TRANSITION, alpha=0.2, lw=0, zorder=0.5)
        if transition.midpoint is not None:
            axes.axvline(transition.midpoint, color=TRANSITION, lw=1.2)
    if passage.crossing is not None:
        axes.plot([passage.crossing], [0], marker="|", ms=10, mew=1.6, color="#332288")
    spread = float(np.ptp(passage.values)) or 1.0
    axes.set_ylim(float(passage.values.min()) - 0.08 * spread, float(passage.values.max()) + 0.08 * spread)
    axes.set_title(f"D: from {passage.first} to {passage.second}, nats")
