"""Relative-position weights before and after training: as vectors, and as the banded attention they make."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from spectral.gih import GIHResults
from spectral.models.disentangled_full import DIAGONAL
from spectral.plots.gih.source import Array, head_colors, run_line
from spectral.plots.style import FAINT, INK, MISSING, finish, heat_colors, house_style, new_figure

_ROWS = 10


def relative_positions(run: GIHResults) -> Figure:
    """Draw for every head the weights by offset, before and after, and the attention of the first ten rows."""
    with house_style():
        n_heads = run.config.n_heads
        notes = [
            run_line(run),
            "Maps: attention of row l on row l - offset, first ten rows; grey: outside the window.",
        ]
        if run.config.model == "full":
            notes.append("Without the content term of the full variant; its diagonal is attention to the row itself.")
        figure = new_figure(9.4, 2.0 * n_heads + 0.3, title="Where each head looks", notes=notes)
        panels = figure.subplots(n_heads, 3, squeeze=False, width_ratios=(1.5, 1, 1))
        w, offsets, colors = run.read("w"), run.dataset["offset"].values, head_colors(run)
        norm, mesh = Normalize(0.0, 1.0), None
        for head in range(n_heads):
            _vector(panels[head, 0], offsets[head], w[0, head], w[-1, head], colors[head])
            panels[head, 0].set_title(f"head {head + 1}: weights $w$")
            for column, row, when in ((1, 0, "before"), (2, -1, "after")):
                axes = panels[head, column]
                pattern = banded_attention(w[row, head], offsets[head], _ROWS, itself=run.config.model == "full")
                mesh = axes.pcolormesh(
                    np.arange(_ROWS + 1) + 0.5, np.arange(_ROWS + 1) + 0.5, np.ma.masked_invalid(pattern),
                    cmap=heat_colors(), norm=norm, rasterized=True,
                )  # fmt: skip
                axes.set_facecolor(MISSING)
                axes.invert_yaxis()
                axes.set_aspect("equal")
                axes.grid(False)
                axes.set_title(when)
                axes.set_ylabel("row")
                axes.set_yticks([1, 5, 10])
                axes.set_xticks([1, 5, 10])
        for axes in panels[-1, 1:]:
            axes.set_xlabel("attended row")
        panels[-1, 0].set_xlabel("offset (tokens back)")
        assert mesh is not None  # there is at least one head
        figure.colorbar(mesh, ax=panels[:, 2], label="attention", shrink=0.6)
        return finish(figure)


def banded_attention(w: Array, offsets: np.ndarray, n_rows: int, *, itself: bool = False) -> Array:
    """Return [row, attended row] the softmax of the weights over the valid offsets of each row; NaN outside.

    Args:
        w: [place] weights of one head.
        offsets: [place] how far back they look.
        n_rows: size of the corner.
        itself: a row may also attend to itself, with the score of the full variant.
    """
    pattern = np.full((n_rows, n_rows), np.nan)
    for row in range(n_rows):
        places = [(row - int(offset), score) for offset, score in zip(offsets, w, strict=True) if offset <= row]
        if itself:
            places.append((row, DIAGONAL))
        if places:
            scores = np.exp([score - max(other for _, other in places) for _, score in places])
            pattern[row, [place for place, _ in places]] = scores / scores.sum()
    return pattern


def _vector(axes: Axes, offsets: np.ndarray, before: Array, after: Array, color: str) -> None:
    shown = np.arange(1, _ROWS + 1)
    unused = [offset for offset in shown if offset not in offsets]
    axes.bar(offsets - 0.2, before, width=0.38, color=FAINT, label="before")
    axes.bar(offsets + 0.2, after, width=0.38, color=color, label="after")
    for offset in unused:
        axes.axvspan(offset - 0.5, offset + 0.5, color=MISSING, lw=0, zorder=0)
    axes.axhline(0, color=INK, lw=0.7)
    axes.set_xlim(0.5, _ROWS + 0.5)
    axes.set_xticks(shown)
    axes.grid(False, axis="x")
    axes.legend(loc="upper right")
