"""From a `MetricResult` to what a row and its attributes hold."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from spectral.result import MetricResult


def value_of(result: MetricResult) -> np.ndarray:
    """Return the value as float64."""
    return np.asarray(result)


def corrected_of(result: MetricResult) -> np.ndarray:
    """Return the chance-corrected value as float64."""
    return result.corrected.detach().cpu().double().numpy()


def yardsticks(result: MetricResult) -> dict[str, Any]:
    """Return chance, ceiling, null_sd (where known), number of positions and definition as attributes."""
    found = {"chance": result.chance, "ceiling": result.ceiling, "n_pairs": result.n_pairs}
    if result.null_sd is not None:
        found["null_sd"] = result.null_sd
    return found | {"definition": result.definition}


def listed_yardsticks(results: Sequence[MetricResult]) -> dict[str, Any]:
    """Return the attributes of a dataset with one entry per result: chance and so on as lists, NaN where unknown."""
    found: dict[str, Any] = {
        "chance": [result.chance for result in results],
        "ceiling": results[0].ceiling,
        "n_pairs": [result.n_pairs for result in results],
    }
    if any(result.null_sd is not None for result in results):
        found["null_sd"] = [np.nan if result.null_sd is None else result.null_sd for result in results]
    return found
