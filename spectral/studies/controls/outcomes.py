"""What became of one run: the detector's verdict, its alarms on the way, and when the accuracy crossed halfway.

The verdict is made anew from the stored snapshots, so that runs trained at different times are judged by one detector.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spectral.detection import RunVerdict
from spectral.detection.mechanism import Mechanism
from spectral.detection.signals import FAMILY_OF
from spectral.storage import open_run
from spectral.studies.plan import Job
from spectral.training.judge import find_mechanism, judge_run

LEAST_RISE = 0.2  # of the accuracy; with less there is nothing that could be crossed halfway
_SPECTRUM = "spectrum"


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A transition announced while the run was going on: when, and where it was said to be."""

    step: float
    midpoint: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """One finished run. N = snapshots.

    Attributes:
        path: run folder.
        model: kind of run.
        seed: of the run.
        num_steps: length.
        verdict: of the whole run, from all signals.
        spectrum: of the same run judged by its spectrum alone; None where no spectrum was measured.
        mechanism: what formed.
        alarms: transitions confirmed during training, in order.
        half_crossing: step at which the induction accuracy crosses the middle between its first and its final level,
            linearly interpolated; None when it rises by less than `LEAST_RISE`. The detector does not see it: none of
            its signals is an accuracy.
        steps: [N].
        accuracy: [N] induction accuracy on repeated blocks.
        induction_score: [N] largest corrected induction score over heads.
        largest_eigenvalue: [N].
    """

    path: Path
    model: str
    seed: int
    num_steps: int
    verdict: RunVerdict
    spectrum: RunVerdict | None
    mechanism: Mechanism
    alarms: tuple[Alarm, ...]
    half_crossing: float | None
    steps: np.ndarray
    accuracy: np.ndarray
    induction_score: np.ndarray
    largest_eigenvalue: np.ndarray

    @property
    def error(self) -> float | None:
        """Midpoint minus half crossing, as a fraction of the run; None where one of them is missing."""
        if self.verdict.midpoint is None or self.half_crossing is None:
            return None
        return (self.verdict.midpoint - self.half_crossing) / self.num_steps

    @property
    def abrupt_signals(self) -> list[str]:
        """Names of the signals that changed abruptly, each judged alone."""
        return [name for name, signal in self.verdict.signals.items() if signal.detected]

    def lead(self, first: str, second: str) -> float | None:
        """Return how much later family `first` moved than `second`, in steps: the median over pairs of signals.

        None where one of the two holds no abrupt signal.
        """
        found = [
            pair.difference
            for pair in self.verdict.lead_lag
            if (pair.first_family, pair.second_family) == (first, second)
        ]
        return float(np.median(found)) if found else None


def measure(job: Job) -> Outcome:
    """Judge one finished run."""
    with open_run(job.path) as run:
        significance = job.config.significance
        verdict = judge_run(run, significance=significance)
        assert verdict is not None  # a finished run holds the snapshot of step 0
        has_spectrum = any(FAMILY_OF[name] == _SPECTRUM for name in verdict.signals)
        accuracy = run.read("behaviour/induction_accuracy")
        scores = run.read("circuits/induction_score_corrected")
        return Outcome(
            path=job.path,
            model=job.model,
            seed=job.seed,
            num_steps=job.config.num_steps,
            verdict=verdict,
            spectrum=judge_run(run, significance=significance, select=[_SPECTRUM]) if has_spectrum else None,
            mechanism=find_mechanism(run, verdict),
            alarms=read_alarms(run.path),
            half_crossing=half_crossing(run.steps, accuracy),
            steps=np.asarray(run.steps),
            accuracy=accuracy,
            induction_score=scores.reshape(len(scores), -1).max(axis=1),
            largest_eigenvalue=run.read("hessian/eigenvalues")[:, 0],
        )


def half_crossing(steps: np.ndarray, accuracy: np.ndarray) -> float | None:
    """Return the step at which a curve [n] first reaches the middle between its first and its final level.

    The final level is the median of the last tenth, at least of 3 snapshots. None when it lies less than `LEAST_RISE`
    above the first value.
    """
    final = float(np.median(accuracy[-max(3, len(accuracy) // 10) :]))
    first = float(accuracy[0])
    if not final - first >= LEAST_RISE:
        return None
    middle = (first + final) / 2
    i = int(np.argmax(accuracy >= middle))
    share = (middle - accuracy[i - 1]) / (accuracy[i] - accuracy[i - 1])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def read_alarms(run_path: Path) -> tuple[Alarm, ...]:
    """Return the transitions confirmed during a run; a resumed run may tell of one twice, it counts once."""
    found: dict[float, Alarm] = {}
    for line in (run_path / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event.get("kind") == "detector" and event.get("event") == "transition_confirmed":
            found[event["step"]] = Alarm(step=event["step"], midpoint=event["midpoint"])
    return tuple(found[step] for step in sorted(found))
