"""The stages on one page: which subset wins, where the heads look, how sharp layer 2 becomes."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral.gih import GIHResults
from spectral.plots.gih.source import (
    THEORY,
    Array,
    empty,
    head_colors,
    log_time,
    predicted_attention,
    predicted_shares,
    predicted_sharpness,
    run_line,
    stage_of,
    stage_title,
    subset_names,
    time_label,
    winner,
)
from spectral.plots.style import FAINT, INK, MUTED, TRANSITION, categorical, finish, house_style, new_figure

_MOST_NAMED = 9  # subsets with a colour and a name of their own


def stages(run: GIHResults) -> Figure:
    """Draw p_S(t), the heads' attention and a(t) with the theory above, and what each came to below."""
    with house_style():
        figure = new_figure(
            11.0,
            5.6,
            title="Generalised induction head: which parents, where, how sharply",
            notes=[run_line(run), "Black dashes: theory. " + _verdict(run)],
        )
        panels = figure.subplots(2, 3)
        _shares(run, panels[0, 0])
        _attention(run, panels[0, 1])
        _sharpness(run, panels[0, 2])
        _outcome(run, panels[1, 0])
        _offsets(run, panels[1, 1])
        _loss(run, panels[1, 2])
        return finish(figure)


def subset_colors(run: GIHResults) -> list[str]:
    """Return one colour per subset; where there are many, those that never matter are grey."""
    names, peak = subset_names(run), run.read("shares").max(0)
    colors = categorical(min(len(names), _MOST_NAMED))
    if len(names) <= _MOST_NAMED:
        return colors
    chosen = np.argsort(-peak, kind="stable")[:_MOST_NAMED]
    return [colors[list(chosen).index(i)] if i in chosen else FAINT for i in range(len(names))]


def _shares(run: GIHResults, axes: Axes) -> None:
    stage = stage_of(run, "c")
    if stage is None:
        empty(axes, "c is not trained")
        return
    rows, names, colors = run.rows_of(stage), subset_names(run), subset_colors(run)
    times, shares, best = run.read("time")[rows], run.read("shares")[rows], winner(run)
    for i in np.argsort(shares.max(0), kind="stable"):
        named = colors[i] != FAINT
        axes.plot(
            times,
            shares[:, i],
            color=colors[i],
            lw=2.2 if i == best else 1.2,
            label=names[i] if named else None,
            zorder=2.5 if i == best else 2,
        )
    theory = predicted_shares(run, stage)
    if theory is not None:
        shown = [i for i in range(len(names)) if colors[i] != FAINT]
        for place, i in enumerate(shown):
            axes.plot(theory[0], theory[1][:, i], **THEORY, label="theory" if place == 0 else None)
    alone = run.stage_names[stage] == "c"
    settled = times[np.argmax(shares[:, best] > 0.99)] if shares[-1, best] > 0.99 else times[-1]
    if alone and settled < times[-1] / 3:
        axes.set_xlim(0, max(3 * settled, 10))
        axes.set_xlabel(time_label(run, stage))
    else:
        log_time(axes, times, time_label(run, stage))
    axes.set_ylim(-0.03, 1.03)
    axes.set_title(f"share $p_S$ of every subset\n{stage_title(run, stage)}")
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: (labels[i] == "theory", labels[i] != names[best], len(labels[i])))
    axes.legend([handles[i] for i in order], [labels[i] for i in order], loc="center right", ncols=2, handlelength=1.3)


def _attention(run: GIHResults, axes: Axes) -> None:
    stage = stage_of(run, "w")
    if stage is None:
        empty(axes, "w is not trained")
        return
    rows, colors = run.rows_of(stage), head_colors(run)
    times, own = run.read("time")[rows], run.read("own_offset")[rows]
    drawn = False
    for head in range(own.shape[1]):
        axes.plot(times, own[:, head], color=colors[head], label=f"head {head + 1}")
        theory = predicted_attention(run, stage, head, times)
        if theory is not None:
            axes.plot(times, theory, **THEORY, label=None if drawn else "theory")
            drawn = True
    chance = float(run.dataset["own_offset"].attrs["chance"])
    axes.axhline(chance, color=MUTED, ls=":", lw=1.1, label=f"uniform {chance:.2g}")
    log_time(axes, times, time_label(run, stage))
    low = min(float(own.min()), chance if own.min() < 0.6 else 1.0)
    axes.set_ylim(low - 0.05 * (1 - low), 1 + 0.03 * (1 - low))
    axes.set_title(f"attention of a head on its own offset\n{stage_title(run, stage)}")
    axes.legend(loc="upper left")


def _sharpness(run: GIHResults, axes: Axes) -> None:
    stage = stage_of(run, "a")
    if stage is None:
        empty(axes, "a is not trained")
        return
    rows = run.rows_of(stage)
    times, a = run.read("time")[rows], run.read("a")[rows]
    axes.plot(times, a, color=INK, lw=2.0, label="measured")
    styles = iter((THEORY | {"color": "#117733"}, THEORY | {"color": "#cc6677"}))
    for name, curve in predicted_sharpness(run, stage, times).items():
        axes.plot(times, curve, **next(styles), label=name)
    log_time(axes, times, time_label(run, stage))
    axes.set_ylim(min(0.0, float(a.min())), 1.08 * float(a.max()) + 1e-9)
    axes.set_title(f"sharpness $a$ of layer 2\n{stage_title(run, stage)}")
    axes.legend(loc="upper left")


