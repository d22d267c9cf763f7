"""Losses of every stage beside those of the observers, and the Hessian eigenvalues of every stage."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral.gih import GIHResults
from spectral.plots.gih.source import MissingPartError, log_time, run_line, stage_title, time_label
from spectral.plots.style import MUTED, finish, house_style, new_figure, ordered

_TEXTS = {"double_softmax": "double-softmax loss", "nll": "cross-entropy"}
_OBSERVERS = {"unigram": "-.", "bayes": "--", "truth": ":"}
_MOST_EIGENVALUES = 8


def losses(run: GIHResults) -> Figure:
    """Draw both losses of every stage on training and held-out chains; they share no axis."""
    with house_style():
        begun = _begun(run)
        notes = [
            run_line(run),
            "Minimised: "
            + _TEXTS[run.config.loss]
            + ". The two losses are different quantities; the double softmax is "
            "no proper score, so a sharp model may lie below the Bayes observer.",
        ]
        figure = new_figure(3.7 * len(begun) + 1.8, 5.2, title="Losses", notes=notes)
        panels = figure.subplots(2, len(begun), squeeze=False)
        for column, stage in enumerate(begun):
            rows = run.rows_of(stage)
            times = run.read("time")[rows]
            for axes, (name, text) in zip(panels[:, column], _TEXTS.items(), strict=True):
                for kind, color, label in (("train", "#a3a3a3", "training"), ("validation", "#332288", "held-out")):
                    values = run.read(f"{kind}_{name}")[rows]
                    if np.isfinite(values).all():
                        axes.plot(times, values, color=color, label=label)
                _observers(run, axes, name, everywhere=stage == begun[-1])
                log_time(axes, times, time_label(run, stage))
                axes.set_title(f"{stage_title(run, stage)}\n{text}" if axes is panels[0, column] else text)
        for row in panels:
            row[0].set_ylabel("nats")
            row[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0.0)
        return finish(figure)


def hessian_eigenvalues(run: GIHResults) -> Figure:
    """Draw the largest and the smallest eigenvalues of the Hessian of the training loss in each stage.

    Raises:
        MissingPartError: no row has a spectrum.
    """
    with house_style():
        found = run.read("eigenvalues")
        measured = ~np.isnan(found).all(axis=1) if found.shape[1] else np.zeros(len(found), dtype=bool)
        if not measured.any():
            msg = "no row carries eigenvalues; train with --hessian_points"
            raise MissingPartError(msg)
        begun = [stage for stage in _begun(run) if measured[run.rows_of(stage)].any()]
        n = min(_MOST_EIGENVALUES, found.shape[1])
        whole = found.shape[1] > _MOST_EIGENVALUES and run.config.model == "simplified"
        notes = [run_line(run), "Of the training loss in all parameters, those that stand still included."]
        figure = new_figure(3.7 * len(begun) + 1.8, 3.6, title="Hessian eigenvalues", notes=notes)
        panels = figure.subplots(1, len(begun), squeeze=False, sharey=True)[0]
        colors = ordered(n)
        for axes, stage in zip(panels, begun, strict=True):
            rows = run.rows_of(stage)
            rows = rows[measured[rows]]
            times = run.read("time")[rows]
            for rank in range(n):
                axes.plot(
                    times, found[rows, rank], color=colors[rank], marker="o", ms=2.5, label=f"$\\lambda_{rank + 1}$"
                )
            if whole:
                last = np.nanmin(found[rows], axis=1)
                axes.plot(times, last, color="#cc6677", marker="o", ms=2.5, label="smallest")
            axes.axhline(0, color=MUTED, lw=0.8)
            log_time(axes, run.read("time")[run.rows_of(stage)], time_label(run, stage))
            axes.set_title(stage_title(run, stage))
        size = np.abs(found[measured])
        panels[0].set_yscale("symlog", linthresh=max(1e-4 * float(np.nanmax(size)), 1e-12), linscale=0.5)
        panels[0].set_ylabel("nats / parameter²")
        panels[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0.0)
        return finish(figure)


def _begun(run: GIHResults) -> list[int]:
    return [stage for stage in range(len(run.stage_names)) if len(run.rows_of(stage))]


def _observers(run: GIHResults, axes: Axes, name: str, *, everywhere: bool) -> None:
    """Draw the observers' losses; where a stage changes little, only those within sight of its curves."""
    known = [str(other) for other in run.dataset["reference"].values] if "reference" in run.dataset else []
    low, high = axes.get_ylim()
    for observer, style in _OBSERVERS.items():
        if observer in known:
            height = float(run.read(f"reference_{name}")[known.index(observer)])
            if everywhere or low <= height <= high:
                axes.axhline(height, color="#117733", ls=style, lw=1.1, label=f"{observer} {height:.3f}")
