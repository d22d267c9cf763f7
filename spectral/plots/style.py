"""The suite's look: one palette for every figure and page, one style context, and how a figure is begun and ended.

Nothing here changes global state: `house_style` restores matplotlib's settings, and figures are made without pyplot.
All colours keep apart under the common colour vision deficiencies (Paul Tol's muted set; mako is perceptually even).
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK = "#262626"
MUTED = "#6e6e6e"
FAINT = "#c4c4c4"
MISSING = "#e6e6e6"
"""Cells of a heat map that were not measured."""
TRANSITION = "#e08214"
"""Reserved for the detected transition; no curve uses it."""

CATEGORICAL = ("#332288", "#cc6677", "#117733", "#44aa99", "#882255", "#999933", "#88ccee", "#aa4499", "#ddcc77")
SIGNAL_COLORS = {
    "train_loss": "#a3a3a3",
    "loss": "#332288",
    "induction_loss": "#88ccee",
    "induction_accuracy": "#117733",
    "random_accuracy": "#cc6677",
    "in_context_probability": "#44aa99",
    "in_context_accuracy": "#999933",
    "induction_score": "#117733",
    "previous_token_score": "#332288",
    "duplicate_token_score": "#cc6677",
    "top_eigenvalue": "#332288",
    "negative_eigenvalue": "#cc6677",
    "trace": "#882255",
    "gradient_alignment": "#aa4499",
}
"""One colour per quantity, the same in every figure and page."""

_OVERRIDES = {
    # One font that ships with matplotlib and has Greek letters and arrows: the same picture on every machine.
    "font.sans-serif": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "grid.color": "#ebebeb",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.5,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "ytick.minor.size": 1.5,
    "xtick.minor.size": 1.5,
    "legend.fontsize": 8.0,
    "legend.title_fontsize": 8.0,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # As files are saved: hinted text is not equally wide at every resolution, and the layout counts its width.
    "figure.dpi": 160.0,
    # TrueType in PDFs, so that text stays text in an editor.
    "pdf.fonttype": 42,
}

_TITLE_SIZE, _NOTE_SIZE = 12.0, 8.5
_CHARACTER_WIDTH = 0.53  # of the font size, on average


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the suite's matplotlib settings inside the block and restore the old ones after it."""
    theme: dict[Any, Any] = {**seaborn.axes_style("ticks"), **seaborn.plotting_context("paper"), **_OVERRIDES}
    with matplotlib.rc_context(theme):
        yield


def categorical(n: int) -> list[str]:
    """Return n colours for things without an order; they recur after 9."""
    return [CATEGORICAL[i % len(CATEGORICAL)] for i in range(n)]


def ordered(n: int) -> list[str]:
    """Return n colours for things with an order (ranks, steps, periods), dark first."""
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, max(n, 1)))
    return [to_hex(shade) for shade in shades[:n]]


def heat_colors() -> Colormap:
    """Return the colour map of heat maps: light is little, grey was not measured."""
    # The import of seaborn has registered the map.
    return matplotlib.colormaps["mako_r"].with_extremes(bad=MISSING)


def signed_colors() -> Colormap:
    """Return the colour map of heat maps with a sign: white is 0, red above, blue below, grey was not measured."""
    return matplotlib.colormaps["vlag"].with_extremes(bad=MISSING)


def new_figure(width: float, height: float, *, title: str, notes: Sequence[str] = ()) -> Figure:
    """Begin a figure with a bold title and notes under it, all set flush left above the panels.

    Args:
        width: inches.
        height: inches of the panels; title and notes come on top.
        title: what the figure shows.
        notes: one paragraph each; long ones are wrapped.
    """
    per_line = int(72 * (width - 0.3) / (_NOTE_SIZE * _CHARACTER_WIDTH))
    lines = [line for note in notes for line in textwrap.wrap(note, per_line)]
    header = 0.36 + 0.165 * len(lines) + 0.06
    total = height + header
    # Keeps the panels below the header, which a layout engine does not see.
    engine = ConstrainedLayoutEngine(
        rect=(0.0, 0.0, 1.0, 1.0 - header / total), w_pad=0.1, h_pad=0.05, wspace=0.03, hspace=0.03
    )
    figure = Figure(figsize=(width, total), layout=engine)
    figure.text(0.1 / width, 1 - 0.1 / total, title, size=_TITLE_SIZE, weight="bold", color=INK, va="top")
    place = 1 - 0.38 / total
    figure.text(
        0.1 / width, place, "\n".join(lines), size=_NOTE_SIZE, color=MUTED, va="top", linespacing=1.25, gid="notes"
    )
    return figure


def finish(figure: Figure) -> Figure:
    """End a figure: lay it out once and freeze it.

    Ticks are made at the first draw and take the settings of that moment, so it has to happen inside `house_style`.
    The frozen layout also makes every later save cheaper.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def legend_right(axes: Axes, *, title: str | None = None, columns: int = 1) -> None:
    """Put the legend beside the panel, where it can hide no data."""
    legend = axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        borderaxespad=0.0,
        handlelength=1.6,
        labelspacing=0.35,
        ncols=columns,
        title=title,
        alignment="left",
    )
    legend.set_in_layout(True)
