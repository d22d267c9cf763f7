"""Figures of the Hessian: eigenvalues with their bounds, gradient alignment, where eigenvectors live."""

import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from spectral.plots.panels import color_bar, curve, heat_map, reference, run_note, step_axes, wide_scale
from spectral.plots.source import values, values_or_none, yardstick
from spectral.plots.style import (
    INK,
    MUTED,
    SIGNAL_COLORS,
    finish,
    house_style,
    legend_right,
    new_figure,
    ordered,
)
from spectral.plots.verdict import mark_transition, mark_transition_on_image, read_verdict
from spectral.storage import Run

CURVATURE_UNIT = "nats / parameter²"
_MAX_BLOCKS = 10
_SMALL_BLOCK = 0.02
_MAX_VECTORS = 3
_LABELLED_RANKS = 10


def eigenvalues(run: Run, *, log_steps: bool = False) -> Figure:
    """Draw the largest and the most negative Hessian eigenvalues with error bounds, and the trace.

    Raises:
        MissingDataError: no eigenvalues from either end.
    """
    with house_style():
        verdict = read_verdict(run)
        top, bottom = values_or_none(run, "hessian/eigenvalues"), values_or_none(run, "hessian/negative_eigenvalues")
        if top is None and bottom is None:
            values(run, "hessian/eigenvalues")  # raises with the reason
        trace = values_or_none(run, "hessian/trace")
        parts = [(top, 3.2), (bottom, 1.7), (trace, 1.5)]
        heights = [height for part, height in parts if part is not None]
        figure = new_figure(
            8.6, sum(heights), title="Hessian eigenvalues", notes=[verdict.sentence, run_note(run) + verdict.band_key]
        )
        panels = list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
        rest = iter(panels)
        if top is not None:
            axes = next(rest)
            draw_eigenvalues(axes, run, top, prefix="", label="largest eigenvalues")
            legend_right(axes)
        if bottom is not None:
            axes = next(rest)
            draw_eigenvalues(axes, run, bottom, prefix="negative_", label="most negative")
            legend_right(axes)
        if trace is not None:
            _draw_trace(next(rest), run, trace)
        # The unit is long; once for all panels it stays legible.
        figure.supylabel(CURVATURE_UNIT, fontsize=9.0, color=INK)
        step_axes(panels, run.steps, log_steps=log_steps)
        mark_transition(panels, verdict)
        return finish(figure)


def gradient_alignment(run: Run, *, log_steps: bool = False) -> Figure:
    """Draw how much of the gradient lies along each top eigenvector, their running sum, and how eigenvectors persist.

    Raises:
        MissingDataError: no gradient alignment.
    """
    with house_style():
        verdict = read_verdict(run)
        cosines = values(run, "hessian/gradient_alignment")
        total = values_or_none(run, "hessian/gradient_alignment_total")
        overlap = values_or_none(run, "hessian/eigenvector_overlap")
        chance = yardstick(run, "hessian/gradient_alignment", "chance")
        steps, ranks = run.steps, np.arange(1, cosines.shape[1] + 1)
        parts = [(cosines, 2.2), (total, 2.3), (overlap, 2.2)]
        heights = [height for part, height in parts if part is not None]
        notes = [verdict.sentence, run_note(run) + verdict.band_key + verdict.line_key]
        if chance is None:
            notes.append("The chance level 1/n is not stored with this run.")
        figure = new_figure(8.6, sum(heights), title="Gradient and top eigenvectors", notes=notes)
        panels = list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
        rest = iter(panels)

        axes = next(rest)
        mesh = heat_map(axes, steps, ranks, np.clip(cosines, 1e-300, None), _share_norm(cosines, chance))
        bar = color_bar(axes, mesh, "cos²", extend="min")
        if chance is not None:
            bar.ax.axhline(chance, color=INK, lw=1.2, gid="chance")
            bar.ax.annotate(
                "chance 1/n",
                (1.0, chance),
                (4, 0),
                textcoords="offset points",
                xycoords=("axes fraction", "data"),
                fontsize=7.5,
                va="center",
                annotation_clip=False,
                bbox={"fc": "white", "ec": "none", "pad": 0.5},
            )
        _rank_axis(axes, ranks, "cos² between gradient and eigenvector, by rank")
        mark_transition_on_image(axes, verdict)

        if total is not None:
            axes = next(rest)
            draw_alignment(axes, run, total, chance)
            axes.set_title("share of the squared gradient inside the first k eigenvectors")
            legend_right(axes)
            mark_transition([axes], verdict)
        if overlap is not None:
            axes = next(rest)
            mesh = heat_map(axes, steps, ranks, overlap, Normalize(0.0, 1.0))
            color_bar(axes, mesh, "squared overlap")
            expected = yardstick(run, "hessian/eigenvector_overlap", "chance")
            known = "" if expected is None else f" (chance {expected:.2g})"
            _rank_axis(axes, ranks, f"eigenvector inside the top subspace of the snapshot before, by rank{known}")
            mark_transition_on_image(axes, verdict)
        step_axes(panels, steps, log_steps=log_steps)
        return finish(figure)


