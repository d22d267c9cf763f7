"""Staged acquisition: from which observer to which a model passes while it trains on Markov chains.

Stored with every run on `ngram` data is the divergence KL(observer || model) of the observers `uniform`, `unigram`,
`bigram` and `bayes`. A model that passes from one to the next moves away from the first and towards the second, so

    D(t) = KL(first || model) - KL(second || model)

rises, and stays high. Its zero is the moment at which the model is equally near to both.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectral.detection import Transition, detect_transition
from spectral.errors import ResultsFileError
from spectral.storage import Run

OBSERVERS = ("uniform", "unigram", "bigram", "bayes")


@dataclass(frozen=True, kw_only=True, eq=False)
class Passage:
    """One passage from an observer to the next.

    Attributes:
        first, second: names of the observers.
        values: [snapshot] D(t), nats a position.
        crossing: step from which on the model stays nearer to the second one; None where it never does, 0 where it
            does from the start.
        transition: the detector's verdict over D(t).
    """

    first: str
    second: str
    values: NDArray[np.float64]
    crossing: float | None
    transition: Transition


@dataclass(frozen=True, kw_only=True, eq=False)
class Acquisition:
    """How near a model was to every observer over training.

    Attributes:
        steps: [snapshot] optimizer steps.
        distances: observer -> [snapshot] KL(observer || model), mean over positions, nats; 0 = the same predictions.
        nearest: [snapshot] name of the nearest observer.
        passages: one per pair of neighbours in `distances`.
    """

    steps: NDArray[np.int64]
    distances: dict[str, NDArray[np.float64]]
    nearest: tuple[str, ...]
    passages: tuple[Passage, ...]


def acquisition(run: Run, *, significance: float = 0.01) -> Acquisition:
    """Return the distances of a run on Markov chains from its observers, and its passages from one to the next.

    Chains with a single parent have no passage from `bigram` to `bayes`, which then agree.

    Raises:
        ResultsFileError: the run was not on Markov chains, or holds no snapshot.
    """
    if "behaviour/reference_kl" not in run.datasets() or len(run.steps) == 0:
        msg = f"{run.path} holds no distances from observers; train with --data ngram and --eigen_interval"
        raise ResultsFileError(msg)
    stored = np.asarray(run.read("behaviour/reference_kl"), dtype=np.float64).mean(axis=2)
    distances = dict(zip(run.layout.references, stored.T, strict=True))
    return passages(run.steps, distances, significance=significance, seed=int(run.config.get("seed", 0)))


def passages(
    steps: NDArray[np.int64],
    distances: Mapping[str, NDArray[np.float64]],
    *,
    significance: float = 0.01,
    seed: int = 0,
) -> Acquisition:
    """Return `acquisition` for given distances.

    Args:
        steps: [snapshot] optimizer steps.
        distances: observer -> [snapshot] KL(observer || model); others than `OBSERVERS` are ignored.
        significance: of the detector.
        seed: of its surrogates.
    """
    known = {name: np.asarray(distances[name], dtype=np.float64) for name in OBSERVERS if name in distances}
    if "bayes" in known and np.allclose(known["bigram"], known["bayes"], atol=1e-9):
        del known["bayes"]
    names = list(known)
    nearest = np.argmin(np.stack(list(known.values())), axis=0)
    found = []
    for first, second in itertools.pairwise(names):
        values = known[first] - known[second]
        transition = detect_transition(
            steps, values, significance=significance, seed=seed, signal=f"{first} to {second}"
        )
        crossing = _last_crossing(steps, values)
        found.append(Passage(first=first, second=second, values=values, crossing=crossing, transition=transition))
    return Acquisition(steps=steps, distances=known, nearest=tuple(names[i] for i in nearest), passages=tuple(found))


def _last_crossing(steps: NDArray[np.int64], values: NDArray[np.float64]) -> float | None:
    """Return when the values become positive for good, interpolated between snapshots."""
    below = np.flatnonzero(~(values > 0))
    if len(below) == 0:
        return float(steps[0])
    i = int(below[-1])
    if i == len(values) - 1:
        return None
    part = -values[i] / (values[i + 1] - values[i])
    return float(steps[i] + part * (steps[i + 1] - steps[i]))
