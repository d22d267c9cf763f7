"""One page that tells a newcomer what happened in a run."""

import textwrap
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral.plots.behaviour import all_steps, draw_accuracies, draw_losses
from spectral.plots.curvature import CURVATURE_UNIT, draw_alignment, draw_eigenvalues
from spectral.plots.heads import draw_best_heads
from spectral.plots.panels import run_note, score_yardsticks, step_axes
from spectral.plots.source import MissingDataError, values, yardstick
from spectral.plots.style import INK, MUTED, TRANSITION, finish, house_style, legend_right, new_figure
from spectral.plots.verdict import REASONS, Verdict, mark_transition, read_verdict
from spectral.storage import Run

_TOP_SHOWN = 5
_LEAD_LAG_SHOWN = 4
_LINE_INCHES = 0.158
_TEXT_WIDTH = 50


def summary(run: Run, *, log_steps: bool = False) -> Figure:
    """Draw loss, accuracy, top eigenvalues, gradient alignment and best heads over one step axis, beside the verdict.

    Parts that the run does not hold are left out and listed in the text column.

    Raises:
        MissingDataError: the run holds none of them.
    """
    with house_style():
        verdict = read_verdict(run)
        parts, missing = _available(run)
        if not parts:
            values(run, "train/loss")  # raises with the reason
        height = max(1.62 * len(parts) + 0.4, 6.2)
        figure = new_figure(
            12.2, height, title=_headline(verdict), notes=[verdict.sentence, run_note(run) + verdict.band_key]
        )
        columns = figure.add_gridspec(1, 2, width_ratios=[3.1, 1.2])
        cells = columns[0].subgridspec(len(parts), 1)
        panels: list[Axes] = []
        for i, draw in enumerate(parts.values()):
            axes = figure.add_subplot(cells[i], sharex=panels[0] if panels else None)
            draw(axes)
            legend_right(axes)
            if i < len(parts) - 1:
                axes.tick_params(labelbottom=False)
            panels.append(axes)
        step_axes(panels, all_steps(run), log_steps=log_steps)
        mark_transition(panels, verdict)
        _write(figure.add_subplot(columns[1]), _sections(run, verdict, missing), height)
        return finish(figure)


def _available(run: Run) -> tuple[dict[str, Callable[[Axes], Any]], list[str]]:
    """Return what to draw, name -> drawing, and what the run does not hold."""
    parts: dict[str, Callable[[Axes], Any]] = {}
    missing = []

    def offer(name: str, draw: Callable[[Axes], Any], *datasets: str) -> None:
        reasons = []
        for dataset in datasets:
            try:
                values(run, dataset)
            except MissingDataError as error:
                reasons.append(error.reason)
        if len(reasons) < len(datasets):
            parts[name] = draw
        else:
            missing.append(f"{name}: {reasons[0]}")

    offer("loss", lambda axes: draw_losses(axes, run), "train/loss", "behaviour/loss")
    accuracies = [f"behaviour/{n}" for n in ("induction_accuracy", "random_accuracy", "in_context_probability")]
    offer("accuracy", lambda axes: draw_accuracies(axes, run), *accuracies)
    offer("eigenvalues", lambda axes: _draw_top(axes, run), "hessian/eigenvalues")
    offer("gradient alignment", lambda axes: _draw_alignment(axes, run), "hessian/gradient_alignment_total")
    offer(
        "head scores", lambda axes: _draw_heads(axes, run), "circuits/induction_score", "circuits/previous_token_score"
    )
    return parts, missing


def _draw_top(axes: Axes, run: Run) -> None:
    spectrum = values(run, "hessian/eigenvalues")
    k = min(_TOP_SHOWN, spectrum.shape[1])
    draw_eigenvalues(axes, run, spectrum, prefix="", label="", n_ranks=k)
    axes.set_title("")
    axes.set_ylabel(f"eigenvalues\n({CURVATURE_UNIT})", fontsize=8.0)


def _draw_alignment(axes: Axes, run: Run) -> None:
    total = values(run, "hessian/gradient_alignment_total")
    draw_alignment(axes, run, total, yardstick(run, "hessian/gradient_alignment", "chance"), chosen=3)
    axes.set_ylabel("gradient in top k\n(share)", fontsize=8.0)


def _draw_heads(axes: Axes, run: Run) -> None:
    draw_best_heads(axes, run, {"induction_score": 2, "previous_token_score": 1})
    score_yardsticks(
        axes,
        yardstick(run, "circuits/induction_score", "chance"),
        yardstick(run, "circuits/induction_score", "ceiling"),
    )
    axes.set_ylabel("best heads\n(share of attention)", fontsize=8.0)


def _headline(verdict: Verdict) -> str:
    if verdict.detected:
        return f"An abrupt transition at step {verdict.midpoint:,.0f}"
    return "No abrupt transition detected" if verdict.judged else "Not judged by the detector"


def _sections(run: Run, verdict: Verdict, missing: list[str]) -> list[tuple[str, list[str]]]:
    sections = [("What happened", what_happened(run, verdict))]
    agreeing = _consensus(run).get("agreeing_signals") or {}
    if agreeing:
        lines = [
            f"{family}: {', '.join(name.replace('_', ' ') for name in names)}" for family, names in agreeing.items()
        ]
        sections.append(("Families of signals that agree", lines))
    elif verdict.judged:
        sections.append(("Signal by signal", _signals(run)))
    order = what_came_first(run)
    if order:
        sections.append(("What came first", order))
    sections.append(("How it was trained", how_trained(run)))
    if missing:
        sections.append(("Not drawn", missing))
    return sections