def eigenvector_blocks(run: Run, *, log_steps: bool = False) -> Figure:
    """Draw which parameter blocks carry the leading eigenvectors; blocks that never matter are drawn as one row.

    Raises:
        MissingDataError: no block masses.
    """
    with house_style():
        verdict = read_verdict(run)
        mass = values(run, "hessian/block_mass")[:, :_MAX_VECTORS]
        names, grouped = group_blocks(mass, run.layout.block_names)
        n_vectors, n_rows = grouped.shape[1], len(names)
        height = n_vectors * max(1.0, 0.16 * n_rows + 0.35)
        figure = new_figure(
            8.6,
            height + 0.3,
            title="Where the leading eigenvectors live",
            notes=[
                "Share of the squared eigenvector within each parameter block; the rows of a panel sum to 1.",
                verdict.sentence,
                run_note(run) + verdict.line_key,
            ],
        )
        panels = list(figure.subplots(n_vectors, 1, sharex=True, squeeze=False)[:, 0])
        norm = Normalize(0.0, max(float(np.nanmax(grouped)), 1e-12))
        rows = np.arange(n_rows)
        for rank, axes in enumerate(panels):
            mesh = heat_map(axes, run.steps, rows, grouped[:, rank], norm)
            axes.set_yticks(rows, names, fontsize=7.5)
            axes.tick_params(axis="y", length=0)
            axes.invert_yaxis()
            axes.set_title(f"eigenvector {rank + 1} (eigenvalue λ{_subscript(rank + 1)})")
            mark_transition_on_image(axes, verdict)
        figure.colorbar(mesh, ax=panels, label="share of the squared eigenvector", pad=0.01, aspect=30, shrink=0.6)
        step_axes(panels, run.steps, log_steps=log_steps)
        return finish(figure)


def draw_eigenvalues(
    axes: Axes, run: Run, spectrum: np.ndarray, *, prefix: str, label: str, n_ranks: int | None = None
) -> None:
    """Draw eigenvalues [step, rank] with their bounds; unconverged ones are hollow.

    Args:
        axes: the panel.
        run: where bounds, convergence and noise floor come from.
        spectrum: from one end.
        prefix: of the datasets beside it: "" or "negative_".
        label: title of the panel.
        n_ranks: only the outermost so many; None draws all.
    """
    steps = run.steps
    k = spectrum.shape[1] if n_ranks is None else min(n_ranks, spectrum.shape[1])
    spectrum = spectrum[:, :k]
    bounds = values_or_none(run, f"hessian/{prefix}error_bounds")
    converged = values_or_none(run, f"hessian/{prefix}converged")
    floors = values_or_none(run, "hessian/noise_floor")
    floor = 0.0 if floors is None else float(np.nanmax(floors))
    scale = wide_scale(axes, spectrum, floor)
    colors = ordered(k)
    name = "λ" if not prefix else "λ₋"
    for rank in range(k):
        heights = spectrum[:, rank]
        shown = f"{name}{_subscript(rank + 1)}" if _is_labelled(rank, k) else "_hidden"
        # The outermost curve lies on top.
        width, order = (1.7 if rank == 0 else 1.1), 3 - rank / 50
        curve(axes, steps, heights, color=colors[rank], lw=width, label=shown, zorder=order, gid=f"{prefix}rank-{rank}")
        if bounds is not None and np.isfinite(bounds[:, rank]).any():
            low, high = heights - bounds[:, rank], heights + bounds[:, rank]
            if scale == "log":
                low = np.maximum(low, 1e-3 * np.nanmin(spectrum))
            axes.fill_between(steps, low, high, color=colors[rank], alpha=0.25, lw=0, zorder=2)
    if bounds is not None and np.isfinite(bounds[:, :k]).any():
        axes.fill_between(
            [], [], [], color=MUTED, alpha=0.3, lw=0, label=f"error bound\n(at most {np.nanmax(bounds[:, :k]):.1g})"
        )
    if converged is not None:
        where, rank_of = np.nonzero((converged[:, :k] == 0) & np.isfinite(spectrum))
        if len(where):
            axes.scatter(
                steps[where],
                spectrum[where, rank_of],
                s=13,
                facecolors="white",
                edgecolors=[colors[r] for r in rank_of],
                linewidths=0.9,
                zorder=4,
                label="not converged",
                gid="unconverged",
            )
    low, high = axes.get_ylim()
    if scale == "log":
        low, high = float(np.nanmin(spectrum)) / 1.6, float(np.nanmax(spectrum)) * 1.6
    elif scale == "linear":
        span = float(np.nanmax(spectrum) - np.nanmin(spectrum)) or abs(float(np.nanmax(spectrum))) or 1.0
        low, high = float(np.nanmin(spectrum)) - 0.06 * span, float(np.nanmax(spectrum)) + 0.06 * span
    if floors is not None:
        _draw_floor(axes, steps, floors, low, high, negative=bool(prefix))
    if low < 0 < high:
        axes.axhline(0.0, color=MUTED, lw=0.8, zorder=1.5)
    axes.set_ylim(low, high)
    axes.set_title(label)


