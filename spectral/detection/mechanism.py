"""What formed: heads that match content, or heads that look back a fixed way.

On blocks of one length a head that attends a fixed distance back has a perfect induction score, and its onset is as
abrupt as that of an induction head. The content-match fraction tells them apart: the share of the score that survives
distances never trained (`spectral.circuits.content_match_fraction`).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FORMED = 0.3  # corrected induction score from which a head counts as formed
MATCHING, FIXED = 0.5, 0.25  # content-match fraction from, up to which it counts as one or the other


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """What the heads of a model do with repeats.

    Attributes:
        label: `induction` (a formed head matches content), `positional` (the formed heads look back a fixed way),
            `mixed` (something between), `none` (no head has formed), `unknown` (not measured).
        step: of the snapshot that was looked at.
        layer, head: the formed head with the largest content-match fraction; without a formed one that with the largest
            induction score. None when unknown.
        induction_score: its corrected induction score on repeats of training lengths.
        content_match_fraction: its own, None where undefined.
    """

    label: str
    step: int | None = None
    layer: int | None = None
    head: int | None = None
    induction_score: float | None = None
    content_match_fraction: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def judge_mechanism(induction_score: np.ndarray, content_match: np.ndarray, *, step: int) -> Mechanism:
    """Say what the heads of one snapshot do.

    Args:
        induction_score: [layer, head] corrected induction scores on repeats of training lengths.
        content_match: [layer, head] content-match fractions, NaN where undefined.
        step: of the snapshot.
    """
    formed = np.nan_to_num(induction_score, nan=-np.inf) >= FORMED
    fractions = np.where(formed, np.nan_to_num(content_match, nan=-1.0), -np.inf)
    if not np.isfinite(induction_score).any():
        return Mechanism(label="unknown", step=step)
    order = fractions if formed.any() else np.nan_to_num(induction_score, nan=-np.inf)
    layer, head = (int(i) for i in np.unravel_index(int(np.argmax(order)), order.shape))
    fraction = float(content_match[layer, head])
    if not formed.any():
        label = "none"
    elif math.isnan(fraction):
        label = "unknown"
    elif fraction >= MATCHING:
        label = "induction"
    else:
        label = "positional" if fraction <= FIXED else "mixed"
    return Mechanism(
        label=label,
        step=step,
        layer=layer,
        head=head,
        induction_score=float(induction_score[layer, head]),
        content_match_fraction=None if math.isnan(fraction) else fraction,
    )
