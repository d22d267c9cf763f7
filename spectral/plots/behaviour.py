"""Figures of what the outputs show: losses and accuracies over steps, loss by position."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from spectral.behaviour import perfect_induction_loss, uniform_loss
from spectral.plots.panels import color_bar, curve, heat_map, reference, run_note, step_axes
from spectral.plots.source import (
    MissingDataError,
    listed,
    setting,
    stages,
    trained_periods,
    values,
    values_or_none,
    yardstick,
)
from spectral.plots.style import (
    FAINT,
    INK,
    SIGNAL_COLORS,
    categorical,
    finish,
    house_style,
    legend_right,
    new_figure,
    ordered,
)
from spectral.plots.verdict import mark_transition, mark_transition_on_image, read_verdict
from spectral.storage import Run

ACCURACIES = {
    "induction_accuracy": "induction accuracy",
    "in_context_probability": "probability on context tokens",
    "random_accuracy": "accuracy without repeats",
}


def loss_and_accuracy(run: Run, *, log_steps: bool = False) -> Figure:
    """Draw losses with their reference levels, accuracies with chance, accuracy by block length and by kind of probe.

    Without snapshots only the training loss is drawn, and the figure says so.

    Raises:
        MissingDataError: neither a training loss nor a probe loss.
    """
    with house_style():
        verdict = read_verdict(run)
        accuracies = [name for name in ACCURACIES if values_or_none(run, f"behaviour/{name}") is not None]
        periods = values_or_none(run, "behaviour/induction_accuracy_period")
        by_probe = values_or_none(run, "behaviour/induction_accuracy_probe")
        notes = [verdict.sentence, run_note(run) + verdict.band_key]
        if not accuracies:
            notes.append(f"No accuracies: {_reason(run, 'behaviour/induction_accuracy')}.")
        heights = [2.5, *([2.5] if accuracies else [])]
        heights += [1.9 for part in (periods, by_probe) if part is not None]
        figure = new_figure(8.6, sum(heights), title="Loss and accuracy", notes=notes)
        grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
        panels: list[Axes] = list(grid[:, 0])
        draw_losses(panels[0], run)
        legend_right(panels[0])
        if accuracies:
            draw_accuracies(panels[1], run)
            legend_right(panels[1])
        if periods is not None:
            _draw_periods(panels[1 + bool(accuracies)], run, periods)
        if by_probe is not None:
            _draw_probes(panels[-1], run, by_probe)
        step_axes(panels, all_steps(run), log_steps=log_steps)
        mark_transition(panels, verdict)
        return finish(figure)


def loss_by_position(run: Run, *, log_steps: bool = False) -> Figure:
    """Draw the loss at each position over steps as a heat map, and as curves at up to five steps.

    Raises:
        MissingDataError: no loss by position.
    """
    with house_style():
        losses = values(run, "behaviour/loss_by_position")
        steps, verdict = run.steps, read_verdict(run)
        positions = np.arange(losses.shape[1])
        uniform = _uniform_loss(run)
        figure = new_figure(
            8.6,
            6.0,
            title="Loss by position in the sequence",
            notes=[verdict.sentence, run_note(run) + verdict.line_key],
        )
        image, slices = figure.subplots(2, 1, height_ratios=[3.2, 2.8])
        top = float(np.nanquantile(losses, 0.999))
        norm = Normalize(0.0, top if top > 0 else 1.0)
        mesh = heat_map(image, steps, positions, losses, norm)
        image.set(ylabel="position", xlabel="step")
        step_axes([image], steps, log_steps=log_steps)
        mark_transition_on_image(image, verdict)
        color_bar(image, mesh, "loss (nats)", extend="max")
        chosen = stages(steps, verdict.onset, verdict.midpoint, verdict.end)
        for color, i in zip(ordered(len(chosen)), chosen, strict=True):
            curve(slices, positions, losses[i], color=color, lw=1.2, label=f"step {steps[i]:,}")
        trained = trained_periods(run)
        if trained is not None:
            slices.axvspan(*trained, color=FAINT, alpha=0.4, lw=0, zorder=0.5, label="first copy ends\n(block lengths)")
        if uniform is not None:
            reference(slices, uniform, f"uniform guess\nln V = {uniform:.2f}")
        slices.set(xlabel="position", ylabel="loss (nats)", xlim=(0, max(1, positions[-1])))
        slices.set_ylim(bottom=0)
        legend_right(slices)
        return finish(figure)


def draw_losses(axes: Axes, run: Run) -> None:
    """Draw training loss, probe losses and their reference levels into a panel.

    Raises:
        MissingDataError: there is none of them.
    """
    train = values_or_none(run, "train/loss")
    probe = values_or_none(run, "behaviour/loss")
    induction = values_or_none(run, "behaviour/induction_loss")
    if train is None and probe is None:
        raise MissingDataError(run, "train/loss", f"{_reason(run, 'train/loss')}, and there is no behaviour/loss")
    if train is not None:
        curve(axes, run.train_steps, train, color=SIGNAL_COLORS["train_loss"], lw=1.0, label="training batch")
    if probe is not None:
        curve(axes, run.steps, probe, color=SIGNAL_COLORS["loss"], label="held-out probe")
    if induction is not None:
        curve(
            axes,
            run.steps,
            induction,
            color=SIGNAL_COLORS["induction_loss"],
            label="held-out, where the\nrepeat predicts",
        )
    uniform, perfect = _uniform_loss(run), _perfect_loss(run)
    if uniform is not None:
        reference(axes, uniform, f"uniform guess\nln V = {uniform:.2f}")
    if perfect is not None:
        reference(
            axes, perfect, f"perfect induction, all\npositions: {perfect:.2f}", style="--", gid="perfect-induction"
        )
    axes.set_ylabel("loss (nats)")
    axes.set_ylim(bottom=0)


def draw_accuracies(axes: Axes, run: Run) -> None:
    """Draw the accuracies that were measured, with the chance level of each and the common ceiling."""
    chances: dict[float, list[str]] = {}
    for name, label in ACCURACIES.items():
        heights = values_or_none(run, f"behaviour/{name}")
        if heights is None:
            continue
        curve(axes, run.steps, heights, color=SIGNAL_COLORS[name], label=label)
        chance = yardstick(run, f"behaviour/{name}", "chance")
        if chance is not None:
            chances.setdefault(round(chance, 6), []).append(name)
    for chance, names in chances.items():
        # Chance of the context probability differs from that of the accuracies and takes its curve's colour.
        mine = len(names) == 1 and names[0] == "in_context_probability"
        color = SIGNAL_COLORS[names[0]] if mine else INK
        what = "chance of that probability" if mine else "chance"
        axes.axhline(chance, color=color, ls=":", lw=1.1, label=f"{what} {chance:.3g}", gid="chance")
    ceiling = yardstick(run, "behaviour/induction_accuracy", "ceiling")
    if ceiling is not None:
        reference(axes, ceiling, f"ceiling {ceiling:.3g}", style="--", gid="ceiling")
    axes.set_ylabel("share")
    axes.set_ylim(-0.03, 1.05)


def all_steps(run: Run) -> np.ndarray:
    """Return every step of the run at which something was stored."""
    return np.concatenate([run.train_steps, run.steps])


def _draw_periods(axes: Axes, run: Run, accuracies: np.ndarray) -> None:
    trained = trained_periods(run)
    periods = run.layout.probe_periods
    for color, period, heights in zip(ordered(len(periods)), periods, accuracies.T, strict=True):
        inside = trained is None or trained[0] <= period <= trained[1]
        curve(
            axes,
            run.steps,
            heights,
            color=color,
            lw=1.3 if inside else 1.1,
            ls="-" if inside else (0, (3, 1.5)),
            alpha=0.9 if inside else 0.75,
            label=f"{period}" if inside else f"{period} (not trained)",
        )
    chance = yardstick(run, "behaviour/induction_accuracy_period", "chance")
    if chance is not None:
        reference(axes, chance, f"chance {chance:.3g}")
    axes.set_ylabel("induction accuracy")
    axes.set_ylim(-0.03, 1.05)
    legend_right(axes, title="block length (tokens)")


def _draw_probes(axes: Axes, run: Run, accuracies: np.ndarray) -> None:
    """Draw the accuracy on each kind of probe, with its own ceiling where an ideal matcher of one token fails."""
    kinds = run.layout.probe_kinds
    ceilings = listed(run, "behaviour/induction_accuracy_probe", "ceiling", len(kinds))
    chances = listed(run, "behaviour/induction_accuracy_probe", "chance", len(kinds))
    for color, kind, heights, ceiling in zip(categorical(len(kinds)), kinds, accuracies.T, ceilings, strict=True):
        if not np.isfinite(heights).any():
            continue  # no_repeat predicts nothing
        curve(axes, run.steps, heights, color=color, lw=1.2, label=kind.replace("_", " "))
        if ceiling < 1:
            axes.axhline(ceiling, color=color, ls="--", lw=1.0, label=f"one-token matcher {ceiling:.2f}", gid="ceiling")
    if np.isfinite(chances).any():
        reference(axes, float(np.nanmean(chances)), f"chance {np.nanmean(chances):.3g}")
    axes.set_ylabel("induction accuracy")
    axes.set_ylim(-0.03, 1.05)
    legend_right(axes, title="kind of probe")


def _uniform_loss(run: Run) -> float | None:
    chance = yardstick(run, "behaviour/loss", "chance")
    if chance is not None:
        return chance
    return uniform_loss(run.layout.vocab_size) if run.layout.vocab_size else None


def _perfect_loss(run: Run) -> float | None:
    """Return the loss of perfect induction, where the data are repeated blocks and nothing else."""
    trained, vocab_size, length = trained_periods(run), setting(run, "vocab_size"), setting(run, "seq_length")
    prefix = setting(run, "max_prefix") or 0
    if trained is None or not vocab_size or not length or prefix + trained[1] > length - 1:
        return None
    # A random prefix only moves the first token that can be known, as a longer first block would.
    unknown = [start + period for start in range(prefix + 1) for period in range(trained[0], trained[1] + 1)]
    level = perfect_induction_loss(vocab_size=vocab_size, seq_length=length, periods=unknown, knows_periods=False)
    return level if math.isfinite(level) else None


def _reason(run: Run, name: str) -> str:
    try:
        values(run, name)
    except MissingDataError as error:
        return error.reason
    return "it was measured"