def draw_alignment(axes: Axes, run: Run, total: np.ndarray, chance: float | None, *, chosen: int = 4) -> None:
    """Draw cumulative alignment [step, rank] for a few k, each with its chance k/n where n is known.

    Args:
        axes: the panel.
        run: for the steps.
        total: running sums over ranks.
        chance: 1/n.
        chosen: at most so many k.
    """
    k = total.shape[1]
    shown = sorted({1, 2, min(5, k), k} & set(range(1, k + 1)))[-chosen:]
    for color, count in zip(ordered(len(shown)), shown, strict=True):
        curve(axes, run.steps, total[:, count - 1], color=color, label=f"k = {count}")
    if chance is not None:
        reference(axes, k * chance, f"chance k/n = {k * chance:.2g}\nat k = {k}")
    axes.set_ylim(-0.03, 1.05)
    axes.set_ylabel("share")


def _draw_trace(axes: Axes, run: Run, trace: np.ndarray) -> None:
    steps, errors = run.steps, values_or_none(run, "hessian/trace_standard_error")
    color = SIGNAL_COLORS["trace"]
    curve(axes, steps, trace, color=color, label="estimate")
    if errors is not None:
        axes.fill_between(
            steps, trace - 2 * errors, trace + 2 * errors, color=color, alpha=0.2, lw=0, label="±2 standard errors"
        )
    if np.nanmin(trace) < 0 < np.nanmax(trace):
        axes.axhline(0.0, color=MUTED, lw=0.8, zorder=1.5)
    gaps = np.isnan(trace).any()
    axes.set_title("trace (not estimated at every snapshot)" if gaps else "trace")
    legend_right(axes)


def _draw_floor(axes: Axes, steps: np.ndarray, floors: np.ndarray, low: float, high: float, *, negative: bool) -> None:
    """Draw the noise floor, or say in the legend that it lies outside: it must not squeeze the eigenvalues."""
    drawn = -floors if negative else floors
    # Near zero on a linear axis the line would lie on the zero line, and say nothing.
    visible = (drawn > low) & (drawn < high) & (floors > 0.004 * (high - low) if low <= 0 else True)
    if visible.any():
        axes.plot(steps, drawn, color=INK, ls=":", lw=1.0, label="noise floor", gid="noise-floor")
        return
    axes.plot([], [], color=INK, ls=":", lw=1.0, label=f"noise floor ≤ {np.nanmax(floors):.1g}\n(too small to show)")


def _share_norm(cosines: np.ndarray, chance: float | None) -> LogNorm:
    positive = cosines[cosines > 0]
    largest = float(positive.max()) if len(positive) else 1.0
    # A fifth of chance is where more darkness would only show noise.
    low = chance / 5 if chance else float(positive.min()) if len(positive) else 1e-6
    return LogNorm(min(low, largest / 10), max(largest, 10 * low))


def _rank_axis(axes: Axes, ranks: np.ndarray, title: str) -> None:
    axes.set_yticks(ranks if len(ranks) <= 12 else ranks[:: max(1, len(ranks) // 8)])
    axes.invert_yaxis()
    axes.set_ylabel("rank (1 = largest)")
    axes.set_title(title)


def group_blocks(mass: np.ndarray, names: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Return names and masses [step, rank, row], with the blocks that matter least summed, one row per layer."""
    peak = np.where(np.isnan(mass), 0.0, mass).max(axis=(0, 1))
    kept = np.zeros(len(names), dtype=bool)
    kept[np.argsort(-peak, kind="stable")[:_MAX_BLOCKS]] = True
    kept &= peak >= _SMALL_BLOCK
    rest: dict[str, list[int]] = {}
    for i in np.flatnonzero(~kept):
        layer = re.match(r"L\d+", names[i])
        rest.setdefault(layer[0] if layer else "", []).append(int(i))
    for layer_name in [name for name, members in rest.items() if len(members) == 1]:
        kept[rest.pop(layer_name)] = True  # a group of one would hide a name for nothing
    rows: dict[str, list[int]] = {names[i]: [int(i)] for i in np.flatnonzero(kept)}
    for layer_name, members in rest.items():
        rows[f"{layer_name}: {len(members)} others" if layer_name else f"{len(members)} others"] = members
    return list(rows), np.stack([mass[..., members].sum(axis=-1) for members in rows.values()], axis=-1)


def _is_labelled(rank: int, k: int) -> bool:
    return k <= _LABELLED_RANKS or rank in (0, 1, 2, 4, 9, k - 1)


def _subscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
