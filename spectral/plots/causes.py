"""Figure of causes: what the model loses without each head, and who writes the right answer."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from spectral.plots.panels import color_bar, run_note
from spectral.plots.source import head_name, measured, values, values_or_none
from spectral.plots.style import FAINT, INK, MUTED, SIGNAL_COLORS, finish, house_style, new_figure, signed_colors
from spectral.plots.verdict import read_verdict
from spectral.storage import Run

_MOST_ROWS = 24
_LEAST_REACH = 0.05  # nats: below it the colours would magnify noise


def causal_effects(run: Run) -> Figure:
    """Draw, of the last causal row, the effect of removing each head and of keeping it alone, and the attribution.

    Heat maps have one row per head (then one per whole layer) and one column per way of removing it. Of more than 24
    heads or components those with the largest effects are drawn.

    Raises:
        MissingDataError: no causes were measured.
    """
    with house_style():
        verdict = read_verdict(run)
        removed = values(run, "causal/remove_one_induction_loss")
        steps, modes = run.steps_of("causal"), run.layout.ablation_modes
        row = int(np.flatnonzero(np.isfinite(removed).reshape(len(removed), -1).any(1))[-1])
        kept = measured(run, "causal/keep_only_induction_loss", run.read("causal/keep_only_induction_loss"))[row]
        layers = measured(run, "causal/remove_layer_induction_loss", run.read("causal/remove_layer_induction_loss"))
        heads, dropped = _largest(np.nanmax(np.abs(np.nan_to_num(removed[row])), axis=0))
        names = [head_name(layer, head) for layer, head in heads]
        whole = [f"L{layer} all" for layer in range(removed.shape[2])]
        attribution = values_or_none(run, "causal/logit_attribution")
        n_rows = len(names) + len(whole)
        left_out = f" {dropped} heads with smaller effects are left out." if dropped else ""
        notes = [
            "Change of the loss at predictable positions, in nats: above 0 the head is needed. Keeping one head "
            f"removes the others of its layer.{left_out}",
            verdict.sentence,
            run_note(run),
        ]
        figure = new_figure(10.2, 0.9 + 0.27 * n_rows, title=f"Causal effects at step {steps[row]:,}", notes=notes)
        panels = figure.subplots(1, 2 if attribution is None else 3, squeeze=False)[0]
        single = np.stack([removed[row][:, layer, head] for layer, head in heads])
        alone = np.stack([kept[:, layer, head] for layer, head in heads])
        _draw_map(panels[0], np.concatenate([single, layers[row].T]), [*names, *whole], modes, "head removed")
        _draw_map(panels[1], alone, names, modes, "head kept alone")
        if attribution is not None:
            _draw_attribution(panels[2], attribution[row], run.layout.components)
        return finish(figure)


def _largest(strength: np.ndarray) -> tuple[list[tuple[int, int]], int]:
    """Return the heads [layer, head] with the largest values, in their own order, and how many others there are."""
    order = np.argsort(-strength, axis=None, kind="stable")[:_MOST_ROWS]
    heads = sorted((int(i) // strength.shape[1], int(i) % strength.shape[1]) for i in order)
    return heads, strength.size - len(heads)


def _draw_map(axes: Axes, effects: np.ndarray, rows: list[str], modes: tuple[str, ...], title: str) -> None:
    reach = max(_LEAST_REACH, float(np.nanmax(np.abs(effects), initial=0.0)))
    mesh = axes.pcolormesh(
        np.arange(len(modes) + 1) - 0.5,
        np.arange(len(rows) + 1) - 0.5,
        np.ma.masked_invalid(effects),
        cmap=signed_colors(),
        norm=TwoSlopeNorm(0.0, -reach, reach),
        rasterized=True,
    )
    for (i, j), effect in np.ndenumerate(effects):
        if np.isfinite(effect):
            color = "white" if abs(effect) > 0.75 * reach else INK
            axes.text(j, i, f"{effect:+.2f}", ha="center", va="center", fontsize=7.0, color=color)
    axes.grid(False)
    axes.set_xticks(range(len(modes)), [mode.replace("_", "\n") for mode in modes])
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_title(title)
    color_bar(axes, mesh, "change of loss (nats)")


def _draw_attribution(axes: Axes, attribution: np.ndarray, components: tuple[str, ...]) -> None:
    strongest = np.sort(np.argsort(-np.abs(np.nan_to_num(attribution)), kind="stable")[:_MOST_ROWS])
    place = np.arange(len(strongest))
    colors = [SIGNAL_COLORS["induction_score"] if components[i].startswith("L") else FAINT for i in strongest]
    axes.barh(place, attribution[strongest], color=colors, gid="attribution")
    axes.axvline(0, color=MUTED, lw=0.8)
    axes.set_yticks(place, [components[i] for i in strongest])
    axes.invert_yaxis()
    axes.set_xlabel("logit of the true next token, centred")
    axes.set_title("written directly to the right answer")
