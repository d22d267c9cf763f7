"""The figures of the study: accuracies, how far heads look, repeated tokens, head scores and maps, the long run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spectral.behaviour import equal_count_ceiling
from spectral.config import RunConfig
from spectral.plots.panels import curve, step_axes
from spectral.plots.source import head_name
from spectral.plots.style import (
    CATEGORICAL,
    FAINT,
    INK,
    MUTED,
    categorical,
    finish,
    heat_colors,
    house_style,
    legend_right,
    new_figure,
    ordered,
)
from spectral.studies.repeated.measurements import (
    DOUBLED_PERIOD,
    MAP_PERIODS,
    PERIODS,
    PROFILE_PERIODS,
    Evidence,
)
from spectral.studies.repeated.plan import LONG_RUN, MODELS

ONE_TOKEN_MATCHING = 0.25
"""Accuracy on a token that occurs twice of a circuit that matches one token and counts alike."""

_TRAINED = "#117733"
_OTHER, _AMBIGUOUS = CATEGORICAL[2], CATEGORICAL[1]
_SCORES = {
    "induction": ("circuits/induction_score", True),
    "previous token": ("circuits/previous_token_score", True),
    "duplicate token": ("circuits/duplicate_token_score", True),
    "first token": ("circuits/first_token_score", False),
}


@dataclass(frozen=True, kw_only=True)
class StudyFigure:
    """A figure with what a page says about it.

    Attributes:
        name: of its file, without suffix.
        question: that it answers; figures that follow one another may share one.
        description: what can be seen, for readers who cannot see it.
        figure: the drawing.
    """

    name: str
    question: str
    description: str
    figure: Figure


def describe_model(config: RunConfig, *, steps: bool = True) -> str:
    """Return a model in a few words, such as `2 layers, periods 20–29, 20,000 steps`."""
    layers = f"{config.n_layers} layer{'s' if config.n_layers > 1 else ''}"
    fixed = config.min_period == config.max_period
    periods = f"period {config.min_period}" if fixed else f"periods {config.min_period}–{config.max_period}"
    return ", ".join([layers, periods, *([f"{config.num_steps:,} steps"] if steps else [])])


def draw_all(evidence: Mapping[str, Sequence[Evidence]], configs: Mapping[str, RunConfig]) -> list[StudyFigure]:
    """Draw every figure that there are runs for.

    Args:
        evidence: finished runs by model; models may be missing.
        configs: configuration of each model, any seed.
    """
    found = {model: evidence[model] for model in MODELS if evidence.get(model)}
    if not found:
        return []
    names = ", ".join(found)
    figures = [
        StudyFigure(
            name="accuracy_by_period",
            question="Does a model continue block lengths it was never trained on?",
            description=f"Accuracy against block length 10 to 39, one panel per model: {names}",
            figure=accuracy_by_period(found, configs),
        )
    ]
    simple = {model: runs for model, runs in found.items() if not model.startswith("2L_varied")}
    if simple:
        figures.append(
            StudyFigure(
                name="attention_by_distance",
                question="Do the heads of the simpler models follow the input, or look a fixed distance back?",
                description=f"Attention of every head by distance, for inputs of three periods: {', '.join(simple)}",
                figure=attention_by_distance(simple, configs),
            )
        )
    figures.append(
        StudyFigure(
            name="repeated_tokens",
            question="Does a token that occurs twice in the block, with two successors, mislead the model?",
            description=f"Accuracy on a token that occurs twice and on all others, one point per seed: {names}",
            figure=repeated_tokens(found),
        )
    )
    if LONG_RUN in found:
        figures.append(
            StudyFigure(
                name="long_run",
                question="What does training three times as long do?",
                description="Accuracy by block length, previous-token scores and accuracy on repeated tokens over "
                "60,000 steps",
                figure=long_run(found[LONG_RUN][0], configs[LONG_RUN]),
            )
        )
    for model, runs in found.items():
        figures.append(
            StudyFigure(
                name=f"head_scores_{model}",
                question="When do the heads become what they are?",
                description=f"Scores of every head over training: {model}",
                figure=head_scores(runs[0], configs[model]),
            )
        )
    for model, runs in found.items():
        figures.append(
            StudyFigure(
                name=f"attention_maps_{model}",
                question="Where does every head attend?",
                description=f"Attention maps of every head for periods 15 to 35 and for a repeated token: {model}",
                figure=attention_maps(runs[0], configs[model]),
            )
        )
    return figures


def accuracy_by_period(evidence: Mapping[str, Sequence[Evidence]], configs: Mapping[str, RunConfig]) -> Figure:
    """Draw the accuracy on blocks of independent tokens against their length, a panel per model, a curve per seed."""
    with house_style():
        n_columns = min(3, len(evidence))
        n_rows = -(-len(evidence) // n_columns)
        figure = new_figure(
            3.6 * max(n_columns, 2),
            2.35 * n_rows + 0.3,
            title="Accuracy against block length",
            notes=[
                "Share of tokens predicted right from the second copy on, blocks of independent random tokens, a curve "
                "per seed. Shaded: block lengths of the training. Dashed: what a circuit reaches that matches one "
                "token and counts all its occurrences alike. Dotted: chance."
            ],
        )
        grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
        for i, axes in enumerate(grid.flat):
            if i >= len(evidence):
                axes.set_axis_off()
                # The panel above is now the lowest of its column.
                grid[i // n_columns - 1, i % n_columns].tick_params(labelbottom=True)
                grid[i // n_columns - 1, i % n_columns].set_xlabel("block length (tokens)")
                continue
            model = list(evidence)[i]
            config = configs[model]
            _shade(axes, config.min_period, config.max_period)
            _one_token_ceiling(axes, config)
            axes.axhline(1 / config.vocab_size, color=MUTED, ls=":", lw=1.1)
            for color, run in zip(categorical(len(evidence[model])), evidence[model], strict=True):
                final = run.final
                axes.plot(final.periods, final.accuracy, color=color, lw=1.3, marker="o", ms=2.5, alpha=0.9)
            n = len(evidence[model])
            layers, rest = describe_model(config).split(", ", 1)
            axes.set_title(f"{layers}, {n} seed{'s' if n > 1 else ''}\n{rest}", fontsize=8.5)
            axes.set_ylim(-0.03, 1.05)
            if i % n_columns == 0:
                axes.set_ylabel("induction accuracy")
            if i // n_columns == n_rows - 1:
                axes.set_xlabel("block length (tokens)")
        return finish(figure)


def attention_by_distance(evidence: Mapping[str, Sequence[Evidence]], configs: Mapping[str, RunConfig]) -> Figure:
    """Draw the attention of every head by distance, a row per model, a column per period of the input; first seed."""
    with house_style():
        figure = new_figure(
            10.2,
            2.05 * len(evidence) + 0.4,
            title="How far back heads look, whatever repeats in the input",
            notes=[
                "Mean attention of the last quarter of the queries by distance, first seed, a curve per head. Green "
                "line: distance at which the token to predict stands (block length − 1). Shaded: where it stands in "
                "training. A head that matched content would move with the green line."
            ],
        )
        grid = figure.subplots(len(evidence), len(PROFILE_PERIODS), sharey=True, sharex=True, squeeze=False)
        for row, (model, runs) in zip(grid, evidence.items(), strict=True):
            profile, config = runs[0].final.offset_profile, configs[model]
            heads = [(layer, head) for layer in range(profile.shape[1]) for head in range(profile.shape[2])]
            for axes, period, of_input in zip(row, PROFILE_PERIODS, profile, strict=True):
                _shade(axes, config.min_period - 1, config.max_period - 1)
                axes.axvline(period - 1, color=_TRAINED, lw=1.1)
                for color, (layer, head) in zip(categorical(len(heads)), heads, strict=True):
                    axes.plot(of_input[layer, head], color=color, lw=1.1, label=head_name(layer, head))
                axes.set_xlim(0, profile.shape[-1] - 1)
            layers, periods = describe_model(config, steps=False).split(", ")
            row[0].set_ylabel(f"{layers}\n{periods}\nattention")
            legend_right(row[-1], columns=-(-len(heads) // 4))
        for axes, period in zip(grid[0], PROFILE_PERIODS, strict=True):
            axes.set_title(f"input of period {period}")
        for axes in grid[-1]:
            axes.set_xlabel("distance (tokens back)")
        return finish(figure)


def repeated_tokens(evidence: Mapping[str, Sequence[Evidence]]) -> Figure:
    """Draw the accuracy on a token that occurs twice in the block and on the others, a point per seed."""
    with house_style():
        figure = new_figure(
            9.4,
            2.7,
            title="Blocks that hold one token twice",
            notes=[
                "Accuracy from the second copy on, a point per seed. Dotted: a circuit that matches one token and "
                f"counts alike is right on about {ONE_TOKEN_MATCHING:g} of the ambiguous places."
            ],
        )
        panels = figure.subplots(1, 2, sharey=True)
        titles = {"inside": "block lengths of the training", "longer": "blocks of 30 to 39 tokens"}
        for axes, (where, title) in zip(panels, titles.items(), strict=True):
            for i, runs in enumerate(evidence.values()):
                spread = np.linspace(-0.05, 0.05, len(runs)) if len(runs) > 1 else np.zeros(1)
                for value, at, color, label in (
                    ("other", i - 0.16, _OTHER, "other tokens"),
                    ("ambiguous", i + 0.16, _AMBIGUOUS, "the token that\noccurs twice"),
                ):
                    heights = [getattr(run.final.doubled[where], value) for run in runs]
                    axes.plot(at + spread, heights, "o", ms=4, color=color, alpha=0.85, label=None if i else label)
            axes.axhline(ONE_TOKEN_MATCHING, color=MUTED, ls=":", lw=1.1)
            axes.set_xticks(range(len(evidence)), [model.replace("_", "\n") for model in evidence])
            axes.set_xlim(-0.5, len(evidence) - 0.5)
            axes.set_title(title)
            axes.set_ylim(-0.03, 1.05)
        panels[0].set_ylabel("accuracy")
        legend_right(panels[1])
        return finish(figure)


def long_run(evidence: Evidence, config: RunConfig) -> Figure:
    """Draw what goes on in the long run: accuracies by block length, previous-token heads, repeated tokens."""
    with house_style():
        figure = new_figure(
            10.2,
            5.6,
            title=f"What longer training does: {describe_model(config)}",
            notes=[
                f"Seed {evidence.final.seed}. Top left: blocks of distinct tokens; solid inside the training range, "
                "dashed outside. Top right: blocks of independent tokens; shaded: training range."
            ],
        )
        ((by_step, by_period), (heads, doubled)) = figure.subplots(2, 2)
        _draw_accuracy_over_steps(by_step, evidence, config)
        _draw_accuracy_of_checkpoints(by_period, evidence, config)
        _draw_previous_token_heads(heads, evidence)
        _draw_doubled_over_steps(doubled, evidence)
        for axes in (by_step, heads, doubled):
            step_axes([axes], evidence.steps)
            axes.xaxis.set_major_locator(MaxNLocator(5))
        return finish(figure)


def head_scores(evidence: Evidence, config: RunConfig) -> Figure:
    """Draw the scores of every head over training: a row per layer, a panel per score."""
    with house_style():
        n_layers = config.n_layers
        note = f"Seed {evidence.final.seed}, blocks of distinct tokens with training periods. Thick: corrected (0 = "
        note += "uniform attention, 1 = perfect head); faint: raw share of attention. First token: raw only."
        if config.min_period == config.max_period:
            note += " On blocks of one length a head at that distance scores as an induction head without matching."
        figure = new_figure(
            10.2, 0.35 + 2.05 * n_layers, title=f"Head scores over training: {describe_model(config)}", notes=[note]
        )
        grid = figure.subplots(n_layers, len(_SCORES), sharex=True, sharey=True, squeeze=False)
        for layer, row in enumerate(grid):
            for axes, (title, (name, is_corrected)) in zip(row, _SCORES.items(), strict=True):
                raw = evidence.curves[name][:, layer]
                shown = evidence.curves[f"{name}_corrected"][:, layer] if is_corrected else raw
                for head, color in enumerate(categorical(config.n_heads)):
                    if is_corrected:
                        curve(axes, evidence.steps, raw[:, head], color=color, lw=0.8, alpha=0.35)
                    curve(axes, evidence.steps, shown[:, head], color=color, label=head_name(layer, head))
                axes.axhline(0, color=MUTED, ls=":", lw=1.1, label="uniform\n(corrected)")
                if layer == 0:
                    axes.set_title(title)
                axes.set_ylim(-0.12, 1.05)
            row[0].set_ylabel(f"layer {layer}\nscore")
            legend_right(row[-1])
        for column in grid.T:
            step_axes(list(column), evidence.steps)
            column[-1].xaxis.set_major_locator(MaxNLocator(3))
        return finish(figure)


def attention_maps(evidence: Evidence, config: RunConfig) -> Figure:
    """Draw the attention of every head (rows) on one sequence of each period (columns), and on a repeated token."""
    with house_style():
        final = evidence.final
        maps = final.maps
        heads = [(layer, head) for layer in range(maps.shape[1]) for head in range(maps.shape[2])]
        side, left, top = 1.42, 0.8, 0.62
        n_columns, n_rows = len(maps), len(heads)
        height = top + side * n_rows + 0.45
        figure = new_figure(
            left + side * n_columns + 0.95,
            height,
            title=f"Attention of every head: {describe_model(config)}",
            notes=[
                f"Seed {final.seed}, step {final.step:,}. One sequence per column, query down, key to the right. Last "
                f"column: a block of {DOUBLED_PERIOD} tokens that holds one token twice (ticks at its places)."
            ],
        )
        figure.set_layout_engine("none")  # a fixed grid is placed at once, where the layout engine takes seconds
        total_width, total_height = figure.get_size_inches()
        inner = height / total_height
        grid = figure.add_gridspec(
            n_rows,
            n_columns,
            left=left / total_width,
            right=(left + side * n_columns) / total_width,
            top=inner - top / total_height,
            bottom=0.45 / total_height,
            wspace=0.06,
            hspace=0.06,
        )
        titles = [*(f"period {period}" for period in MAP_PERIODS), f"period {DOUBLED_PERIOD},\ntoken twice"]
        n = maps.shape[-1]
        for r, (layer, head) in enumerate(heads):
            for c, title in enumerate(titles):
                axes = figure.add_subplot(grid[r, c])
                image = axes.imshow(
                    maps[c, layer, head], cmap=heat_colors(), norm=PowerNorm(0.5, 0, 1), interpolation="nearest"
                )
                axes.grid(False)
                for spine in axes.spines.values():
                    spine.set_visible(True)
                    spine.set_linewidth(0.6)
                last = c == n_columns - 1
                ticks = list(final.doubled_places) if last else list(range(0, n, max(1, n // 4)))
                axes.set_xticks(ticks, [str(t) for t in ticks] if r == n_rows - 1 and not last else [""] * len(ticks))
                axes.set_yticks(ticks, [str(t) for t in ticks] if c == 0 else [""] * len(ticks))
                axes.tick_params(labelsize=6.5, length=2, pad=1.5)
                if r == 0:
                    axes.set_title(title, loc="center", fontsize=8.5)
                if r == n_rows - 1:
                    axes.set_xlabel("key", fontsize=7.5, labelpad=2)
                if c == 0:
                    axes.set_ylabel(head_name(layer, head), rotation=0, ha="right", va="center", weight="bold")
        bar = figure.add_axes(
            (1 - 0.75 / total_width, inner - (top + 1.9) / total_height, 0.13 / total_width, 1.9 / total_height)
        )
        figure.colorbar(image, cax=bar, ticks=[0, 0.05, 0.2, 0.5, 1.0])
        bar.set_title("attention", fontsize=8.0, loc="left", pad=7)
        return finish(figure)


def _shade(axes: Axes, low: int, high: int) -> None:
    axes.axvspan(low - 0.5, high + 0.5, color=_TRAINED, alpha=0.09, lw=0, zorder=0.5)


def _one_token_ceiling(axes: Axes, config: RunConfig, label: str | None = None) -> None:
    heights = [equal_count_ceiling(config.vocab_size, period) for period in PERIODS]
    axes.plot(PERIODS, heights, color=MUTED, ls="--", lw=1.1, label=label)


def _draw_accuracy_over_steps(axes: Axes, evidence: Evidence, config: RunConfig) -> None:
    accuracies = evidence.curves["behaviour/induction_accuracy_period"]
    periods = evidence.probe_periods
    for color, period, heights in zip(ordered(len(periods)), periods, accuracies.T, strict=True):
        inside = config.min_period <= period <= config.max_period
        style = "-" if inside else (0, (3, 1.5))
        curve(axes, evidence.steps, heights, color=color, ls=style, lw=1.2, label=str(period))
    axes.set_title("accuracy by block length")
    axes.set_ylabel("induction accuracy")
    axes.set_ylim(-0.03, 1.05)
    legend_right(axes, title="period")


def _draw_accuracy_of_checkpoints(axes: Axes, evidence: Evidence, config: RunConfig) -> None:
    moments = [*evidence.earlier, evidence.final]
    chosen = [moments[i] for i in sorted({round(i) for i in np.linspace(0, len(moments) - 1, min(5, len(moments)))})]
    _shade(axes, config.min_period, config.max_period)
    for color, moment in zip(ordered(len(chosen)), chosen, strict=True):
        axes.plot(moment.periods, moment.accuracy, color=color, lw=1.3, label=f"{moment.step:,}")
    _one_token_ceiling(axes, config, "one-token\nmatching")
    axes.set_title("accuracy against block length")
    axes.set_xlabel("block length (tokens)")
    axes.set_ylim(-0.03, 1.05)
    legend_right(axes, title="step")


def _draw_previous_token_heads(axes: Axes, evidence: Evidence) -> None:
    scores = evidence.curves["circuits/previous_token_score_corrected"][:, 0]
    for head, color in enumerate(categorical(scores.shape[1])):
        curve(axes, evidence.steps, scores[:, head], color=color, label=head_name(0, head))
    curve(axes, evidence.steps, scores.sum(1), color=INK, ls=":", lw=1.2, label="all heads,\nsummed", marker="")
    axes.axhline(0, color=FAINT, lw=1.0)
    axes.set_title("previous-token score of layer 0, corrected")
    axes.set_ylabel("score")
    legend_right(axes)


def _draw_doubled_over_steps(axes: Axes, evidence: Evidence) -> None:
    moments = [*evidence.earlier, evidence.final]
    steps = np.array([moment.step for moment in moments])
    for where, words, style in (("inside", "training periods", "-"), ("longer", "periods 30–39", "--")):
        for value, what, color in (("other", "other tokens", _OTHER), ("ambiguous", "that token", _AMBIGUOUS)):
            heights = [getattr(moment.doubled[where], value) for moment in moments]
            axes.plot(steps, heights, style, color=color, marker="o", ms=3, label=f"{words},\n{what}")
    axes.set_title("blocks that hold one token twice")
    axes.set_ylabel("accuracy")
    axes.set_ylim(-0.03, 1.05)
    legend_right(axes)
