"""What one snapshot shows of weights and spectrum: OV, QK and Hessian eigenvalues, density, block masses."""

from collections.abc import Sequence

import numpy as np

from spectral.plots.curvature import CURVATURE_UNIT, group_blocks
from spectral.plots.report.heads import head_keys
from spectral.plots.report.thinning import frame_rows
from spectral.plots.report.view import Part, View, left_out, new_figure, plain
from spectral.plots.source import MissingDataError, values, values_or_none
from spectral.plots.style import SIGNAL_COLORS, heat_colors
from spectral.plots.verdict import Verdict
from spectral.storage import Run

FRAME_BYTES = 700_000
"""What the frames of one picture may take; a third more in the page."""
_GRID = 240  # points of the density
_HEIGHT = 340


def ov_plane(run: Run, verdict: Verdict) -> View:
    """Draw the eigenvalues of every head's OV circuit in the complex plane.

    Raises:
        MissingDataError: not stored.
    """
    caption = "W_E W_V W_O W_U. To the right: the head raises the logit of the token it attends to (copying)."
    return _plane(run, verdict, "ov_eigenvalues", "OV eigenvalues", caption)


def qk_plane(run: Run, verdict: Verdict) -> View:
    """Draw the eigenvalues of every head's QK circuit in the complex plane.

    Raises:
        MissingDataError: not stored.
    """
    caption = "W_E W_Q W_Kᵀ W_Eᵀ. To the right: tokens attend to tokens like themselves."
    return _plane(run, verdict, "qk_eigenvalues", "QK eigenvalues", caption)


def hessian_eigenvalues(run: Run, verdict: Verdict) -> View:
    """Draw the Hessian's outermost eigenvalues at one step, with error bounds.

    Raises:
        MissingDataError: no eigenvalues.
    """
    ends = [("", "largest", "top_eigenvalue"), ("negative_", "most negative", "negative_eigenvalue")]
    found = {prefix: values_or_none(run, f"hessian/{prefix}eigenvalues") for prefix, _, _ in ends}
    if all(spectrum is None for spectrum in found.values()):
        values(run, "hessian/eigenvalues")
    rows = _rows(run, sum(2 * s.shape[1] for s in found.values() if s is not None), verdict)
    figure = new_figure(height=_HEIGHT)
    parts: list[Part] = []
    for prefix, label, signal in ends:
        spectrum = found[prefix]
        if spectrum is None:
            continue
        k = spectrum.shape[1]
        bounds = values_or_none(run, f"hessian/{prefix}error_bounds")
        trace = len(figure.data)
        color = SIGNAL_COLORS[signal]
        figure.add_scatter(
            x=np.arange(1, k + 1), mode="markers", name=label, marker={"color": color, "size": 9},
            error_y={"type": "data", "color": color, "thickness": 1.2, "width": 5},
            hovertemplate="rank %{x}: %{y:.5g}<extra></extra>",
        )  # fmt: skip
        parts.append(Part(trace=trace, key="y", values=spectrum[rows]))
        if bounds is not None:
            parts.append(Part(trace=trace, key="error_y.array", values=bounds[rows]))
    figure.update_xaxes(title="rank (1 = outermost)", dtick=1)
    figure.update_yaxes(title=CURVATURE_UNIT, range=_range([s for s in found.values() if s is not None]))
    return View(
        name="hessian-eigenvalues", group="spectrum", title="Hessian eigenvalues",
        caption="Both ends of the spectrum at this step; bars are error bounds. The axis is that of the whole run.",
        figure=figure, steps=run.steps[rows], parts=tuple(parts), note=_note(rows, run),
    )  # fmt: skip


