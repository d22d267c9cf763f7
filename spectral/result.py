"""The record in which every score of attention patterns and outputs is handed out: the value with its yardsticks."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)  # eq=False: == on tensors is elementwise
class MetricResult:
    """One metric on one batch, with what is needed to read it.

    No eligible position gives NaN in `value` and `corrected` and 0 in `n_pairs`, never a value of 0.

    Attributes:
        value: [*shape] mean over the eligible positions of all sequences; the unit is the metric's.
        corrected: [*shape] the same on a scale where chance is 0 and the ceiling is 1; corrected per position and
            averaged afterwards, so it is not a function of `value` and `chance`.
        chance: expected value without any skill (uniform attention, uniform guesses) on this batch.
        ceiling: value of a perfect head or model.
        null_sd: standard deviation of `value` under the null that the metric's docstring names; None where no
            closed form is known.
        n_pairs: how many (sequence, position) pairs entered.
        definition: identifier of the formula, `name/variant/version`.
    """

    value: Float64[Tensor, "*shape"]
    corrected: Float64[Tensor, "*shape"]
    chance: float
    ceiling: float
    null_sd: float | None = None
    n_pairs: int
    definition: str

    def __float__(self) -> float:
        """Return `value` as a Python float; only for a scalar metric."""
        if self.value.ndim != 0:
            msg = f"{self.definition} has shape {tuple(self.value.shape)}, not one number; index its `value` instead"
            raise TypeError(msg)
        return float(self.value)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Return `value` as a NumPy array."""
        array = self.value.detach().cpu().numpy().astype(dtype or np.float64, copy=False)
        return array.copy() if copy else array
