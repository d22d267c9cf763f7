"""Curves over steps, with the detected transition behind them; the page marks the chosen step on them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from spectral.plots.behaviour import ACCURACIES
from spectral.plots.curvature import CURVATURE_UNIT
from spectral.plots.report.heads import head_keys
from spectral.plots.report.thinning import curve_points
from spectral.plots.report.view import View, left_out, new_figure
from spectral.plots.source import values, values_or_none, yardstick
from spectral.plots.style import INK, MUTED, SIGNAL_COLORS, TRANSITION, ordered
from spectral.plots.verdict import Verdict
from spectral.storage import Run

POINTS = 1500  # of one curve; more are not told apart on a screen
_FEW_POINTS = 25  # up to here single points are marked
_HEIGHT = 270
_WIDE = 30.0  # ratio of largest to smallest from which on a linear axis hides the smaller half


def losses(run: Run, verdict: Verdict) -> View:
    """Draw training and probe losses.

    Raises:
        MissingDataError: there is none of them.
    """
    figure = _figure("loss (nats)")
    named = {
        "train/loss": ("training batch", SIGNAL_COLORS["train_loss"]),
        "behaviour/loss": ("held-out probe", SIGNAL_COLORS["loss"]),
        "behaviour/induction_loss": ("held-out, on repeats", SIGNAL_COLORS["induction_loss"]),
    }
    shown = total = 0
    for dataset, (label, color) in named.items():
        heights = values_or_none(run, dataset)
        if heights is not None:
            n = _curve(figure, run.steps_of(dataset), heights, label, color)
            shown, total = shown + n, total + len(heights)
    if not figure.data:
        values(run, "train/loss")  # raises with the reason
    _level(figure, yardstick(run, "behaviour/loss", "chance"), "uniform guess")
    figure.update_yaxes(rangemode="tozero")
    caption = "A plateau, then a fall of the light curve, is the model learning to continue repeats."
    return _view(run, verdict, "loss", "Loss", caption, figure, left_out(shown, total, "points"))


def accuracies(run: Run, verdict: Verdict) -> View:
    """Draw what share of the tokens that the context determines the model predicts, and its controls.

    Raises:
        MissingDataError: none was measured.
    """
    figure = _figure("share")
    shown = total = 0
    for name, label in ACCURACIES.items():
        heights = values_or_none(run, f"behaviour/{name}")
        if heights is not None:
            n = _curve(figure, run.steps, heights, label, SIGNAL_COLORS[name])
            shown, total = shown + n, total + len(heights)
    if not figure.data:
        values(run, "behaviour/induction_accuracy")
    _level(figure, yardstick(run, "behaviour/induction_accuracy", "chance"), "chance")
    figure.update_yaxes(range=[-0.03, 1.05])
    caption = "Induction accuracy counts only positions that a repeat determines; without repeats nothing can be known."
    return _view(run, verdict, "accuracy", "Accuracy", caption, figure, left_out(shown, total, "points"))


def eigenvalues(run: Run, verdict: Verdict) -> View:
    """Draw the largest Hessian eigenvalues with their error bounds.

    Raises:
        MissingDataError: no eigenvalues.
    """
    figure, note = _spectrum(run, "", "λ")
    caption = "Shaded around each curve: its error bound, often thinner than the line. Hollow: not converged."
    return _view(run, verdict, "eigenvalues", "Largest Hessian eigenvalues", caption, figure, note)


def negative_eigenvalues(run: Run, verdict: Verdict) -> View:
    """Draw the most negative Hessian eigenvalues with their error bounds.

    Raises:
        MissingDataError: no eigenvalues from the lower end.
    """
    figure, note = _spectrum(run, "negative_", "λ₋")
    caption = "Directions in which the loss curves downwards; large ones mean a saddle nearby."
    return _view(run, verdict, "negative_eigenvalues", "Most negative Hessian eigenvalues", caption, figure, note)


def alignment(run: Run, verdict: Verdict) -> View:
    """Draw which share of the squared gradient lies in the span of the top eigenvectors.

    Raises:
        MissingDataError: no alignment.
    """
    total = values(run, "hessian/gradient_alignment_total")
    chance = yardstick(run, "hessian/gradient_alignment", "chance")
    figure = _figure("share of |gradient|²")
    k = total.shape[1]
    ranks = sorted({1, 2, min(5, k), k} & set(range(1, k + 1)))
    n = sum(
        _curve(figure, run.steps, total[:, rank - 1], f"first {rank}", color)
        for rank, color in zip(ranks, ordered(len(ranks)), strict=True)
    )
    _level(figure, None if chance is None else k * chance, f"chance at k = {k}")
    figure.update_yaxes(range=[-0.03, 1.05])
    caption = "How much of the gradient lies in the space of the first k eigenvectors; chance is k / parameters."
    note = left_out(n, len(ranks) * len(total), "points")
    return _view(run, verdict, "alignment", "Gradient in the top eigenspace", caption, figure, note)


def induction_scores(run: Run, verdict: Verdict) -> View:
    """Draw the induction score of every head.

    Raises:
        MissingDataError: no scores.
    """
    caption = "Attention to what followed earlier occurrences of the current token: 1 is a perfect induction head."
    return _heads(run, verdict, "induction_score", "Induction score of every head", caption)


def previous_token_scores(run: Run, verdict: Verdict) -> View:
    """Draw the previous-token score of every head.

    Raises:
        MissingDataError: no scores.
    """
    caption = "Attention to the token before: the head an induction head reads from."
    return _heads(run, verdict, "previous_token_score", "Previous-token score of every head", caption)


CURVES = (losses, accuracies, induction_scores, previous_token_scores, eigenvalues, negative_eigenvalues, alignment)


def _heads(run: Run, verdict: Verdict, name: str, title: str, caption: str) -> View:
    scores = values(run, f"circuits/{name}")
    figure = _figure("share of attention")
    # Least first: what is drawn last lies on top.
    order = head_keys(run)[::-1]
    shown = sum(
        _curve(
            figure, run.steps, scores[:, key.layer, key.head], key.label, key.color, legend=key.in_legend, name=key.name
        )
        for key in order
    )
    figure.update_layout(legend_traceorder="reversed", hovermode="closest")
    _level(figure, yardstick(run, f"circuits/{name}", "chance"), "chance")
    figure.update_yaxes(range=[-0.03, 1.05])
    note = left_out(shown, len(order) * len(scores), "points")
    return _view(run, verdict, name, title, caption, figure, note)


def _spectrum(run: Run, prefix: str, symbol: str) -> tuple[go.Figure, str]:
    name = f"{prefix}eigenvalues"
    spectrum = values(run, f"hessian/{name}")
    bounds = values_or_none(run, f"hessian/{prefix}error_bounds")
    converged = values_or_none(run, f"hessian/{prefix}converged")
    steps, k = run.steps, spectrum.shape[1]
    figure = _figure(CURVATURE_UNIT)
    finite = spectrum[np.isfinite(spectrum)]
    log = bool(finite.min() > 0 and finite.max() > _WIDE * finite.min())
    shown = 0
    for rank, color in reversed(list(enumerate(ordered(k)))):
        heights = spectrum[:, rank]
        kept = curve_points(heights, POINTS)
        if bounds is not None:
            _band(figure, steps[kept], heights[kept], bounds[kept, rank], color, floor=finite.min() if log else None)
        shown += _curve(figure, steps, heights, f"{symbol}{rank + 1}", color, width=2.2 if rank == 0 else 1.3)
    if converged is not None:
        where, rank_of = np.nonzero((converged == 0) & np.isfinite(spectrum))
        if len(where):
            figure.add_scatter(
                x=steps[where], y=spectrum[where, rank_of], mode="markers", name="not converged",
                marker={"symbol": "circle-open", "size": 8, "color": INK}, hoverinfo="skip",
            )  # fmt: skip
    figure.update_layout(legend_traceorder="reversed")
    if log:
        figure.update_yaxes(type="log", tickvals=_decades(finite.min(), finite.max()), tickformat="~r")
    return figure, left_out(shown, spectrum.size, "points")


def _decades(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten between two positive numbers; only the powers over a wide range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [factor * 10.0**power for power in powers for factor in ((1, 2, 5) if len(powers) < 5 else (1,))]


def _band(
    figure: go.Figure, steps: np.ndarray, heights: np.ndarray, bounds: np.ndarray, color: str, *, floor: float | None
) -> None:
    """Shade between value - bound and value + bound; on a logarithmic axis not below `floor` / 1000."""
    known = np.isfinite(heights) & np.isfinite(bounds)
    if not known.any():
        return
    low, high = heights[known] - bounds[known], heights[known] + bounds[known]
    if floor is not None:
        low = np.maximum(low, floor / 1000)
    figure.add_scatter(
        x=np.concatenate([steps[known], steps[known][::-1]]), y=np.concatenate([high, low[::-1]]), mode="lines",
        line={"width": 0}, fill="toself", fillcolor=_translucent(color), hoverinfo="skip", showlegend=False,
        name="bound",
    )  # fmt: skip


def _curve(
    figure: go.Figure, steps: np.ndarray, heights: np.ndarray, label: str, color: str, *,
    width: float = 1.6, legend: bool = True, name: str = "",
) -> int:  # fmt: skip
    """Add one curve, thinned; NaN leaves gaps. Return how many points it has."""
    kept = curve_points(heights, POINTS)
    gaps = np.count_nonzero(np.isnan(heights))
    single = len(heights) - gaps <= _FEW_POINTS or gaps > 1
    figure.add_scatter(
        x=steps[kept], y=heights[kept], mode="lines+markers" if single else "lines", name=label,
        line={"color": color, "width": width}, marker={"size": 4}, showlegend=legend,
        hovertemplate=f"{name or label} %{{y:.4g}}<extra></extra>",
    )  # fmt: skip
    return len(kept)


def _level(figure: go.Figure, height: float | None, label: str) -> None:
    """Draw a dotted yardstick that the legend explains; nothing where it is not known."""
    if height is None:
        return
    ends = [min(trace.x[0] for trace in figure.data), max(trace.x[-1] for trace in figure.data)]
    figure.add_scatter(
        x=ends, y=[height, height], mode="lines", name=f"{label} {height:.3g}", hoverinfo="skip",
        line={"color": MUTED, "width": 1.2, "dash": "dot"},
    )  # fmt: skip


def _figure(unit: str) -> go.Figure:
    figure = new_figure(height=_HEIGHT)
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(title={"text": "step", "standoff": 4}, separatethousands=True)
    figure.update_yaxes(title={"text": unit, "standoff": 6})
    return figure


def _view(
    run: Run, verdict: Verdict, name: str, title: str, caption: str, figure: go.Figure, note: str
) -> View:  # fmt: skip
    places = np.concatenate([run.train_steps, run.steps])
    low, high = float(places.min()), float(places.max())
    figure.update_xaxes(range=[low, high] if high > low else [low - 0.5, high + 0.5])
    figure.update_layout(shapes=transition_shapes(verdict))
    return View(
        name=name, group="curves", title=title, caption=caption, figure=figure, note=note, has_step_axis=True
    )  # fmt: skip


def transition_shapes(verdict: Verdict) -> list[dict[str, Any]]:
    """Return band from onset to end, darker interval and line at the midpoint; none without a transition."""
    if verdict.onset is None or verdict.midpoint is None or verdict.end is None:
        return []

    def band(ends: Sequence[float], opacity: float, name: str) -> dict[str, Any]:
        return {
            "type": "rect", "x0": ends[0], "x1": ends[1], "y0": 0, "y1": 1, "yref": "paper", "layer": "below",
            "fillcolor": TRANSITION, "opacity": opacity, "line": {"width": 0}, "name": name,
        }  # fmt: skip

    line = {
        "type": "line", "x0": verdict.midpoint, "x1": verdict.midpoint, "y0": 0, "y1": 1, "yref": "paper",
        "layer": "below", "line": {"color": TRANSITION, "width": 1.5}, "name": "transition-midpoint",
    }  # fmt: skip
    shapes = [band((verdict.onset, verdict.end), 0.16, "transition-band")]
    if verdict.interval is not None:
        shapes.append(band(verdict.interval, 0.28, "transition-interval"))
    return [*shapes, line]


def _translucent(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.25)"
