"""What the theory predicts for each stage: rates, conserved quantities, and whole curves to lay over a run.

Stage I (c moves). The loss depends on c only through p, so sum c^2 is conserved by the flow and can only grow under
descent. With constant forces J (they change by the order of a), ln(p_S* / p_S) grows at 4 a (J_S* - J_S) / sum c^2:
competitors vanish exponentially.

Stage II (w moves). Only heads in S* feel a force, and the sum of a head's weights is conserved. Once a head is sharp,
the force on the gap between target and other offsets is proportional to e^-gap: the gap grows like ln t.

Stage III (a moves). a grows at first at rate J_S*. With the double-softmax loss the force becomes proportional to e^-a
and a grows like ln t, without end. With the proper cross-entropy it comes to rest.

Source: Chen et al. 2024, arXiv 2409.10559; the rates follow from the chain rule (`subset_forces`).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from spectral.models import DisentangledTransformer


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectionCurve:
    """Stage I as predicted from the forces at its start.

    Attributes:
        times: [time] epochs, or flow time.
        shares: [time, subset] p_S.
        sum_squares: [time] sum c^2.
    """

    times: Float64[Tensor, " time"]
    shares: Float64[Tensor, "time subset"]
    sum_squares: Float64[Tensor, " time"]


def exclusion_rates(forces: Float[Tensor, " subset"], *, a: float, sum_squares: float) -> Float64[Tensor, " subset"]:
    """Return how fast ln(p_S* / p_S) grows in Stage I, per unit of flow time; 0 for S*, positive for the others.

    Formula: 4 a (max J - J_S) / sum c^2.
    """
    forces = forces.double()
    return 4 * a * (forces.max() - forces) / sum_squares


def selection_flow(
    forces: Float[Tensor, " subset"],
    *,
    c: Float[Tensor, " subset"],
    a: float,
    times: Float[Tensor, " time"],
) -> SelectionCurve:
    """Return Stage I under the gradient flow with constant forces, in closed form.

    Formula: p_S(t) proportional to p_S(0) exp(4 a J_S t / sum c^2), sum c^2 constant.
    Holds:   exactly for the flow with constant J; lr <= 0.05 follows it (at lr 1 the signs of c flip).
    """
    c, times = c.detach().double(), times.double()
    total = c @ c
    logits = (c**2).log() + 4 * a * times[:, None] * forces.double() / total
    return SelectionCurve(times=times, shares=logits.softmax(1), sum_squares=total.expand(len(times)))


def selection_descent(
    forces: Float[Tensor, " subset"], *, c: Float[Tensor, " subset"], a: float, lr: float, epochs: int
) -> SelectionCurve:
    """Return Stage I under gradient descent with constant forces: epochs 0 .. `epochs`.

    Formula: c_S <- c_S (1 + (2 lr a / sum c^2) (J_S - sum p J)).
    """
    c, forces = c.detach().double().clone(), forces.double()
    shares, sums = [], []
    for _ in range(epochs + 1):
        total = c @ c
        p = c**2 / total
        shares.append(p)
        sums.append(total)
        c = c * (1 + 2 * lr * a / total * (forces - p @ forces))
    times = torch.arange(epochs + 1, dtype=torch.float64)
    return SelectionCurve(times=times, shares=torch.stack(shares), sum_squares=torch.stack(sums))


def logarithmic_growth(times: NDArray[np.float64], *, start: float, rate: float) -> NDArray[np.float64]:
    """Return the solution of dx/dt = rate e^-x: x(t) = ln(e^start + rate t).

    Late in Stage II this is the gap between a head's target and its other offsets, in Stage III (double softmax) a.
    It gains ln 10 = 2.30 per decade of time.
    """
    value: NDArray[np.float64] = np.logaddexp(start, np.log(np.maximum(rate * times, np.finfo(float).tiny)))
    return value


def growth_rate(times: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Return the rate of `logarithmic_growth` through the last of these points and the one at a tenth of its time.

    Formula: (e^x(T) - e^x(T/10)) / (T - T/10).

    Raises:
        ValueError: fewer than 2 points, or no point at or before a tenth of the last time.
    """
    early = np.flatnonzero(times <= times[-1] / 10) if len(times) else np.array([], dtype=int)
    if len(early) == 0:
        msg = f"{len(times)} points spanning less than a decade of time give no late rate; measure longer"
        raise ValueError(msg)
    i = int(early[-1])
    return float((math.exp(values[-1]) - math.exp(values[i])) / (times[-1] - times[i]))


def offset_gaps(w: Float[Tensor, "head offset"], offsets: Float[Tensor, "head offset"] | Tensor) -> Tensor:
    """Return for every head the weight of its target offset minus the log-mean-exp of the others, [head].

    The target of head h (from 1) is offset h. Infinite for a window of one offset.
    """
    target = offsets == torch.arange(1, len(w) + 1)[:, None]
    others = w.masked_fill(target, -math.inf)
    mean: Tensor = torch.logsumexp(others, 1) - math.log(max(w.shape[1] - 1, 1))
    return w[target] - mean


@dataclass(frozen=True, kw_only=True, eq=False)
class Conserved:
    """What gradient flow keeps in the simplified model.

    Attributes:
        sum_squares: [] sum c^2; descent lets it grow, never fall.
        head_sums: [head] sum of a head's relative-position weights; descent keeps them too.
    """

    sum_squares: Float64[Tensor, ""]
    head_sums: Float64[Tensor, " head"]


def conserved(model: DisentangledTransformer) -> Conserved:
    """Return the conserved quantities at the present weights."""
    return Conserved(sum_squares=(model.c.detach().double() ** 2).sum(), head_sums=model.w.detach().double().sum(1))