def _outcome(run: GIHResults, axes: Axes) -> None:
    """Draw final shares beside the modified information, both of every subset."""
    names, colors, shares = subset_names(run), subset_colors(run), run.read("shares")[-1]
    kept = np.arange(len(names))
    if len(names) > 12:  # what won or could have
        rank = run.read("information_modified") if "information_modified" in run.dataset else shares
        kept = np.sort(np.unique(np.concatenate([np.argsort(-shares)[:6], np.argsort(-rank)[:6]])))
    place = np.arange(len(kept))
    axes.bar(place - 0.2, shares[kept], width=0.38, color=[colors[i] for i in kept])
    axes.set_xticks(place, [names[i] for i in kept], rotation=30 if len(kept) > 7 else 0)
    axes.set_ylabel("share $p_S$ at the end (coloured)")
    axes.set_ylim(0, 1.08)
    axes.grid(False, axis="x")
    if "information_modified" not in run.dataset:
        axes.set_title("what was chosen")
        return
    other = axes.twinx()
    found, error = run.read("information_modified"), run.read("information_modified_se")
    other.bar(place + 0.2, found[kept], width=0.38, color=FAINT, yerr=error[kept], ecolor=MUTED)
    other.set_ylim(0, 1.25 * float(found.max()))
    other.set_ylabel("information $\\tilde{I}_{\\chi^2}$ (grey)")
    other.grid(False)
    other.spines["right"].set_visible(True)
    best = int(found.argmax())
    if best in kept:
        at = int(np.flatnonzero(kept == best)[0]) + 0.2
        other.plot(at, found[best] * 1.1, marker="*", ms=9, color=TRANSITION)
    axes.set_title("what was chosen, and the information set ★")


def _offsets(run: GIHResults, axes: Axes) -> None:
    """Draw the relative-position weights by offset, hollow before and full after."""
    w, offsets, colors = run.read("w"), run.dataset["offset"].values, head_colors(run)
    n_heads, width = offsets.shape[0], 0.8 / offsets.shape[0]
    for head in range(n_heads):
        place = offsets[head] + (head - (n_heads - 1) / 2) * width
        axes.bar(place, w[-1, head], width=width, color=colors[head], alpha=0.9, label=f"head {head + 1}")
        axes.hlines(w[0, head], place - width / 2, place + width / 2, color=INK, lw=1.6, zorder=4)
    axes.plot([], [], color=INK, lw=1.6, label="before")
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set_xticks(np.arange(1, int(offsets.max()) + 1))
    axes.set_xlabel("offset (tokens back)")
    axes.set_ylabel("weight $w$")
    axes.set_title("relative-position weights at the end")
    axes.grid(False, axis="x")
    axes.legend(loc="upper right")


def _loss(run: GIHResults, axes: Axes) -> None:
    """Draw the loss that is minimised over all stages, one after the other on a common axis of rows' times."""
    name = run.config.loss
    position = 0.0
    marks: list[tuple[float, int]] = []
    for stage in range(len(run.stage_names)):
        rows = run.rows_of(stage)
        if len(rows) == 0:
            continue
        x = position + _decades(run.read("time")[rows])
        for kind, color in (("train", "#a3a3a3"), ("validation", "#332288")):
            values = run.read(f"{kind}_{name}")[rows]
            if np.isfinite(values).all():
                axes.plot(x, values, color=color, label=None if marks else {"train": "training"}.get(kind, "held-out"))
        marks.append((position, stage))
        position = float(x[-1]) + 0.15
    for place, stage in marks:
        if place:
            axes.axvline(place - 0.075, color=MUTED, lw=0.8, ls=":")
        axes.text(place + 0.05, 0.3, run.stage_names[stage].replace("+", ", "), color=MUTED, size=8.0,
                  transform=axes.get_xaxis_transform())  # fmt: skip
    for reference, style in (("bayes", "--"), ("truth", ":")):
        known = [str(other) for other in run.dataset["reference"].values] if "reference" in run.dataset else []
        if reference in known:
            height = float(run.read(f"reference_{name}")[known.index(reference)])
            label = {"bayes": "Bayes observer", "truth": "true probabilities"}[reference]
            axes.axhline(height, color="#117733", ls=style, lw=1.1, label=f"{label} {height:.3f}")
    axes.set_xticks([])
    axes.set_xlim(0, position or 1.0)
    axes.set_xlabel("time of each stage, logarithmic")
    axes.set_ylabel("nats")
    axes.set_title(f"loss ({name.replace('_', ' ')})")
    axes.legend(loc="best")


def _decades(times: Array) -> Array:
    return np.log10(1 + times)


def _verdict(run: GIHResults) -> str:
    """Return when the changes were half done, and which of them the detector calls abrupt."""
    parts, abrupt = [], []
    for stage in run.transitions.get("stages", []):
        unit = time_label(run, stage["stage"])
        for name, found in stage["signals"].items():
            if found["half"] is None or name == "loss":
                continue
            parts.append(f"{name.replace('_', ' ')} at {unit} {_number(found['half'])}")
            if found["detected"]:
                abrupt.append(name)
    if not parts:
        return "The detector has not judged this run."
    verdict = f"the detector calls abrupt: {', '.join(abrupt)}" if abrupt else "the detector calls none of them abrupt"
    return f"Half done: {', '.join(parts)}; on a logarithmic time axis {verdict}."


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
