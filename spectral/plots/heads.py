"""Figures of the attention heads: pattern scores, and the weight circuits behind them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure

from spectral.plots.panels import curve, reference, run_note, score_yardsticks, step_axes
from spectral.plots.source import (
    Head,
    best_heads,
    best_pairs,
    head_name,
    highest,
    nearest,
    pair_name,
    setting,
    values,
    values_or_none,
    yardstick,
)
from spectral.plots.style import (
    CATEGORICAL,
    FAINT,
    INK,
    MUTED,
    categorical,
    finish,
    house_style,
    legend_right,
    new_figure,
    ordered,
)
from spectral.plots.verdict import Verdict, mark_transition, read_verdict
from spectral.storage import Run

PATTERN_SCORES = {
    "induction_score": "induction",
    "previous_token_score": "previous token",
    "duplicate_token_score": "duplicate token",
}
CONTENT_MATCH = "content_match_fraction"
_NAMED_HEADS = 9  # as many as there are colours; further heads are grey
_NAMED_IN_WEIGHTS = 6
_NAMED_PAIRS = 6


def head_scores(run: Run, *, log_steps: bool = False) -> Figure:
    """Draw the attention-pattern scores: one row of panels per layer, one panel per score, one curve per head.

    The last column tells which of the high induction scores survive unseen gaps.

    Raises:
        MissingDataError: none of the scores.
    """
    with house_style():
        verdict = read_verdict(run)
        found = {name: values_or_none(run, f"circuits/{name}") for name in PATTERN_SCORES}
        scores = {name: score for name, score in found.items() if score is not None}
        if not scores:
            values(run, "circuits/induction_score")  # raises with the reason
        n_layers = run.layout.n_layers
        content = values_or_none(run, f"circuits/{CONTENT_MATCH}")
        titles = dict(PATTERN_SCORES)
        columns = dict(scores)
        if content is not None:
            columns[CONTENT_MATCH], titles[CONTENT_MATCH] = content, "content match"
        figure = new_figure(
            10.2 if content is None else 12.6,
            0.35 + 2.15 * n_layers,
            title="Attention-pattern scores",
            notes=[verdict.sentence, run_note(run) + verdict.band_key],
        )
        grid = figure.subplots(n_layers, len(columns), sharex=True, sharey=True, squeeze=False)
        for layer in range(n_layers):
            # The curves of one head have one colour in all panels, so the row needs one legend.
            peak = np.stack([score[:, layer] for score in scores.values()]).max(axis=0)
            named = [head for _, head in best_heads(peak[:, None], _NAMED_HEADS)]
            for column, (name, score) in enumerate(columns.items()):
                axes = grid[layer, column]
                _draw_layer(axes, run.steps, score[:, layer], layer, sorted(named))
                chance = yardstick(run, f"circuits/{name}", "chance")
                # The chance level differs between columns, so its number stands in the title and not in the legend.
                reference(axes, yardstick(run, f"circuits/{name}", "ceiling"), "ceiling", style="--", gid="ceiling")
                reference(axes, chance, "chance")
                if layer == 0:
                    known = "chance not stored" if chance is None else f"chance {chance:.3f}"
                    meaning = "1 induction, 0 positional" if name == CONTENT_MATCH else known
                    axes.set_title(f"{titles[name]} ({meaning})")
                axes.set_ylim(-0.03, 1.05)
                if not np.isfinite(score[:, layer]).any():
                    why = "no head has an induction\nscore above 0.2" if name == CONTENT_MATCH else "not measured"
                    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", color=MUTED, fontsize=8.0)
            grid[layer, 0].set_ylabel(f"layer {layer}\nscore (share of attention)")
            if not any(line.get_gid() == "chance" for line in grid[layer, -1].lines):
                # The legend of the row stands at its last panel, which may be the one without chance.
                grid[layer, -1].plot([], [], color=MUTED, ls=":", lw=1.1, label="chance")
            legend_right(grid[layer, -1])
        for column in range(len(columns)):
            step_axes(list(grid[:, column]), run.steps, log_steps=log_steps)
        mark_transition(grid.flat, verdict)
        return finish(figure)


def circuit_metrics(run: Run, *, log_steps: bool = False) -> Figure:
    """Draw OV copying and QK matching per head, the strongest compositions, and OV eigenvalues of the induction head.

    K- and Q-composition also stand there in standard deviations of random weights, so that the two can be compared.

    Raises:
        MissingDataError: none of these was stored.
    """
    with house_style():
        verdict = read_verdict(run)
        singles = [("ov_copying_score", "OV copying (+1 copies tokens)"), ("qk_matching_score", "QK matching")]
        pairs = [
            ("k_composition", "K-composition"),
            ("k_composition_matching", "K-composition matching"),
            ("k_composition_z", "K-composition z (sd from random weights)"),
            ("q_composition_z", "Q-composition z (sd from random weights)"),
        ]
        lines = [(name, title) for name, title in (*singles, *pairs) if _has(run, name)]
        spectrum = values_or_none(run, "circuits/ov_eigenvalues")
        induction = values_or_none(run, "circuits/induction_score")
        best = best_heads(induction, 1) if induction is not None else []
        planes = bool(best) and spectrum is not None
        if not lines and not planes:
            values(run, "circuits/ov_copying_score")  # raises with the reason
        n_rows = (len(lines) + 1) // 2
        notes = [verdict.sentence, run_note(run) + verdict.band_key]
        figure = new_figure(10.2, 2.3 * n_rows + (3.1 if planes else 0.0), title="Weight circuits", notes=notes)
        # Sub-figures, because the square planes below must not widen the margins of the curves above.
        heights = [*([2.3 * n_rows] if lines else []), *([3.1] if planes else [])]
        parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        if lines:
            grid = parts[0].subplots(n_rows, 2, squeeze=False)
            panels = list(grid.flat)
            known: tuple[dict[tuple[int, ...], str], dict[tuple[int, ...], str]] = ({}, {})
            for axes, (name, title) in zip(panels, lines, strict=False):
                _draw_circuit_score(axes, run, name, known["composition" in name])
                axes.set_title(title)
                legend_right(axes)
            for axes in panels[len(lines) :]:
                axes.remove()
            for column in range(2):
                step_axes(panels[column : len(lines) : 2], run.steps, log_steps=log_steps)
            mark_transition(panels[: len(lines)], verdict)
        if planes and spectrum is not None:
            layer, head = best[0]
            _draw_planes(parts[-1], run.steps, spectrum[:, layer, head], best[0], verdict)
        return finish(figure)


def draw_best_heads(axes: Axes, run: Run, chosen: dict[str, int]) -> list[str]:
    """Draw the curves of the best heads of each score, and return the scores that were not measured.

    Args:
        axes: the panel.
        run: the run.
        chosen: name of the score -> how many heads.
    """
    missing = []
    colors = iter(categorical(sum(chosen.values())))
    for name, n in chosen.items():
        score = values_or_none(run, f"circuits/{name}")
        if score is None:
            missing.append(name)
            continue
        for i, (layer, head) in enumerate(best_heads(score, n)):
            label = f"{head_name(layer, head)} {PATTERN_SCORES[name]}"
            style = ("-", "--", ":")[i % 3]
            curve(axes, run.steps, score[:, layer, head], color=next(colors), ls=style, label=label, gid=name)
    axes.set_ylim(-0.03, 1.05)
    axes.set_ylabel("score")
    return missing


def _draw_layer(axes: Axes, steps: np.ndarray, score: np.ndarray, layer: int, named: Sequence[int]) -> None:
    """Draw the heads [step, head] of one layer: the named ones in colour, the others as one grey collection."""
    others = [head for head in range(score.shape[1]) if head not in named]
    for color, head in zip(categorical(len(named)), named, strict=True):
        curve(axes, steps, score[:, head], color=color, lw=1.3, label=head_name(layer, head))
    _grey(axes, steps, [score[:, head] for head in others])


def _draw_circuit_score(axes: Axes, run: Run, name: str, colors: dict[tuple[int, ...], str]) -> None:
    """Draw one weight score; `colors` gives a head or a pair one colour in all panels, and is added to."""
    score = values(run, f"circuits/{name}")
    if score.ndim == 3:
        chosen: list[tuple[int, ...]] = list(best_heads(score, _NAMED_IN_WEIGHTS))
        labels = [head_name(*head) for head in chosen]
        noun = "heads"
    else:
        chosen = list(best_pairs(score, _NAMED_PAIRS))
        labels = [pair_name((a, b, c, d)) for a, b, c, d in chosen]
        noun = "pairs"
    peak = highest(score)
    others = [index for index in np.ndindex(*peak.shape) if np.isfinite(peak[index]) and index not in chosen]
    mine = _panel_colors(chosen, colors)
    for index, label in zip(chosen, labels, strict=True):
        curve(axes, run.steps, _over_steps(score, index), color=mine[index], lw=1.3, label=label)
    _grey(axes, run.steps, [_over_steps(score, index) for index in others], label=f"{len(others)} other {noun}")
    path = f"circuits/{name}"
    chance, null_sd = yardstick(run, path, "chance"), yardstick(run, path, "null_sd")
    ceiling = yardstick(run, path, "ceiling")
    if name == "k_composition":
        d_model = setting(run, "d_model")
        chance = 1 / math.sqrt(d_model) if chance is None and d_model else chance
        # Its ceiling needs one rank-1 head reading another; drawn, it would squeeze what happens near chance.
        score_yardsticks(axes, chance, None, null_sd)
        axes.set_ylabel("‖OV·QK‖ ratio")
    elif name.endswith("_z"):
        score_yardsticks(axes, chance, None, 1.0)
        axes.set_ylabel("standard deviations")
    else:
        score_yardsticks(axes, chance, ceiling, null_sd)
        axes.set_ylim(-1.05, 1.05)
        axes.set_ylabel("score, −1 to 1")
    largest = yardstick(run, path, "max_null_q95")
    if largest is not None:
        reference(axes, largest, f"largest at random,\n95 %: {largest:.2g}", style="-.", gid="largest-null")


def _panel_colors(chosen: Sequence[tuple[int, ...]], colors: dict[tuple[int, ...], str]) -> dict[tuple[int, ...], str]:
    """Return a different colour for each curve of a panel, the known one where it is free; new ones are remembered."""
    mine: dict[tuple[int, ...], str] = {}
    for index in chosen:
        if index in colors and colors[index] not in mine.values():
            mine[index] = colors[index]
    for index in chosen:
        if index not in mine:
            free = [color for color in CATEGORICAL if color not in mine.values()]
            unseen = [color for color in free if color not in colors.values()]
            mine[index] = (unseen or free)[0]
    for index, color in mine.items():
        colors.setdefault(index, color)
    return mine


def _draw_planes(part: SubFigure, steps: np.ndarray, spectrum: np.ndarray, best: Head, verdict: Verdict) -> None:
    """Draw eigenvalues [step, eigen, part] in the complex plane before, in and after the transition."""
    if verdict.onset is not None and verdict.midpoint is not None and verdict.end is not None:
        width = verdict.end - verdict.onset
        places = [verdict.onset - width, verdict.midpoint, verdict.end + width]
        words = ["before", "midpoint", "after"]
    else:
        places = [float(steps[0]), float(steps[len(steps) // 2]), float(steps[-1])]
        words = ["first snapshot", "middle", "last snapshot"]
    chosen = [nearest(steps, place) for place in places]
    reach = float(np.nanmax(np.abs(spectrum[chosen]), initial=0.0)) if np.isfinite(spectrum[chosen]).any() else 1.0
    reach = 1.12 * (reach or 1.0)
    part.suptitle(
        f"OV eigenvalues of {head_name(*best)}, the head with the highest induction score (right of zero: copying)",
        fontsize=9.5,
        x=0.01,
        ha="left",
        color=INK,
    )
    grid = part.subplots(1, 3, squeeze=False)[0]
    for axes, color, i, word in zip(grid, ordered(3), chosen, words, strict=True):
        axes.axhline(0, color=MUTED, lw=0.8)
        axes.axvline(0, color=MUTED, lw=0.8)
        axes.scatter(
            spectrum[i, :, 0], spectrum[i, :, 1], s=20, color=color, alpha=0.85, linewidths=0, zorder=3, gid="ov-plane"
        )
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="real part (logit)")
        axes.set_title(f"{word}: step {steps[i]:,}")
        axes.locator_params(nbins=5)
    grid[0].set_ylabel("imaginary part (logit)")


def _grey(axes: Axes, steps: np.ndarray, heights: list[np.ndarray], label: str | None = None) -> None:
    # One collection instead of a hundred lines: drawing time goes with the number of artists.
    if not heights:
        return
    lines = LineCollection(
        [np.column_stack([steps, height]) for height in heights], colors=FAINT, linewidths=0.8, zorder=1.8
    )
    lines.set_label(label or f"{len(heights)} other heads")
    axes.add_collection(lines)
    axes.autoscale_view()


def _over_steps(scores: np.ndarray, index: tuple[int, ...]) -> np.ndarray:
    everything: tuple[Any, ...] = (slice(None), *index)
    return np.asarray(scores[everything])


def _has(run: Run, name: str) -> bool:
    return values_or_none(run, f"circuits/{name}") is not None
