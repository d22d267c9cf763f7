"""Figures of a comparison: curves of all runs with median and quartiles, transition times, spectra."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from spectral.plots.compare.runs import Comparison
from spectral.plots.compare.series import Alignment, band, quantities
from spectral.plots.compare.tables import PHASES, spectrum_table
from spectral.plots.curvature import CURVATURE_UNIT
from spectral.plots.panels import wide_scale
from spectral.plots.style import MUTED, TRANSITION, categorical, finish, house_style, new_figure

_ROW_INCHES = 0.21
_MOST_ROWS = 60


def overlay(comparison: Comparison, *, align: Alignment) -> Figure:
    """Draw every run as a thin curve, and of each group the median with the band between the quartiles.

    Args:
        comparison: the runs.
        align: `midpoint` puts step 0 at each run's detected midpoint and leaves out runs without one; `step` does not.
    """
    with house_style():
        shown = quantities(comparison)
        drawn = len(comparison.dated) if align == "midpoint" else len(comparison.members)
        left = len(comparison.members) - drawn
        notes = [
            f"{drawn} runs, "
            + ("aligned at the detected midpoint" if align == "midpoint" else "by step")
            + (f"; {left} without a dated transition are not drawn." if left else ".")
            + " Thin: single runs. Bold: median. Shaded: between the quartiles."
        ]
        n_rows = max(1, (len(shown) + 1) // 2)
        labels = [f"{group.label} ({len(group.members)})" for group in comparison.groups]
        height = 0.3 + 0.2 * len(labels) if len(labels) > 1 else 0.0
        figure = new_figure(10.2, 1.9 * n_rows + height, title="Runs compared", notes=notes)
        grid = figure.subplots(n_rows, 2, squeeze=False, sharex=True)
        colors = categorical(len(comparison.groups))
        for axes, quantity in zip(grid.flat, shown, strict=False):
            heights = []
            for color, group in zip(colors, comparison.groups, strict=True):
                found = band(group.members, quantity, align)
                if found is None:
                    continue
                heights.append(found.curves.ravel())
                for curve in found.curves:
                    axes.plot(found.places, curve, color=color, lw=0.6, alpha=0.35, zorder=2, gid="run")
                if len(found.curves) > 1:
                    axes.fill_between(found.places, found.low, found.high, color=color, alpha=0.22, lw=0, gid="band")
                axes.plot(found.places, found.median, color=color, lw=1.8, zorder=3, gid="median")
            axes.set_title(quantity.label)
            if quantity.share:
                axes.set_ylim(-0.03, 1.05)
            elif heights and np.nanmin(np.concatenate(heights)) > 0:
                wide_scale(axes, np.concatenate(heights))
            if align == "midpoint":
                axes.axvline(0.0, color=TRANSITION, lw=1.2, zorder=1.5, gid="midpoint")
        for axes in list(grid.flat)[len(shown) :]:
            axes.remove()
        for axes in _lowest(grid, len(shown)):
            axes.set_xlabel("steps after the midpoint" if align == "midpoint" else "step")
            axes.tick_params(labelbottom=True)
        if len(labels) > 1:
            handles = [Patch(color=color, label=label) for color, label in zip(colors, labels, strict=True)]
            figure.legend(handles=handles, loc="outside lower left", ncols=1)
        return finish(figure)


def transition_times(comparison: Comparison) -> Figure:
    """Draw onset to end, midpoint and its interval of every run, ordered within its group by midpoint.

    Of more than 60 runs the first 60 are drawn; the figure says so.
    """
    with house_style():
        rows = [
            (color, member)
            for color, group in zip(categorical(len(comparison.groups)), comparison.groups, strict=True)
            for member in sorted(group.members, key=lambda one: (one.midpoint is None, one.midpoint or 0.0))
        ]
        kept = rows[:_MOST_ROWS]
        notes = [
            "Thin line: onset to end. Thick: 90 % interval of the midpoint. Dot: midpoint."
            + (f" {len(rows) - len(kept)} further runs are in runs.csv." if len(rows) > len(kept) else "")
        ]
        figure = new_figure(8.6, 0.9 + _ROW_INCHES * len(kept), title="When the transition happened", notes=notes)
        axes = figure.subplots()
        last = max(float(member.run.steps[-1]) for _, member in rows)
        for place, (color, member) in enumerate(kept):
            verdict = member.verdict
            if verdict.onset is None or verdict.midpoint is None or verdict.end is None:
                words = f"{verdict.verdict or 'not judged'}" + (
                    f" ({verdict.reason.replace('_', ' ')})" if verdict.reason else ""
                )
                axes.text(0.01 * last, place, words, fontsize=7.5, color=MUTED, va="center")
                continue
            axes.plot([verdict.onset, verdict.end], [place, place], color=color, lw=1.0, gid="width")
            if verdict.interval is not None:
                axes.plot(verdict.interval, [place, place], color=color, lw=3.5, alpha=0.6, gid="interval")
            axes.plot([verdict.midpoint], [place], "o", color=color, ms=4.5, gid="midpoint")
        axes.set_yticks(range(len(kept)), [member.name for _, member in kept], fontsize=7.5)
        axes.set_ylim(len(kept) - 0.4, -0.6)
        axes.set_xlim(0, last or 1.0)
        axes.set_xlabel("step")
        return finish(figure)


def spectra(comparison: Comparison) -> Figure | None:
    """Draw eigenvalues by rank before, in and after the transition: single runs thin, the median of a group bold.

    None where no run has both eigenvalues and a dated transition.
    """
    table = spectrum_table(comparison)
    table = table[table["phase"].isin(PHASES) & (table["end"] == "top")]
    if table.empty:
        return None
    with house_style():
        notes = ["Largest eigenvalues at the snapshots nearest to one width before, at and one width after it."]
        figure = new_figure(10.2, 3.1, title="Hessian spectrum before, in and after the transition", notes=notes)
        panels: Sequence[Axes] = figure.subplots(1, 3, sharey=True)
        labels = [group.label for group in comparison.groups]
        colors = dict(zip(labels, categorical(len(labels)), strict=True))
        for axes, phase in zip(panels, PHASES, strict=True):
            here = table[table["phase"] == phase]
            for label, mine in here.groupby("group", sort=False):
                color = colors[str(label)]
                for _, one in mine.groupby("run", sort=False):
                    axes.plot(one["rank"] + 1, one["eigenvalue"], color=color, lw=0.6, alpha=0.35, marker=".", ms=3)
                median = mine.groupby("rank")["eigenvalue"].median()
                axes.plot(
                    median.index + 1, median.to_numpy(), color=color, lw=1.8, marker="o", ms=3.5, gid=f"median-{phase}"
                )
            axes.set_title(phase)
            axes.set_xlabel("rank (1 = largest)")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlim(0.5, float(table["rank"].max()) + 1.5)
        wide_scale(panels[0], table["eigenvalue"].to_numpy())
        panels[0].set_ylabel(f"eigenvalue ({CURVATURE_UNIT})")
        if len(comparison.groups) > 1:
            handles = [Line2D([], [], color=color, label=label) for label, color in colors.items()]
            figure.legend(handles=handles, loc="outside lower left", ncols=1)
        return finish(figure)


def _lowest(grid: np.ndarray, n: int) -> list[Axes]:
    """Return the lowest panel of each column that is in use."""
    places = [i for i in range(n) if i + 2 >= n]
    return [list(grid.flat)[i] for i in places]