def what_happened(run: Run, verdict: Verdict) -> list[str]:
    """Return verdict, times, sharpness and p-value of the run in a few lines."""
    if not verdict.judged:
        return [verdict.sentence]
    lines = [f"verdict: {verdict.verdict}"]
    if verdict.reason:
        lines.append(f"because {REASONS.get(verdict.reason, verdict.reason)}")
    consensus = _consensus(run)
    if verdict.onset is not None and verdict.midpoint is not None and verdict.end is not None:
        lines.append(f"when: step {verdict.onset:,.0f} to {verdict.end:,.0f}, half-way at {verdict.midpoint:,.0f}")
        if verdict.interval is not None:
            lines.append(f"half-way, 90 % interval: {verdict.interval[0]:,.0f} to {verdict.interval[1]:,.0f}")
        abruptness = consensus.get("abruptness")
        if isinstance(abruptness, int | float):
            lines.append(f"how sharp: {abruptness:.1f} times the even slope (1 = gradual, 22 = a clean step)")
    if verdict.p_value is not None:
        level = consensus.get("false_alarm_level")
        lines.append(f"p = {verdict.p_value:.2g}" + (f" (false-alarm level {level:g})" if level is not None else ""))
    return lines


def _signals(run: Run) -> list[str]:
    """Return what the detector says of each signal: the run's "no" has reasons, and a slow change has a date."""
    lines = []
    for name, signal in (run.transitions.get("signals") or {}).items():
        words = "abrupt" if signal.get("detected") else REASONS.get(str(signal.get("reason")), signal.get("verdict"))
        onset, end = signal.get("onset"), signal.get("end")
        when = f", step {onset:,.0f} to {end:,.0f}" if onset is not None and end is not None else ""
        lines.append(f"{name.replace('_', ' ')}: {words}{when}")
    return lines or ["no signal was judged"]


def what_came_first(run: Run) -> list[str]:
    """Return the time lags between signals of different families, those that exclude 0 first."""
    pairs = [pair for pair in run.transitions.get("lead_lag") or [] if isinstance(pair, dict)]
    pairs.sort(key=lambda pair: (not pair.get("resolved"), -abs(float(pair.get("difference") or 0.0))))
    lines = []
    for pair in pairs[:_LEAD_LAG_SHOWN]:
        first, second = (str(pair[key]).replace("_", " ") for key in ("first", "second"))
        low, high = sorted(float(bound) for bound in pair["interval"])
        lag = float(pair["difference"])
        if not pair.get("resolved"):
            lines.append(f"{first} and {second}: no order ({lag:+,.0f} steps, 90 %: {low:+,.0f} to {high:+,.0f})")
        else:
            early, late = (first, second) if lag < 0 else (second, first)
            low, high = sorted((abs(low), abs(high)))
            lines.append(f"{early} {abs(lag):,.0f} steps before {late} (90 %: {low:,.0f} to {high:,.0f})")
    if len(pairs) > _LEAD_LAG_SHOWN:
        lines.append(f"and {len(pairs) - _LEAD_LAG_SHOWN} further pairs in transitions.json")
    return lines


def how_trained(run: Run) -> list[str]:
    """Return data, model, optimizer, interval and seed in a few lines."""
    config = run.config

    def get(name: str) -> Any:
        return config.get(name, "?")

    lines = []
    if "data" in config:
        blocks = f", blocks of {get('min_period')} to {get('max_period')}" if config["data"] == "repeated" else ""
        lines.append(f"data: {get('data')}{blocks}; {get('vocab_size')} tokens, sequences of {get('seq_length')}")
    if "d_model" in config:
        mlp = "attention only" if not config.get("d_ff") else f"MLP of {config['d_ff']}"
        norm = "LayerNorm" if config.get("layer_norm") else "no LayerNorm"
        lines.append(
            f"model: {get('n_layers')} layers of {get('n_heads')} heads, d_model {get('d_model')}, {mlp}, {norm}, "
            f"{get('positions')} positions"
        )
    if "optimizer" in config:
        lines.append(
            f"training: {get('optimizer')}, lr {get('lr')}, batch {get('batch_size')}, {get('num_steps')} steps"
        )
    if "eigen_interval" in config:
        interval = config["eigen_interval"]
        lines.append(f"measured every {interval} steps" if interval else "measuring switched off (eigen_interval 0)")
    if "seed" in config:
        lines.append(f"seed: {get('seed')}")
    return lines or ["the run stores no configuration"]


def _consensus(run: Run) -> dict[str, Any]:
    found = run.transitions.get("consensus")
    return found if isinstance(found, dict) else {}


def _write(axes: Axes, sections: list[tuple[str, list[str]]], height: float) -> None:
    """Write the text column from the top; lines wrap, and what belongs together is indented."""
    axes.set_axis_off()
    line = _LINE_INCHES / height
    place = 1.0
    for heading, entries in sections:
        axes.text(0.0, place, heading, size=9.5, weight="bold", color=TRANSITION if place == 1.0 else INK, va="top")
        place -= 1.25 * line
        for entry in entries:
            wrapped = textwrap.wrap(entry, _TEXT_WIDTH, subsequent_indent="   ")
            axes.text(0.0, place, "\n".join(wrapped), size=8.0, color=INK, va="top", linespacing=1.3)
            place -= (len(wrapped) + 0.25) * line
        place -= 0.6 * line
    axes.text(0.0, 0.0, "Dotted: chance. Dashed: ceiling.", size=8.0, color=MUTED, va="bottom")
