"""Curves as one line of text, for terminals."""

import numpy as np

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-=+*#@"
GAP = " "


def resample(steps: np.ndarray, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the mean of a curve in every bin of steps.

    Bins between two snapshots are interpolated; those outside the curve, and those where nothing finite was measured,
    are NaN.

    Args:
        steps: [n] increasing.
        values: [n], NaN where missing.
        edges: [bins + 1] increasing; the last bin holds its upper edge.
    """
    bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, bins - 1)
    known = np.isfinite(values)
    n_here, n_known = np.bincount(place, minlength=bins), np.bincount(place[known], minlength=bins)
    total = np.bincount(place[known], weights=values[known], minlength=bins)
    result = np.full(bins, np.nan)
    np.divide(total, n_known, out=result, where=n_known > 0)
    centers = (edges[1:] + edges[:-1]) / 2
    between = (n_here == 0) & (centers > steps[0]) & (centers < steps[-1]) if len(steps) else np.zeros(bins, bool)
    if known.all() and between.any():
        result[between] = np.interp(centers[between], steps, values)
    return result


def sparkline(heights: np.ndarray, *, low: float | None = None, high: float | None = None, levels: str = BLOCKS) -> str:
    """Return one character per height, blank where it is not finite.

    Args:
        heights: [n].
        low, high: of the scale; None takes the smallest and largest height. A flat curve lies at the bottom.
        levels: characters from low to high.
    """
    finite = heights[np.isfinite(heights)]
    if len(finite) == 0:
        return GAP * len(heights)
    bottom = float(finite.min()) if low is None else low
    top = float(finite.max()) if high is None else high
    span = top - bottom
    shares = (heights - bottom) / span if span > 0 else np.where(np.isfinite(heights), 0.0, np.nan)
    return "".join(
        levels[min(max(int(share * len(levels)), 0), len(levels) - 1)] if np.isfinite(share) else GAP
        for share in shares
    )


def marker_line(
    edges: np.ndarray, onset: float, midpoint: float, end: float, *, line: str = "─", mark: str = "▲"
) -> str:
    """Return a line to stand under a sparkline: a stroke from onset to end of a transition, and its midpoint."""
    bins = len(edges) - 1
    first, middle, last = (
        int(np.clip(np.searchsorted(edges, place, side="right") - 1, 0, bins - 1)) for place in (onset, midpoint, end)
    )
    return "".join(mark if i == middle else line if first <= i <= last else GAP for i in range(bins)).rstrip()
