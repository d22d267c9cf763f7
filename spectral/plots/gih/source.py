"""What the figures of an experiment take from its results: stages, names, colours, and the predicted curves."""

import math
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from spectral.errors import ResultsFileError
from spectral.gih import GIHResults, logarithmic_growth, selection_descent, selection_flow
from spectral.gih.theory import growth_rate
from spectral.plots.style import MUTED, categorical

Array = NDArray[np.float64]
THEORY: dict[str, Any] = {"color": "#262626", "ls": (0, (3, 2)), "lw": 1.0, "zorder": 3}


class MissingPartError(ResultsFileError):
    """A figure needs something that this run does not hold."""


def run_line(run: GIHResults) -> str:
    """Return one line about the run for the head of a figure."""
    config = run.config
    size = f"{config.n_training:,} chains of {config.seq_length} tokens among {config.vocab_size}"
    return (
        f"Run {run.path.name}: {run.status}, {config.model} model, {config.n_heads} heads, parents "
        f"{list(config.lags)}, alpha {config.alpha:g}, {size}, loss {config.loss.replace('_', ' ')}."
    )


def stage_of(run: GIHResults, parameter: str) -> int | None:
    """Return the last stage with rows in which a parameter moves; None where it never does."""
    found = [i for i, name in enumerate(run.stage_names) if parameter in name.split("+") and len(run.rows_of(i)) > 1]
    return found[-1] if found else None


def stage_title(run: GIHResults, stage: int) -> str:
    """Return what a stage trains and for how long."""
    return f"stage {stage + 1}: {run.stage_names[stage].replace('+', ', ')} moves, {run.config.stages()[stage].length}"


def subset_names(run: GIHResults) -> list[str]:
    """Return the subsets as sets of heads: ∅, {1}, {1,2}."""
    return [_set(str(name)) for name in run.dataset["subset"].values]


def winner(run: GIHResults) -> int:
    """Return the index of the subset that holds the largest share at the end."""
    return int(run.read("shares")[-1].argmax())


def winning_heads(run: GIHResults) -> list[int]:
    """Return the heads, from 0, in the subset that leads at the end."""
    return [head for head, member in enumerate(str(run.dataset["subset"].values[winner(run)])) if member == "1"]


def head_colors(run: GIHResults) -> list[str]:
    """Return one colour per head, the same in every figure."""
    return categorical(run.config.n_heads)


def predicted_shares(run: GIHResults, stage: int) -> tuple[Array, Array] | None:
    """Return times and p_S [time, subset] of a stage in which c alone moves, from the forces at its start.

    None for other stages and other optimisers.
    """
    if run.stage_names[stage] != "c" or run.config.optim != "sgd" or run.config.batch_size:
        return None
    first, settings = int(run.rows_of(stage)[0]), run.config.stages()[stage]
    forces, c = torch.from_numpy(run.read("forces")[first].copy()), torch.from_numpy(run.read("c")[first].copy())
    a = float(run.read("a")[first])
    if not bool(torch.isfinite(forces).all()):
        return None
    if settings.flow_time:
        times = torch.from_numpy(run.read("time")[run.rows_of(stage)].copy())
        curve = selection_flow(forces, c=c, a=a, times=times)
    else:
        curve = selection_descent(forces, c=c, a=a, lr=settings.lr, epochs=min(settings.epochs, 2000))
    return curve.times.numpy(), curve.shares.numpy()


def predicted_attention(run: GIHResults, stage: int, head: int, times: Array) -> Array | None:
    """Return a head's attention on its own offset as logarithmic growth of the gap predicts it.

    The rate is the only fitted number, taken from the last decade. None where other parameters move as well, where the
    head hardly moves, or where a stage spans less than a decade.
    """
    n = run.config.offsets_per_head
    if run.stage_names[stage] != "w" or n < 2 or run.config.model != "simplified":
        return None
    rows = run.rows_of(stage)
    own, measured = run.read("own_offset")[rows, head], run.read("time")[rows]
    gaps = np.log(own * (n - 1) / (1 - own))
    if gaps[-1] - gaps[0] < 0.1 or measured[-1] < 10 * measured[1]:
        return None
    rate = growth_rate(measured, gaps)
    gap = logarithmic_growth(times, start=float(gaps[0]), rate=rate)
    return np.asarray(1 / (1 + (n - 1) * np.exp(-gap)))


def predicted_sharpness(run: GIHResults, stage: int, times: Array) -> dict[str, Array]:
    """Return the predictions of a stage in which `a` alone moves: its start, and its late growth (double softmax).

    The start has no free number: a grows at rate sum_S p_S J_S. The late one fits the rate of ln(e^a0 + rate t) to the
    last decade.
    """
    if run.stage_names[stage] != "a" or run.config.optim != "sgd" or run.config.batch_size:
        return {}
    rows, settings = run.rows_of(stage), run.config.stages()[stage]
    first, measured, a = int(rows[0]), run.read("time")[rows], run.read("a")[rows]
    pull = float(run.read("shares")[first] @ run.read("forces")[first]) * (1.0 if settings.flow_time else settings.lr)
    found: dict[str, Array] = {}
    if math.isfinite(pull):
        found["start: rate Σ p J"] = a[0] + pull * times
    if run.config.loss == "double_softmax" and measured[-1] >= 10 * measured[1]:
        late = logarithmic_growth(times, start=float(a[0]), rate=growth_rate(measured, a))
        found["late: ln(κ t)"] = late
    return found


def log_time(axes: Axes, times: Array, label: str) -> None:
    """Give a panel a logarithmic time axis that keeps a place for time 0."""
    later = times[times > 0]
    axes.set_xscale("symlog", linthresh=float(later.min()) if len(later) else 1.0, linscale=0.25)
    axes.set_xlim(0, float(times.max()) or 1.0)  # a stage that has just begun
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)


def time_label(run: GIHResults, stage: int) -> str:
    """Return the name of a stage's time axis."""
    return "flow time" if run.config.stages()[stage].flow_time else "epoch"


def empty(axes: Axes, text: str) -> None:
    """Say in a panel why it holds nothing."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, size=9.0, transform=axes.transAxes)


def _set(bits: str) -> str:
    heads = [str(place + 1) for place, member in enumerate(bits) if member == "1"]
    return "{" + ",".join(heads) + "}" if heads else "∅"