def spectral_density(run: Run, verdict: Verdict) -> View:
    """Draw the density of all Hessian eigenvalues at one step, and the outermost ones as ticks.

    The stored quadrature is smoothed by Gaussians whose deviation is 1 % of the widest spectrum of the run.

    Raises:
        MissingDataError: not stored; `--density_steps` asks for it.
    """
    try:
        nodes = values(run, "hessian/density_nodes")
    except MissingDataError as error:
        raise MissingDataError(run, error.dataset, f"{error.reason} (--density_steps measures it)") from None
    weights = values(run, "hessian/density_weights")
    rows = _rows(run, _GRID, verdict)
    low, high = float(np.nanmin(nodes)), float(np.nanmax(nodes))
    sigma = 0.01 * ((high - low) or 1.0)
    grid = np.linspace(low - 4 * sigma, high + 4 * sigma, _GRID)
    curves = np.stack([_smoothed(nodes[row].ravel(), weights[row].ravel(), grid, sigma) for row in rows])
    figure = new_figure(height=_HEIGHT)
    figure.add_scatter(
        x=grid, mode="lines", name="density", line={"color": SIGNAL_COLORS["top_eigenvalue"], "width": 1.8},
        hovertemplate="λ %{x:.3g}: %{y:.2g}<extra></extra>",
    )  # fmt: skip
    parts = [Part(trace=0, key="y", values=curves)]
    floor = float(np.nanmax(curves)) * 1e-6
    for prefix, label, signal in (
        ("", "largest eigenvalues", "gradient_alignment"),
        ("negative_", "most negative", "negative_eigenvalue"),
    ):
        spectrum = values_or_none(run, f"hessian/{prefix}eigenvalues")
        if spectrum is not None:
            parts.append(Part(trace=len(figure.data), key="x", values=spectrum[rows]))
            figure.add_scatter(
                y=[floor * 2] * spectrum.shape[1], mode="markers", name=label,
                marker={"symbol": "line-ns-open", "size": 12, "color": SIGNAL_COLORS[signal]},
                hovertemplate="%{x:.4g}<extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(title=f"eigenvalue ({CURVATURE_UNIT})", range=[float(grid[0]), float(grid[-1])])
    top = float(np.log10(np.nanmax(curves)))
    figure.update_yaxes(title="density", type="log", range=[top - 6, top + 0.2], dtick=1, exponentformat="power")
    return View(
        name="spectral-density", group="spectrum", title="Spectral density",
        caption="Where the eigenvalues lie: the bulk near 0, outliers to the right; a logarithmic height.",
        figure=figure, steps=run.steps[rows], parts=tuple(parts), note=_note(rows, run),
    )  # fmt: skip


def block_mass(run: Run, verdict: Verdict) -> View:
    """Draw which parameter blocks carry each top eigenvector; blocks that never matter are one row per layer.

    Raises:
        MissingDataError: not stored.
    """
    names, mass = group_blocks(values(run, "hessian/block_mass"), run.layout.block_names)
    rows = _rows(run, mass.shape[1] * mass.shape[2], verdict)
    shades = heat_colors()
    scale = [[i / 10, "#" + "".join(f"{int(255 * part):02x}" for part in shades(i / 10)[:3])] for i in range(11)]
    figure = new_figure(height=max(_HEIGHT, 22 * len(names) + 60))
    figure.add_heatmap(
        x=np.arange(1, mass.shape[1] + 1), y=[plain(name) for name in names], zmin=0,
        zmax=max(float(np.nanmax(mass)), 1e-12), colorscale=scale, xgap=1, ygap=1, hoverongaps=False,
        colorbar={"title": {"text": "share", "side": "right"}, "thickness": 10, "len": 0.9},
        hovertemplate="eigenvector %{x}<br>%{y}<br>share %{z:.3f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title="eigenvector (rank)", dtick=1, showgrid=False, zeroline=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, automargin=True)
    return View(
        name="block-mass", group="spectrum", title="Where the top eigenvectors live",
        caption="Share of each eigenvector's squared length in each block of parameters; columns sum to 1.",
        figure=figure, steps=run.steps[rows], parts=(Part(trace=0, key="z", values=mass[rows].transpose(0, 2, 1)),),
        note=_note(rows, run),
    )  # fmt: skip


SNAPSHOTS = (ov_plane, qk_plane, hessian_eigenvalues, spectral_density, block_mass)


def _plane(run: Run, verdict: Verdict, name: str, title: str, caption: str) -> View:
    found = values(run, f"circuits/{name}")  # [step, layer, head, eigen, part]
    rows = _rows(run, int(np.prod(found.shape[1:])), verdict)
    figure = new_figure(height=_HEIGHT)
    parts: list[Part] = []
    for trace, key in enumerate(reversed(head_keys(run))):
        figure.add_scatter(
            mode="markers", name=key.label, showlegend=key.in_legend,
            marker={"color": key.color, "size": 7 if key.named else 5, "opacity": 0.85},
            hovertemplate=f"{key.name}: %{{x:.3g}} %{{y:+.3g}} i<extra></extra>",
        )  # fmt: skip
        for part, axis in enumerate(("x", "y")):
            parts.append(Part(trace=trace, key=axis, values=found[rows][:, key.layer, key.head, :, part]))
    size = 1.06 * float(np.nanmax(np.abs(found))) or 1.0
    figure.update_xaxes(title="real part", range=[-size, size], zeroline=True)
    figure.update_yaxes(title="imaginary part", range=[-size, size], zeroline=True)
    figure.update_layout(legend_traceorder="reversed")
    return View(
        name=name.replace("_", "-"), group="weights", title=title, caption=caption, figure=figure,
        steps=run.steps[rows], parts=tuple(parts), note=_note(rows, run),
    )  # fmt: skip


def _smoothed(nodes: np.ndarray, weights: np.ndarray, grid: np.ndarray, sigma: float) -> np.ndarray:
    """Return the mean over probes of the weights smoothed by Gaussians, NaN where nothing was measured."""
    known = np.isfinite(nodes) & np.isfinite(weights)
    if not known.any():
        return np.full(len(grid), np.nan)
    distance = (grid[:, None] - nodes[None, known]) / sigma
    total = np.exp(-(distance**2) / 2) @ weights[known]
    return np.asarray(total / (weights[known].sum() * sigma * np.sqrt(2 * np.pi)))


def _range(spectra: Sequence[np.ndarray]) -> list[float]:
    low, high = (float(f([f(spectrum) for spectrum in spectra])) for f in (np.nanmin, np.nanmax))
    low, high = min(low, 0.0), max(high, 0.0)
    room = 0.06 * ((high - low) or 1.0)
    return [low - room, high + room]


def _rows(run: Run, numbers: int, verdict: Verdict) -> np.ndarray:
    return frame_rows(run.steps, FRAME_BYTES // (4 * max(numbers, 1)), verdict)


def _note(rows: np.ndarray, run: Run) -> str:
    return left_out(len(rows), len(run.steps), "snapshots are shown here")
