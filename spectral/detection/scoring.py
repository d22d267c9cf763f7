"""Scores of change detectors: F1 with a margin, covering, and Wilson intervals of rates.

F1 and covering follow TCPDBench (van den Burg & Williams 2020, "An evaluation of change point detection algorithms").
Both flatter silence: a detector that never reports scores 0.67 and 0.5 on a curve with one transition in the middle,
and 1 on a null curve. Print "never" beside them.
"""

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

Z90, Z95 = 1.6449, 1.96


def f1_margin(annotations: Sequence[Collection[int]], predicted: Collection[int], *, margin: int = 5) -> float:
    """Return F1 in [0, 1] of predicted change points against one or more annotators.

    Args:
        annotations: change points (snapshot indices) per annotator.
        predicted: predicted change points.
        margin: largest distance of a match, in snapshots.

    Index 0 joins every set as a free match. Matches are one to one: each true point, ascending, takes the nearest
    unused prediction within the margin. Precision is against the union of the annotators, recall their mean.
    """
    guesses = set(predicted) | {0}
    truths = [set(points) | {0} for points in annotations]
    precision = _matches(set().union(*truths), guesses, margin) / len(guesses)
    recall = sum(_matches(points, guesses, margin) / len(points) for points in truths) / len(truths)
    return 2 * precision * recall / (precision + recall)


def covering(annotations: Sequence[Collection[int]], predicted: Collection[int], *, n: int) -> float:
    """Return how well the predicted segments of 0..n-1 cover the true ones, in (0, 1], averaged over annotators.

    Formula: sum over true segments of |segment| x best Jaccard index with a predicted segment, over n.
    """
    guesses = _segments(predicted, n)
    return sum(
        sum((b - a) * max(_jaccard((a, b), other) for other in guesses) for a, b in _segments(points, n)) / n
        for points in annotations
    ) / len(annotations)


def wilson(hits: int, n: int, *, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a rate, within [0, 1]; (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    p = hits / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(center - half, 0.0), min(center + half, 1.0)


def _matches(truth: set[int], guesses: set[int], margin: int) -> int:
    free, hits = set(guesses), 0
    for point in sorted(truth):
        near = [guess for guess in free if abs(guess - point) <= margin]
        if near:
            free.remove(min(near, key=lambda guess: (abs(guess - point), guess)))
            hits += 1
    return hits


def _segments(points: Collection[int], n: int) -> list[tuple[int, int]]:
    cuts = [0, *sorted({point for point in points if 0 < point < n}), n]
    return list(pairwise(cuts))


def _jaccard(one: tuple[int, int], other: tuple[int, int]) -> float:
    shared = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    return shared / (one[1] - one[0] + other[1] - other[0] - shared)
