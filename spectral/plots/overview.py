"""A run in numbers, for those who read text: which heads formed, what the spectrum did, and the curves to show."""

from dataclasses import dataclass

import numpy as np

from spectral.detection.mechanism import FORMED
from spectral.plots.source import Head, head_name, values_or_none, yardstick
from spectral.storage import Run

ROLES = {"induction_score": "induction", "previous_token_score": "previous token"}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One curve of a run.

    Attributes:
        name: what it is.
        units: "" for pure numbers.
        steps: [n] of its rows.
        heights: [n], NaN where nothing was measured.
        low, high: natural scale, None = that of the curve.
    """

    name: str
    units: str
    steps: np.ndarray
    heights: np.ndarray
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class FormedHead:
    """A head whose corrected score is at least 0.3 at the last snapshot.

    Attributes:
        head: layer and head.
        role: "induction" or "previous token".
        score: at the last snapshot, chance-corrected: 0 = uniform attention, 1 = perfect.
        since: step of the first snapshot from which on the score stays at 0.3 or above.
        content_match: share of an induction score that survives unseen gaps; None where unknown.
    """

    head: Head
    role: str
    score: float
    since: int
    content_match: float | None

    @property
    def name(self) -> str:
        """Name of the head, such as L1H2."""
        return head_name(*self.head)


def corrected_score(run: Run, name: str) -> np.ndarray | None:
    """Return an attention score [step, layer, head] above chance, 0 to 1; None where it was not measured.

    Files before schema 1.2 hold the raw score, which is corrected by its mean chance level here.
    """
    found = values_or_none(run, f"circuits/{name}_corrected")
    if found is not None:
        return found
    raw, chance = values_or_none(run, f"circuits/{name}"), yardstick(run, f"circuits/{name}", "chance")
    return None if raw is None or chance is None or chance >= 1 else (raw - chance) / (1 - chance)


def formed_heads(run: Run) -> list[FormedHead]:
    """Return the heads that have formed by the last snapshot, those of one role together, best first."""
    found = []
    fractions = values_or_none(run, "circuits/content_match_fraction")
    for name, role in ROLES.items():
        scores = corrected_score(run, name)
        if scores is None:
            continue
        mine = []
        for layer, head in zip(*np.nonzero(np.nan_to_num(scores[-1]) >= FORMED), strict=True):
            below = np.flatnonzero(~(scores[:, layer, head] >= FORMED))
            fraction = np.nan if fractions is None or role != "induction" else fractions[-1, layer, head]
            mine.append(
                FormedHead(
                    head=(int(layer), int(head)),
                    role=role,
                    score=float(scores[-1, layer, head]),
                    since=int(run.steps[below[-1] + 1 if len(below) else 0]),
                    content_match=float(fraction) if np.isfinite(fraction) else None,
                )
            )
        found += sorted(mine, key=lambda one: -one.score)
    return found


def curves(run: Run) -> list[Curve]:
    """Return the curves a reader looks at first, those that the run holds."""
    found: list[Curve] = []

    def add(name: str, units: str, dataset: str, *, share: bool = False) -> None:
        heights = values_or_none(run, dataset)
        if heights is not None:
            low, high = (0.0, 1.0) if share else (None, None)
            steps = run.steps_of(dataset)
            found.append(Curve(name=name, units=units, steps=steps, heights=heights, low=low, high=high))

    add("training loss", "nats", "train/loss")
    add("held-out loss", "nats", "behaviour/loss")
    add("predictable loss", "nats", "behaviour/induction_loss")
    add("induction accuracy", "", "behaviour/induction_accuracy", share=True)
    add("random accuracy", "", "behaviour/random_accuracy", share=True)
    spectra = {
        "λ1, largest": ("hessian/eigenvalues", 0),
        "λ, most negative": ("hessian/negative_eigenvalues", 0),
    }
    for label, (dataset, rank) in spectra.items():
        spectrum = values_or_none(run, dataset)
        if spectrum is not None:
            found.append(Curve(name=label, units="", steps=run.steps, heights=spectrum[:, rank]))
    add("trace", "", "hessian/trace")
    total = values_or_none(run, "hessian/gradient_alignment_total")
    if total is not None:
        label = f"gradient in top {total.shape[1]}"
        found.append(Curve(name=label, units="", steps=run.steps, heights=total[:, -1], low=0.0, high=1.0))
    for score, role in ROLES.items():
        scores = corrected_score(run, score)
        if scores is not None:
            layer, head = best_head(scores)
            label = f"{head_name(layer, head)} {role}"
            heights = scores[:, layer, head]
            found.append(Curve(name=label, units="", steps=run.steps, heights=heights, low=0.0, high=1.0))
    return found


def best_head(scores: np.ndarray) -> Head:
    """Return the head [step, layer, head] that scores highest at the last snapshot, or else at any."""
    last = scores[-1] if np.isfinite(scores[-1]).any() else np.nanmax(scores, axis=0)
    layer, head = np.unravel_index(int(np.nanargmax(last)), last.shape)
    return int(layer), int(head)


def spectrum_lines(run: Run) -> list[str]:
    """Return what the top of the Hessian spectrum did, in a few lines."""
    spectrum = values_or_none(run, "hessian/eigenvalues")
    if spectrum is None:
        return []
    top, steps = spectrum[:, 0], run.steps
    known = np.flatnonzero(np.isfinite(top))
    first, last, peak = known[0], known[-1], known[int(np.argmax(top[known]))]
    bounds = values_or_none(run, "hessian/error_bounds")
    sure = "" if bounds is None or not np.isfinite(bounds[last, 0]) else f" ± {bounds[last, 0]:.1g}"
    lines = [
        f"λ1 {top[first]:.3g} at step {steps[first]:,}, largest {top[peak]:.3g} at step {steps[peak]:,}, "
        f"{top[last]:.3g}{sure} at step {steps[last]:,}"
    ]
    signals = run.transitions.get("signals") or {}
    for name in ("largest_eigenvalue", "gradient_alignment"):
        signal = signals.get(name)
        if isinstance(signal, dict):
            words = str(signal.get("verdict"))
            if signal.get("reason"):
                words += f" ({str(signal['reason']).replace('_', ' ')})"
            when = signal.get("midpoint")
            words += f" at step {when:,.0f}" if isinstance(when, int | float) else ""
            lines.append(f"{name.replace('_', ' ')}: {words}")
    converged = values_or_none(run, "hessian/converged")
    if converged is not None:
        share = float(np.mean(converged[known] == 1))
        lines.append(f"{share:.0%} of the top eigenvalues converged")
    return lines
