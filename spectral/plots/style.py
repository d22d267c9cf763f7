"""The suite's look: one palette for every figure and page, one style context, and how a figure is begun and ended.

The settings stand in `house.mplstyle` beside this module. Nothing here changes global state: `house_style` restores
matplotlib's settings, and figures are made without pyplot.
All colours keep apart under the common colour vision deficiencies (Paul Tol's muted set; mako is perceptually even).
"""

import os
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import seaborn  # noqa: F401  registers the colour maps used here
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.style import available, library

from spectral.errors import ConfigError

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

STYLE_FOLDER = Path(__file__).parent
"""Of `house.mplstyle`, the look of every figure, and `paper.mplstyle`, a variant for papers."""

_TITLE_SIZE, _NOTE_SIZE = 12.0, 8.5
_CHARACTER_WIDTH = 0.53  # of the font size, on average


_ON_TOP: ContextVar[dict[Any, Any]] = ContextVar("on top of the house style", default={})  # noqa: B039
_PLAIN: ContextVar[bool] = ContextVar("without titles and notes", default=False)


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the suite's matplotlib settings inside the block and restore the old ones after it."""
    house = matplotlib.rc_params_from_file(STYLE_FOLDER / "house.mplstyle", use_default_template=False)
    theme: dict[Any, Any] = {**house, **_ON_TOP.get()}
    with matplotlib.rc_context(theme):
        yield


@contextmanager
def figure_options(*, style: str | os.PathLike[str] | None = None, plain: bool = False) -> Iterator[None]:
    """Change the look of every figure that is drawn and saved inside the block.

    Args:
        style: a matplotlib style file on top of `house.mplstyle`, or the name of a style: `paper` or one of
            matplotlib's own.
        plain: without the bold title and the notes above the panels, which a paper puts into the caption.

    Raises:
        ConfigError: no such style, or a file that matplotlib cannot read.
    """
    tokens = _ON_TOP.set({} if style is None else _read_style(style)), _PLAIN.set(plain)
    try:
        yield
    finally:
        _ON_TOP.reset(tokens[0])
        _PLAIN.reset(tokens[1])


def _read_style(style: str | os.PathLike[str]) -> dict[Any, Any]:
    if style == "paper":
        style = STYLE_FOLDER / "paper.mplstyle"
    if style in library:
        return dict(library[str(style)])
    try:
        # matplotlib only logs a setting that it does not know, and goes on without it.
        lines = Path(style).read_text(encoding="utf-8").splitlines()
        keys = [line.partition(":")[0].strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        unknown = [key for key in keys if key not in matplotlib.rcParams]
        if unknown:
            msg = f"it sets {unknown[0]!r}, which matplotlib does not know"
            raise ValueError(msg)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return dict(matplotlib.rc_params_from_file(style, use_default_template=False))
    except (OSError, ValueError, UserWarning) as error:
        names = ", ".join(["paper", *available[:3]])
        raise ConfigError(
            [f"--style {style} cannot be used ({error}); give a .mplstyle file or a name: {names}, ..."]
        ) from None


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
    if _PLAIN.get():
        return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
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
