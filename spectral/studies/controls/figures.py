"""The figure of the study: every run of every kind, what the detector says marked in it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from spectral.plots.panels import curve
from spectral.plots.style import SIGNAL_COLORS, TRANSITION, finish, house_style, new_figure
from spectral.studies.controls.outcomes import Outcome
from spectral.studies.controls.plan import KINDS

_ROWS = (
    ("accuracy", "induction accuracy", SIGNAL_COLORS["induction_accuracy"]),
    ("induction_score", "largest induction score", SIGNAL_COLORS["duplicate_token_score"]),
    ("largest_eigenvalue", "largest eigenvalue", SIGNAL_COLORS["top_eigenvalue"]),
)


def every_run(outcomes: Mapping[str, Sequence[Outcome]]) -> Figure:
    """Draw accuracy, induction score and largest eigenvalue of every run, one column per kind.

    Orange lines: midpoints of detected transitions, one per run. Scores and eigenvalues have one scale per row.
    """
    found = {model: outcomes[model] for model in KINDS if outcomes.get(model)}
    with house_style():
        figure = new_figure(
            2.3 * len(found) + 0.8,
            6.2,
            title="What happens where induction heads can form, and where they cannot",
            notes=[
                "One curve per run. Orange: midpoint of a transition that two families of signals agree on. Steps as "
                "shares of the run, whose length stands above the column."
            ],
        )
        grid: Any = figure.subplots(3, len(found), sharey="row", sharex="col", squeeze=False)
        for column, (model, runs) in enumerate(found.items()):
            grid[0, column].set_title(
                f"{model.replace('_', ' ')}\n{len(runs)} run{'s' if len(runs) > 1 else ''}, {runs[0].num_steps:,} steps"
            )
            for axes, (name, label, color) in zip(grid[:, column], _ROWS, strict=True):
                _draw(axes, runs, name, color)
                if column == 0:
                    axes.set_ylabel(label)
        for axes in grid[:2].flat:
            axes.set_ylim(-0.05, 1.05)
        for axes in grid[2]:
            axes.set_yscale("log")
            axes.set_xlabel("share of the run")
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
            axes.set_xlim(0, 1)
        finish(figure)
    return figure


def _draw(axes: Axes, runs: Sequence[Outcome], name: str, color: str) -> None:
    for one in runs:
        heights = np.asarray(getattr(one, name), dtype=np.float64)
        if name == "largest_eigenvalue":
            heights = np.where(heights > 0, heights, np.nan)
        curve(axes, one.steps / one.num_steps, heights, color=color, lw=1.0, alpha=0.7)
        if one.verdict.midpoint is not None:
            axes.axvline(one.verdict.midpoint / one.num_steps, color=TRANSITION, lw=1.0, alpha=0.8, zorder=1.2)
