"""Parts that several figures share: the step axis, curves, yardsticks and heat maps over steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from spectral.plots.style import FAINT, MISSING, MUTED, heat_colors
from spectral.storage import Run

_FEW_POINTS = 25  # up to here single points are marked: a curve of one snapshot would be invisible
_WIDE_RATIO = 30.0  # from here on a linear axis hides the smaller half of the values


def run_note(run: Run) -> str:
    """Return one line about the run: its name, its state and how far it got."""
    last = max([0, *run.steps[-1:].tolist(), *run.train_steps[-1:].tolist()])
    status = {"died": "process died", "failed": "failed"}.get(run.status, run.status)
    return f"Run {run.path.name}: {status}, {len(run.steps)} snapshots, up to step {last:,}."


def step_axes(panels: Sequence[Axes], steps: np.ndarray, *, log_steps: bool = False) -> None:
    """Give panels one step axis; only the last one, which must be the lowest, is labelled.

    Args:
        panels: from top to bottom.
        steps: all steps that appear.
        log_steps: logarithmic axis, linear between 0 and the first later step so that step 0 keeps its place.
    """
    low, high = float(steps.min()), float(steps.max())
    single = low == high
    if single:
        low, high = low - 0.5, high + 0.5
    for axes in panels:
        if log_steps:
            later = steps[steps > 0]
            axes.set_xscale("symlog", linthresh=float(later.min()) if len(later) else 1.0, linscale=0.4)
        else:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if single:
            axes.set_xticks([float(steps[0])])
        axes.set_xlim(low, high)
    panels[-1].set_xlabel("step")


def curve(axes: Axes, steps: np.ndarray, heights: np.ndarray, **style: Any) -> Line2D:
    """Draw one curve over steps; NaN leaves gaps. Few points, and those between gaps, are marked one by one."""
    n_gaps = np.count_nonzero(np.isnan(heights))
    if len(heights) - n_gaps <= _FEW_POINTS or n_gaps > 1:
        style.setdefault("marker", "o")
        style.setdefault("markersize", 2.5)
    return axes.plot(steps, heights, **style)[0]


def reference(axes: Axes, height: float | None, label: str, *, style: str = ":", gid: str = "chance") -> None:
    """Draw a horizontal yardstick that is listed in the legend; nothing where it is not known."""
    if height is not None:
        axes.axhline(height, color=MUTED, ls=style, lw=1.1, zorder=1.5, label=label, gid=gid)


def score_yardsticks(axes: Axes, chance: float | None, ceiling: float | None, null_sd: float | None = None) -> None:
    """Draw chance (dotted, with two null standard deviations where known) and ceiling (dashed) of a score."""
    reference(axes, ceiling, f"ceiling {ceiling:.3g}" if ceiling is not None else "", style="--", gid="ceiling")
    reference(axes, chance, f"chance {chance:.3g}" if chance is not None else "")
    if chance is not None and null_sd is not None:
        axes.axhspan(
            chance - 2 * null_sd, chance + 2 * null_sd, color=FAINT, alpha=0.35, lw=0, label="null ±2 sd", gid="null"
        )


def cell_edges(centers: np.ndarray) -> np.ndarray:
    """Return the borders of heat-map cells around unevenly spaced centres."""
    centers = np.asarray(centers, dtype=np.float64)
    if len(centers) == 1:
        return np.array([centers[0] - 0.5, centers[0] + 0.5])
    middle = (centers[1:] + centers[:-1]) / 2
    return np.concatenate([[2 * centers[0] - middle[0]], middle, [2 * centers[-1] - middle[-1]]])


def heat_map(axes: Axes, steps: np.ndarray, rows: np.ndarray, cells: np.ndarray, norm: Normalize) -> QuadMesh:
    """Draw cells [step, row] with the step to the right; cells that were not measured are grey.

    The mesh is rasterized: as vectors, a few ten thousand cells make a PDF that no viewer likes.
    """
    masked = np.ma.masked_invalid(cells.T)
    mesh = axes.pcolormesh(
        cell_edges(steps), cell_edges(rows), masked, cmap=heat_colors(), norm=norm, rasterized=True, shading="flat"
    )
    axes.grid(False)
    axes.set_facecolor(MISSING)
    return mesh


def color_bar(axes: Axes, mesh: QuadMesh, label: str, **options: Any) -> Colorbar:
    """Put the colour scale directly beside its heat map.

    An inset, because the layout engine would set it beyond the legends of the panels above and below.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None  # a panel always has one
    return figure.colorbar(mesh, cax=axes.inset_axes((1.012, 0.0, 0.018, 1.0)), label=label, **options)


def wide_scale(axes: Axes, heights: np.ndarray, floor: float = 0.0) -> str:
    """Choose the y axis: linear, "log" where positive values span a wide range, "symlog" where signs differ as well.

    Args:
        axes: the panel.
        heights: all values on it.
        floor: noise level, below which differences mean nothing.

    Returns:
        The name of the scale.
    """
    size = np.abs(heights[np.isfinite(heights) & (heights != 0)])
    if len(size) == 0 or size.max() <= _WIDE_RATIO * size.min():
        return "linear"
    if np.nanmin(heights) > 0:
        axes.set_yscale("log")
        if size.max() < 1000 * size.min():
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        return "log"
    axes.set_yscale("symlog", linthresh=max(floor, 1e-3 * float(size.max())), linscale=0.5)
    return "symlog"
