"""Which points and snapshots a page draws when there are too many; extremes stay, and the page says so."""

import numpy as np

from spectral.plots.verdict import Verdict


def curve_points(heights: np.ndarray, limit: int) -> np.ndarray:
    """Return the ascending indices of the points of one curve to draw.

    Every bucket of neighbours keeps its first, lowest and highest point and its first gap (NaN), so neither a spike nor
    a hole disappears.

    Args:
        heights: [n] values, NaN in gaps.
        limit: at most about so many points; all of them where there are no more.
    """
    n = len(heights)
    if n <= limit:
        return np.arange(n)
    kept = {0, n - 1}
    for bucket in np.array_split(np.arange(n), max(1, limit // 4)):
        kept.add(int(bucket[0]))
        gaps = np.isnan(heights[bucket])
        if gaps.any():
            kept.add(int(bucket[gaps.argmax()]))
        if not gaps.all():
            kept |= {int(bucket[np.nanargmin(heights[bucket])]), int(bucket[np.nanargmax(heights[bucket])])}
    return np.array(sorted(kept))


def frame_rows(steps: np.ndarray, limit: int, verdict: Verdict) -> np.ndarray:
    """Return the ascending indices of the snapshots to show one by one.

    Half of them go to the transition and one width around it, the rest is spread evenly; first and last stay.

    Args:
        steps: [n] of the snapshots.
        limit: at most so many, 2 or more.
        verdict: where the transition is, if there is one.
    """
    n, limit = len(steps), max(2, limit)
    if n <= limit:
        return np.arange(n)
    near = np.array([], dtype=np.int64)
    if verdict.onset is not None and verdict.end is not None:
        width = verdict.end - verdict.onset
        near = _spread(
            np.flatnonzero((steps >= verdict.onset - width) & (steps <= verdict.end + width)),
            min(limit // 2, limit - 2),
        )
    kept = {0, n - 1, *near.tolist()}
    others = np.array([row for row in range(n) if row not in kept])
    return np.array(sorted({*kept, *_spread(others, max(0, limit - len(kept))).tolist()}))


def _spread(rows: np.ndarray, n: int) -> np.ndarray:
    """Return n of the rows, evenly spaced."""
    if len(rows) <= n:
        return rows
    return np.asarray(rows[np.round(np.linspace(0, len(rows) - 1, n)).astype(int)])
