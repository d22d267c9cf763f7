"""The detector over a stored run, and what formed there: the content of `transitions.json`."""

from collections.abc import Collection
from typing import Any

import numpy as np

from spectral.detection import RunVerdict, detect_run
from spectral.detection.mechanism import Mechanism, judge_mechanism
from spectral.detection.signals import FAMILY_OF, LOG_SIGNALS, signal_values
from spectral.storage import Run, RunDirectory, open_run

_SCORES, _FRACTIONS = "circuits/induction_score_corrected", "circuits/content_match_fraction"


def judge_run(run: Run, *, significance: float = 0.01, select: Collection[str] = ()) -> RunVerdict | None:
    """Run the offline detector over the signals a run holds; None when it holds no snapshot.

    Args:
        run: finished or not.
        significance: level of the Holm-corrected p-values.
        select: families and names of signals to judge alone; empty = all. A single family decides by a single signal.

    Raises:
        ValueError: a family or signal that the run does not hold.
    """
    if len(run.steps) == 0:
        return None
    signals = signal_values(run.read, run.datasets())
    missing = [word for word in select if word not in signals and word not in {FAMILY_OF[name] for name in signals}]
    if missing:
        msg = f"{run.path} holds no signal {missing[0]!r}; it holds {', '.join(signals)}"
        raise ValueError(msg)
    chosen = [name for name in signals if not select or name in select or FAMILY_OF[name] in select]
    return detect_run(
        run.steps,
        signals,
        {name: FAMILY_OF[name] for name in signals},
        significance=significance,
        seed=int(run.config.get("seed", 0)),
        log_signals=LOG_SIGNALS & set(signals),
        select_families={FAMILY_OF[name] for name in chosen} if select else None,
        select_signals=chosen if select else None,
    )


def find_mechanism(run: Run, verdict: RunVerdict) -> Mechanism:
    """Say what the heads did once the transition was over, its length again after its end; without one, at the end."""
    if not {_SCORES, _FRACTIONS} <= set(run.datasets()) or len(run.steps) == 0:
        return Mechanism(label="unknown")
    at = len(run.steps) - 1
    if verdict.detected:
        assert verdict.onset is not None
        assert verdict.end is not None
        at = min(at, int(np.searchsorted(run.steps, 2 * verdict.end - verdict.onset)))
    return judge_mechanism(run.read(_SCORES)[at], run.read(_FRACTIONS)[at], step=int(run.steps[at]))


def write_verdict(directory: RunDirectory, *, significance: float) -> RunVerdict | None:
    """Judge a run and store the verdict as its `transitions.json`; None and no file without a snapshot."""
    with open_run(directory.path) as run:
        verdict = judge_run(run, significance=significance)
        if verdict is not None:
            directory.write_json("transitions.json", verdict_document(run, verdict))
    return verdict


def verdict_document(run: Run, verdict: RunVerdict) -> dict[str, Any]:
    """Return the content of `transitions.json`."""
    return verdict.to_dict() | {"mechanism": find_mechanism(run, verdict).to_dict()}
