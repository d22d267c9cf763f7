"""Correction for several tests at once."""

from collections.abc import Mapping, Sequence


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's step-down corrected p-values, in [0, 1].

    Formula: with p sorted ascending, max over j <= i of min(1, (K - j + 1) p_j). Source: Holm 1979.
    """
    corrected, running = {}, 0.0
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for i, name in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - i) * p_values[name]))
        corrected[name] = running
    return {name: corrected[name] for name in p_values}


def holm_in_order(p_values: Sequence[float]) -> list[float]:
    """Return Holm's corrected p-values of a list, in its order."""
    corrected = holm({str(i): p for i, p in enumerate(p_values)})
    return [corrected[str(i)] for i in range(len(p_values))]
