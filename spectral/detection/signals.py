"""Which curves of a run the detector looks at, and how each is taken from a snapshot.

One table for the online detector, the final verdict and the figures, so that all of them mean the same curve. Signals
are continuous on purpose: accuracy thresholds a continuous quantity and can look sharp where nothing sharp happens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Signal:
    """One curve the detector follows.

    Attributes:
        name: in `transitions.json` and `/detector`.
        family: "behaviour", "circuits" or "spectrum".
        dataset: snapshot dataset it is taken from.
        reduce: [..., axes of one snapshot] -> one number per snapshot, over the last axes.
        log: whether it is analysed as a logarithm.
        long_name: what it is.
        units: its unit.
    """

    name: str
    family: str
    dataset: str
    reduce: Callable[[np.ndarray], np.ndarray]
    log: bool
    long_name: str
    units: str


def _itself(values: np.ndarray) -> np.ndarray:
    return values


def _best_head(values: np.ndarray) -> np.ndarray:
    """Return the largest score over layers and heads; NaN where no head has one."""
    flat = values.reshape(*values.shape[:-2], -1)
    return np.where(np.isnan(flat).all(axis=-1), np.nan, np.max(np.nan_to_num(flat, nan=-np.inf), axis=-1))


def _first(values: np.ndarray) -> np.ndarray:
    return values[..., 0]


def _last(values: np.ndarray) -> np.ndarray:
    return values[..., -1]


SIGNALS: tuple[Signal, ...] = (
    Signal(
        "induction_loss",
        "behaviour",
        "behaviour/induction_loss",
        _itself,
        False,
        "loss at predictable positions",
        "nats",
    ),
    Signal("icl_score", "behaviour", "behaviour/icl_score", _itself, False, "loss late minus early in context", "nats"),
    Signal(
        "induction_score",
        "circuits",
        "circuits/induction_score_corrected",
        _best_head,
        False,
        "largest corrected induction score over heads",
        "1",
    ),
    Signal(
        "previous_token_score",
        "circuits",
        "circuits/previous_token_score_corrected",
        _best_head,
        False,
        "largest corrected previous-token score over heads",
        "1",
    ),
    Signal(
        "largest_eigenvalue",
        "spectrum",
        "hessian/eigenvalues",
        _first,
        True,
        "logarithm of the largest Hessian eigenvalue",
        "nats / parameter_unit^2",
    ),
    Signal(
        "gradient_alignment",
        "spectrum",
        "hessian/gradient_alignment_total",
        _last,
        False,
        "share of the squared gradient in the top eigenspace",
        "1",
    ),
)

FAMILY_OF: dict[str, str] = {signal.name: signal.family for signal in SIGNALS}
LOG_SIGNALS: frozenset[str] = frozenset(signal.name for signal in SIGNALS if signal.log)


def signal_values(read: Callable[[str], np.ndarray], datasets: Mapping[str, Any] | list[str]) -> dict[str, np.ndarray]:
    """Return every signal whose dataset exists and holds a number.

    Args:
        read: dataset name -> array; one snapshot or a whole series with the snapshots first.
        datasets: the names that `read` knows.
    """
    found = {}
    for signal in SIGNALS:
        if signal.dataset in datasets:
            stored = np.asarray(read(signal.dataset), dtype=np.float64)
            if stored.size:
                values = signal.reduce(stored)
                if np.isfinite(values).any():
                    found[signal.name] = values
    return found
