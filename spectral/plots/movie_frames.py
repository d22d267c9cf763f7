"""What the movies show: a figure that is laid out once, and what changes in it from frame to frame."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from spectral.config import RunConfig
from spectral.errors import UserError
from spectral.models import Transformer
from spectral.plots.attention import choose_heads, frame_by_role
from spectral.plots.curvature import CURVATURE_UNIT
from spectral.plots.overview import ROLES, best_head, corrected_score
from spectral.plots.panels import curve, run_note, step_axes
from spectral.plots.source import Head, MissingDataError, head_name, stored, values, values_or_none
from spectral.plots.style import INK, MUTED, SIGNAL_COLORS, finish, heat_colors, house_style, legend_right, new_figure
from spectral.plots.verdict import mark_transition, read_verdict
from spectral.storage import Run, list_checkpoints, load_checkpoint

_TRAIL = 6


@runtime_checkable
class Frames(Protocol):
    """A figure and how it looks at each of its frames."""

    figure: Figure
    n_frames: int

    def draw(self, i: int) -> None:
        """Change the figure to frame i."""


class AttentionFrames:
    """Attention patterns of up to eight heads, with the curves of accuracy and best heads below.

    Raises:
        MissingDataError: the run stores no patterns and has no checkpoint to compute them from.
    """

    @house_style()
    def __init__(self, run: Run) -> None:
        self.steps, self.patterns, origin = _patterns(run)
        self.n_frames = len(self.steps)
        self.heads, roles = choose_heads(run)
        verdict = read_verdict(run)
        columns = min(4, len(self.heads))
        rows = -(-len(self.heads) // columns)
        notes = [f"Attention patterns from {origin}: query down, key to the right.", verdict.sentence, run_note(run)]
        width = max(1.75 * columns + 0.8, 6.4)
        self.figure = new_figure(width, 1.85 * rows + 1.9, title="Attention heads forming", notes=notes)
        maps, below = self.figure.subfigures(2, 1, height_ratios=[1.85 * rows, 1.9], squeeze=False)[:, 0]
        grid = maps.subplots(rows, columns, squeeze=False)
        self._images = []
        norm = PowerNorm(0.5, 0.0, 1.0)
        for axes, head in zip(grid.flat, sorted(self.heads), strict=False):
            image = axes.imshow(
                np.ma.masked_invalid(self.patterns[0][head]), cmap=heat_colors(), norm=norm, interpolation="nearest"
            )
            role = roles.get(head)
            axes.set_title(
                head_name(*head) + ("" if role is None else f" {ROLES[role]}"),
                color=INK if role is None else SIGNAL_COLORS[role],
            )
            axes.grid(False)
            axes.set_xticks([])
            axes.set_yticks([])
            frame_by_role(axes, role)
            self._images.append((head, image))
        for axes in list(grid.flat)[len(self.heads) :]:
            axes.remove()
        panel = below.subplots()
        _progress_curves(panel, run, roles)
        self._now = _now(panel, run, self.steps)
        finish(self.figure)

    def draw(self, i: int) -> None:
        """Change the figure to frame i."""
        for head, image in self._images:
            image.set_data(np.ma.masked_invalid(self.patterns[i][head].astype(np.float32)))
        self._now(float(self.steps[i]))


class SpectrumFrames:
    """Hessian eigenvalues by rank with a fading trail, OV eigenvalues of the best induction head, and λ1 below.

    Raises:
        MissingDataError: the run holds no eigenvalues.
    """

    @house_style()
    def __init__(self, run: Run) -> None:
        self.top = values(run, "hessian/eigenvalues")
        self.bottom = values_or_none(run, "hessian/negative_eigenvalues")
        self.steps = run.steps
        self.n_frames = len(self.steps)
        verdict = read_verdict(run)
        ov, scores = values_or_none(run, "circuits/ov_eigenvalues"), corrected_score(run, "induction_score")
        self.plane = None
        self.figure = new_figure(8.8, 5.4, title="Hessian spectrum in motion", notes=[verdict.sentence, run_note(run)])
        above, below = self.figure.subfigures(2, 1, height_ratios=[3.4, 2.0], squeeze=False)[:, 0]
        panels = above.subplots(1, 1 if ov is None or scores is None else 2, squeeze=False)[0]
        self._draw_ranks(panels[0])
        if ov is not None and scores is not None:
            head = best_head(scores)
            self.plane = ov[(slice(None), *head)]
            self._draw_plane(panels[1], head_name(*head))
        panel = below.subplots()
        curve(panel, self.steps, self.top[:, 0], color=SIGNAL_COLORS["top_eigenvalue"], label="λ₁")
        if self.bottom is not None:
            curve(
                panel,
                self.steps,
                self.bottom[:, 0],
                color=SIGNAL_COLORS["negative_eigenvalue"],
                label="most negative",
            )
        panel.set_ylabel("eigenvalue")
        legend_right(panel)
        self._now = _now(panel, run, self.steps)
        finish(self.figure)

    def draw(self, i: int) -> None:
        """Change the figure to frame i."""
        for age, (top, bottom) in enumerate(self._trail):
            place = max(i - age, 0)
            top.set_data(np.arange(1, self.top.shape[1] + 1), self.top[place])
            if self.bottom is not None:
                bottom.set_data(-np.arange(1, self.bottom.shape[1] + 1), self.bottom[place])
        if self.plane is not None:
            self._points.set_data(self.plane[i, :, 0], self.plane[i, :, 1])
        self._now(float(self.steps[i]))

    def _draw_ranks(self, axes: Axes) -> None:
        k = self.top.shape[1]
        n = 0 if self.bottom is None else self.bottom.shape[1]
        everything = self.top if self.bottom is None else np.concatenate([self.top, self.bottom], axis=1)
        low, high = min(0.0, float(np.nanmin(everything))), max(0.0, float(np.nanmax(everything)))
        room = 0.06 * (high - low or 1.0)
        axes.set(xlim=(-n - 0.6 if n else 0.4, k + 0.6), ylim=(low - room, high + room))
        axes.axhline(0.0, color=MUTED, lw=0.8)
        axes.set_xlabel("rank from the upper end" + (", negative: from the lower end" if n else ""))
        axes.set_ylabel(f"eigenvalue\n({CURVATURE_UNIT})")
        axes.set_title("Hessian eigenvalues")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        self._trail = []
        for age in range(_TRAIL):
            alpha, size = (1.0, 5.0) if age == 0 else (0.45 * (1 - age / _TRAIL), 3.5)
            style: dict[str, Any] = {"ls": "", "marker": "o", "ms": size, "alpha": alpha, "zorder": 4 - 0.1 * age}
            self._trail.append(
                (
                    axes.plot([], [], color=SIGNAL_COLORS["top_eigenvalue"], **style)[0],
                    axes.plot([], [], color=SIGNAL_COLORS["negative_eigenvalue"], **style)[0],
                )
            )

    def _draw_plane(self, axes: Axes, name: str) -> None:
        assert self.plane is not None
        reach = 1.08 * float(np.nanmax(np.abs(self.plane), initial=1e-12))
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="real part", ylabel="imaginary")
        axes.axhline(0.0, color=MUTED, lw=0.8)
        axes.axvline(0.0, color=MUTED, lw=0.8)
        axes.set_title(f"OV eigenvalues of {name} (right: copying)")
        self._points = axes.plot([], [], "o", color=SIGNAL_COLORS["induction_score"], ms=4.5, alpha=0.85)[0]


MOVIES: dict[str, Callable[[Run], Frames]] = {"attention": AttentionFrames, "spectrum": SpectrumFrames}
"""Subject of `--animate` -> its frames."""


def _patterns(run: Run) -> tuple[np.ndarray, np.ndarray, str]:
    """Return steps, patterns [frame, layer, head, query, key] and where they come from."""
    try:
        return run.steps, stored(run, "circuits/attention_pattern"), "every snapshot"
    except MissingDataError:
        found = list_checkpoints(run.path / "checkpoints")
        if not found:
            raise
    try:
        tokens = torch.as_tensor(run.probe("repeat_tokens")[:1])
        model = Transformer.from_config(RunConfig.from_dict(run.config)).eval()
        patterns = []
        for _, path in found:
            model.load_state_dict(load_checkpoint(path)["model"])
            with torch.no_grad():
                patterns.append(model.forward_with_patterns(tokens)[1][0].numpy())
    except (KeyError, UserError) as error:
        reason = f"it is not stored, and the checkpoints cannot stand in ({error})"
        raise MissingDataError(run, "circuits/attention_pattern", reason) from error
    return np.array([step for step, _ in found]), np.stack(patterns), "the checkpoints"


def _progress_curves(axes: Axes, run: Run, roles: dict[Head, str]) -> None:
    accuracy = values_or_none(run, "behaviour/induction_accuracy")
    if accuracy is not None:
        curve(axes, run.steps, accuracy, color=INK, lw=1.1, label="induction accuracy")
    for (layer, head), name in roles.items():
        scores = corrected_score(run, name)
        if scores is not None:
            label = f"{head_name(layer, head)} {ROLES[name]}"
            curve(axes, run.steps, scores[:, layer, head], color=SIGNAL_COLORS[name], label=label)
    axes.set_ylim(-0.03, 1.05)
    legend_right(axes)


def _now(axes: Axes, run: Run, steps: np.ndarray) -> Callable[[float], None]:
    """Give a panel its step axis and transition, and return what moves its line and tells the step."""
    step_axes([axes], np.concatenate([run.steps, steps]))
    mark_transition([axes], read_verdict(run))
    line: Line2D = axes.axvline(float(steps[0]), color=INK, lw=1.4, gid="now")
    axes.set_title(f"step {steps[-1]:,}", weight="bold", loc="left")

    def move(step: float) -> None:
        line.set_xdata([step, step])
        axes.set_title(f"step {step:,.0f}", weight="bold", loc="left")

    return move
