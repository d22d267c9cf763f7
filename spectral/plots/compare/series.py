"""Curves of several runs on one axis: aligned at the transition or by step, with median and quartiles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spectral.plots.compare.runs import Comparison, Member
from spectral.plots.overview import corrected_score
from spectral.plots.source import values_or_none
from spectral.storage import Run

Alignment = Literal["midpoint", "step"]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One number per snapshot that runs of any shape can be compared in.

    Attributes:
        name: short and without spaces.
        label: what it is, with its unit.
        values: run -> [snapshot], or None where the run does not hold it.
        share: whether it lies between 0 and 1.
    """

    name: str
    label: str
    values: Callable[[Run], np.ndarray | None]
    share: bool = False


@dataclass(frozen=True, kw_only=True)
class Band:
    """Curves of one group on common places.

    Attributes:
        places: [n] steps, or steps after the midpoint.
        curves: [run, n], NaN outside of each run.
        median, low, high: [n] median and quartiles over runs; NaN where fewer than half of the runs, or fewer than
            two of several, have a value.
    """

    places: np.ndarray
    curves: np.ndarray
    median: np.ndarray
    low: np.ndarray
    high: np.ndarray


def quantities(comparison: Comparison) -> list[Quantity]:
    """Return what at least one of the runs holds, in the order in which a reader wants it."""
    totals = [values_or_none(member.run, "hessian/gradient_alignment_total") for member in comparison.members]
    # Shares in spaces of different dimension cannot be compared, so the smallest space counts for all.
    k = min((total.shape[1] for total in totals if total is not None), default=1)
    known = [
        Quantity(name="loss", label="held-out loss (nats)", values=_dataset("behaviour/loss")),
        Quantity(
            name="induction_loss", label="loss where predictable (nats)", values=_dataset("behaviour/induction_loss")
        ),
        Quantity(
            name="induction_accuracy",
            label="induction accuracy",
            values=_dataset("behaviour/induction_accuracy"),
            share=True,
        ),
        Quantity(
            name="induction_score",
            label="best induction score (corrected)",
            values=_best("induction_score"),
            share=True,
        ),
        Quantity(
            name="previous_token_score",
            label="best previous-token score (corrected)",
            values=_best("previous_token_score"),
            share=True,
        ),
        Quantity(name="largest_eigenvalue", label="largest eigenvalue λ₁", values=_column("hessian/eigenvalues", 0)),
        Quantity(
            name="most_negative_eigenvalue",
            label="most negative eigenvalue",
            values=_column("hessian/negative_eigenvalues", 0),
        ),
        Quantity(name="trace", label="trace of the Hessian", values=_dataset("hessian/trace")),
        Quantity(
            name="gradient_alignment",
            label=f"share of the squared gradient in the top {k}",
            values=_column("hessian/gradient_alignment_total", k - 1),
            share=True,
        ),
    ]
    return [one for one in known if any(one.values(member.run) is not None for member in comparison.members)]


def band(members: Sequence[Member], quantity: Quantity, align: Alignment) -> Band | None:
    """Put the curves of one group on common places; None where no run of it can be drawn.

    Between snapshots a curve is interpolated, outside of its run it is NaN. Aligned at the midpoint, places are
    multiples of the usual spacing of snapshots, and runs without a dated transition are left out.
    """
    found = []
    for member in members:
        heights = quantity.values(member.run)
        origin = 0.0 if align == "step" else member.midpoint
        if heights is not None and origin is not None:
            found.append((member.run.steps - origin, heights))
    if not found:
        return None
    places = common_places([steps for steps, _ in found], exact=align == "step")
    curves = np.stack([np.interp(places, steps, heights, left=np.nan, right=np.nan) for steps, heights in found])
    n = len(curves)
    enough = np.isfinite(curves).sum(axis=0) >= max(min(n, 2), (n + 1) // 2)
    quartiles = np.full((3, len(places)), np.nan)
    if enough.any():
        quartiles[:, enough] = np.nanquantile(curves[:, enough], [0.25, 0.5, 0.75], axis=0)
    low, median, high = quartiles
    return Band(places=places, curves=curves, median=median, low=low, high=high)


def common_places(steps: Sequence[np.ndarray], *, exact: bool) -> np.ndarray:
    """Return the places at which curves are read.

    Args:
        steps: of each run.
        exact: take every step that any of them has; otherwise multiples of the median spacing over their range.
    """
    everything = np.unique(np.concatenate(steps).astype(np.float64))
    gaps = np.concatenate([np.diff(mine) for mine in steps])
    if exact or len(gaps) == 0:
        return everything
    spacing = float(np.median(gaps))
    return spacing * np.arange(np.ceil(everything[0] / spacing), np.floor(everything[-1] / spacing) + 1)


def _dataset(name: str) -> Callable[[Run], np.ndarray | None]:
    return lambda run: values_or_none(run, name)


def _column(name: str, column: int) -> Callable[[Run], np.ndarray | None]:
    def read(run: Run) -> np.ndarray | None:
        found = values_or_none(run, name)
        return None if found is None or found.shape[1] <= column else found[:, column]

    return read


def _best(score: str) -> Callable[[Run], np.ndarray | None]:
    def read(run: Run) -> np.ndarray | None:
        found = corrected_score(run, score)
        if found is None:
            return None
        flat = found.reshape(len(found), -1)
        measured = np.isfinite(flat).any(axis=1)
        return np.where(measured, np.max(np.nan_to_num(flat, nan=-np.inf), axis=1), np.nan)

    return read
