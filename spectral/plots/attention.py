"""Figure of attention patterns before, in and after the transition."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from spectral.plots.panels import run_note
from spectral.plots.source import Head, best_heads, head_name, highest, measured, stages, stored, values_or_none
from spectral.plots.style import INK, SIGNAL_COLORS, finish, heat_colors, house_style, new_figure
from spectral.plots.verdict import read_verdict
from spectral.storage import Run

MAX_COLUMNS = 8
_SHORT = 20  # up to here every token fits as a label


def attention_patterns(run: Run) -> Figure:
    """Draw attention patterns at five steps (rows) for up to eight heads (columns).

    The heads with the highest induction and previous-token scores come first and are framed; with more than eight
    heads the others are those with the highest scores of either kind.

    Raises:
        MissingDataError: no stored patterns.
    """
    with house_style():
        verdict = read_verdict(run)
        patterns = stored(run, "circuits/attention_pattern")
        steps = run.steps
        rows = stages(steps, verdict.onset, verdict.midpoint, verdict.end)
        heads, roles = choose_heads(run)
        shown = measured(run, "circuits/attention_pattern", patterns[rows])
        n_heads = run.layout.n_layers * run.layout.n_heads
        which = f"{len(heads)} of {n_heads} heads, chosen by score" if len(heads) < n_heads else f"all {n_heads} heads"
        side = 1.12
        width = 1.05 + side * len(heads) + 0.95
        figure = new_figure(
            max(width, 6.0),
            0.55 + side * 1.03 * len(rows) + 0.45,
            title=f"Attention patterns ({which})",
            notes=[
                "Rows: steps. In each map the query goes down and the key to the right. "
                "Framed: best induction head and best previous-token head.",
                verdict.sentence,
                run_note(run),
            ],
        )
        # Up to forty small axes: a fixed grid is placed at once, where the layout engine would take seconds.
        figure.set_layout_engine("none")
        total_width, total_height = figure.get_size_inches()
        header = total_height - (0.55 + side * 1.03 * len(rows) + 0.45)
        grid = figure.add_gridspec(
            len(rows),
            len(heads),
            left=1.05 / total_width,
            right=(1.05 + side * len(heads)) / total_width,
            top=1 - (header + 0.5) / total_height,
            bottom=0.5 / total_height,
            wspace=0.1,
            hspace=0.1,
        )
        norm = PowerNorm(0.5, 0.0, 1.0)
        labels = _token_labels(run, patterns.shape[-1])
        image: AxesImage | None = None
        for r, step in enumerate(steps[rows]):
            for c, (layer, head) in enumerate(heads):
                axes = figure.add_subplot(grid[r, c])
                image = axes.imshow(
                    np.ma.masked_invalid(shown[r, layer, head]), cmap=heat_colors(), norm=norm, interpolation="nearest"
                )
                frame_by_role(axes, roles.get((layer, head)))
                _ticks(axes, labels, patterns.shape[-1], left=c == 0, bottom=r == len(rows) - 1)
                if r == 0:
                    role = roles.get((layer, head))
                    color = INK if role is None else SIGNAL_COLORS[role]
                    text = head_name(layer, head) + ("" if role is None else f"\n{_WORDS[role]}")
                    weight = "normal" if role is None else "bold"
                    axes.set_title(text, fontsize=8.5, color=color, weight=weight, loc="center")
                if c == 0:
                    axes.set_ylabel(f"step {step:,}", fontsize=8.5, weight="bold", labelpad=5)
        if image is not None:
            inner = 1 - (header + 0.5) / total_height
            place = figure.add_axes(
                (
                    1 - 0.78 / total_width,
                    inner - min(2.2, 1.0 * side * len(rows)) / total_height,
                    0.13 / total_width,
                    min(2.2, 1.0 * side * len(rows)) / total_height,
                )
            )
            figure.colorbar(image, cax=place, ticks=[0, 0.05, 0.2, 0.5, 1.0])
            place.set_title("attention", fontsize=8.5, loc="left", pad=9)
        return finish(figure)


_WORDS = {"induction_score": "induction", "previous_token_score": "prev. token"}


def choose_heads(run: Run) -> tuple[list[Head], dict[Head, str]]:
    """Return the heads to draw and the role of the two best ones."""
    peaks: list[np.ndarray] = []
    roles: dict[Head, str] = {}
    for name in _WORDS:
        score = values_or_none(run, f"circuits/{name}")
        if score is not None:
            peaks.append(highest(score))
            for head in best_heads(score, 1):
                roles.setdefault(head, name)
    everyone = [(layer, head) for layer in range(run.layout.n_layers) for head in range(run.layout.n_heads)]
    strength = np.max(peaks, axis=0) if peaks else np.zeros((run.layout.n_layers, run.layout.n_heads))
    others = sorted((head for head in everyone if head not in roles), key=lambda head: -strength[head])
    first = list(roles)
    return first + sorted(others[: MAX_COLUMNS - len(first)]), roles


def frame_by_role(axes: Axes, role: str | None) -> None:
    """Frame a map in the colour of its head's role; thinly where it has none."""
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.6 if role is None else 2.0)
        if role is not None:
            spine.set_edgecolor(SIGNAL_COLORS[role])


def _token_labels(run: Run, n_positions: int) -> list[str] | None:
    if n_positions > _SHORT:
        return None
    try:
        tokens = np.ravel(run.probe("attention_tokens"))
    except KeyError:
        return None
    return [str(int(token)) for token in tokens[:n_positions]]


def _ticks(axes: Axes, labels: list[str] | None, n: int, *, left: bool, bottom: bool) -> None:
    axes.grid(False)
    marked = np.arange(n) if labels is not None else np.arange(0, n, max(1, round(n / 4)))
    shown = labels if labels is not None else [str(i) for i in marked]
    size = 4.5 if labels is not None else 6.5
    axes.set_xticks(marked if bottom else [], shown if bottom else [], fontsize=size)
    axes.set_yticks(marked if left else [], shown if left else [], fontsize=size)
    axes.tick_params(length=1.5, pad=1.5)
    if bottom:
        axes.set_xlabel("key token" if labels is not None else "key", fontsize=7.5, labelpad=2)
