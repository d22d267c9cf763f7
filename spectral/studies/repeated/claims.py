"""What the reference experiment reports, and by which numbers the study judges whether it holds here.

Every threshold of the study stands in this file.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spectral.studies.repeated.measurements import LONG, SHORT, Evidence, Measurements
from spectral.studies.repeated.plan import LONG_RUN_FACTOR

LEARNED = 0.5
"""Least accuracy at which a model counts as doing the task at all."""
INDUCTION_HEAD = 0.5
"""Least corrected induction score of an induction head, and least share of it that must come from content."""
PREVIOUS_TOKEN_HEAD = 0.3
"""Least corrected previous-token score of a previous-token head: heads share this work by position."""
FALL = 0.05
"""Least change of an accuracy that counts as a fall."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One number of a run, and the range in which it supports a claim.

    Attributes:
        text: what is measured.
        measure: from the evidence of a run; NaN where it is not defined, which never supports a claim.
        at_least, at_most: the range; None on both sides = reported, not judged.
        premise: whether the claim presupposes it. Where it fails the claim is not judged.
    """

    text: str
    measure: Callable[[Evidence], float]
    at_least: float | None = None
    at_most: float | None = None
    premise: bool = False

    @property
    def judged(self) -> bool:
        """Whether it decides about the claim."""
        return not self.premise and (self.at_least is not None or self.at_most is not None)

    def holds(self, value: float) -> bool:
        """Tell whether a value lies in the range; NaN lies in none, unless there is no range."""
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of the reference experiment about one model.

    Attributes:
        name: identifier in `findings.json`.
        text: the statement, without a full stop.
        model: one of `MODELS`.
        conditions: all of them have to hold.
    """

    name: str
    text: str
    model: str
    conditions: tuple[Condition, ...]


# fixed periods


def in_step(period: int, trained: int, n_positions: int) -> bool:
    """Tell whether looking back a multiple of the trained period finds the right token on blocks of another length."""
    return any(multiple % period == 0 for multiple in range(trained, n_positions, trained))


def _out_of_step(evidence: Evidence) -> list[int]:
    final = evidence.final
    return [p for p in final.periods.tolist() if not in_step(p, final.trained[0], final.maps.shape[-1])]


def _highest_out_of_step(evidence: Evidence) -> float:
    return max(evidence.final.mean_accuracy([period]) for period in _out_of_step(evidence))


def _mean_in_step(evidence: Evidence) -> float:
    others = {*_out_of_step(evidence), evidence.final.trained[0]}
    return evidence.final.mean_accuracy([p for p in evidence.final.periods.tolist() if p not in others])


def _multiples_of_the_trained_period(evidence: Evidence) -> float:
    final = evidence.final
    period = final.trained[0]
    distances = [d for d in range(period - 1, final.offset_profile.shape[-1], period)]
    return float(final.attention_at(distances).min(axis=0).max())


def _positional(name: str, model: str, layers: str) -> Claim:
    return Claim(
        name=name,
        text=f"A {layers} model trained on blocks of always 20 tokens memorises the distance: it attends 20 tokens "
        "apart whatever the input, and scores 0 % on other periods",
        model=model,
        conditions=(
            Condition(text="accuracy at period 20", measure=lambda e: _inside(e.final), at_least=0.95, premise=True),
            Condition(
                text="highest accuracy at a period that divides no multiple of 20 in the context",
                measure=_highest_out_of_step,
                at_most=0.02,
            ),
            Condition(
                text="attention 19, 39, 59 tokens back on inputs of periods 15, 25, 35, best head, corrected, least",
                measure=_multiples_of_the_trained_period,
                at_least=0.5,
            ),
            Condition(text="mean accuracy at periods 10, 12, 15, 30, which divide one", measure=_mean_in_step),
        ),
    )


# heads


def _inside(final: Measurements) -> float:
    return final.mean_accuracy(final.inside)


def _best(score: str, layer: int) -> Callable[[Evidence], float]:
    return lambda evidence: float(evidence.final.scores[score][layer].max())


def _content_of_the_best_head(evidence: Evidence) -> float:
    final = evidence.final
    return float(final.content_match[1, final.scores["induction_score"][1].argmax()])


# one layer, varied periods


def _band(final: Measurements) -> list[int]:
    return [period - 1 for period in final.inside]


def _best_band_head(final: Measurements) -> int:
    """Return the head of layer 0 that attends most to the training distances, on the input where it does so least."""
    return int(final.attention_at(_band(final)).min(axis=0)[0].argmax())


def _attention_in_band(evidence: Evidence) -> float:
    final = evidence.final
    return float(final.attention_at(_band(final)).min(axis=0)[0].max())


def _distances_in_band(evidence: Evidence) -> float:
    """Return the effective number of distances: 1 / sum of squared shares, averaged over the inputs."""
    final = evidence.final
    inside = final.offset_profile[:, 0, _best_band_head(final)][:, _band(final)]
    total = inside.sum(-1, keepdims=True)
    if not total.all():
        return float("nan")
    return float((1 / ((inside / total) ** 2).sum(-1)).mean())


# repeated tokens


def _relative(where: str) -> Callable[[Measurements], float]:
    def share(final: Measurements) -> float:
        doubled = final.doubled[where]
        return doubled.ambiguous / doubled.other if doubled.other > 0 else float("nan")

    return share


# the long run


def _before(evidence: Evidence) -> Measurements | None:
    """Return the model at the step where the shorter training ends."""
    return evidence.at(evidence.final.step // LONG_RUN_FACTOR)


def _then(measure: Callable[[Measurements], float]) -> Callable[[Evidence], float]:
    def value(evidence: Evidence) -> float:
        before = _before(evidence)
        return float("nan") if before is None else measure(before)

    return value


def _change(periods: tuple[int, ...]) -> Callable[[Evidence], float]:
    def value(evidence: Evidence) -> float:
        before = _before(evidence)
        return float("nan") if before is None else evidence.final.mean_accuracy(periods) - before.mean_accuracy(periods)

    return value


def _previous_token_peaks(evidence: Evidence) -> np.ndarray:
    return np.asarray(np.nanmax(evidence.curves["circuits/previous_token_score_corrected"][:, 0], axis=0))


def _least_kept_score(evidence: Evidence) -> float:
    """Return final over highest score of the head of layer 0 that lost most, among those that became one."""
    curve, peaks = evidence.curves["circuits/previous_token_score_corrected"][:, 0], _previous_token_peaks(evidence)
    heads = peaks >= PREVIOUS_TOKEN_HEAD
    return float((curve[-1, heads] / peaks[heads]).min()) if heads.any() else float("nan")


CLAIMS: tuple[Claim, ...] = (
    _positional("one_layer_positional", "1L_fixed", "1-layer"),
    _positional("two_layer_positional", "2L_fixed", "2-layer"),
    Claim(
        name="one_layer_no_induction",
        text="One layer cannot form induction heads on blocks of 20 to 29 tokens",
        model="1L_varied",
        conditions=(
            Condition(
                text="best corrected induction score on copies at distances never trained, any head",
                measure=lambda e: float(e.final.induction_random_gap.max()),
                at_most=INDUCTION_HEAD * INDUCTION_HEAD,  # what the weakest induction head would keep there
            ),
            Condition(text="accuracy on training periods", measure=lambda e: _inside(e.final), at_most=LEARNED),
        ),
    ),
    Claim(
        name="one_layer_above_chance",
        text="Its accuracy on these periods is low, but not zero",
        model="1L_varied",
        conditions=(
            Condition(
                text="accuracy on training periods", measure=lambda e: _inside(e.final), at_least=0.02, at_most=0.3
            ),
        ),
    ),
    Claim(
        name="one_layer_spreads",
        text="It spreads its attention over the distances of the training periods",
        model="1L_varied",
        conditions=(
            Condition(
                text="attention 19 to 28 tokens back on inputs of periods 15, 25, 35, best head, corrected, least",
                measure=_attention_in_band,
                at_least=0.5,
            ),
            Condition(
                text="effective number of these 10 distances that this head attends to",
                measure=_distances_in_band,
                at_least=5.0,
            ),
        ),
    ),
    Claim(
        name="induction_in_layer_1",
        text="Two layers form induction heads, in layer 1",
        model="2L_varied_20000",
        conditions=(
            Condition(
                text="best corrected induction score in layer 1",
                measure=_best("induction_score", 1),
                at_least=INDUCTION_HEAD,
            ),
            Condition(
                text="content-match fraction of that head",
                measure=_content_of_the_best_head,
                at_least=INDUCTION_HEAD,
            ),
            Condition(
                text="best corrected induction score in layer 0",
                measure=_best("induction_score", 0),
                at_most=INDUCTION_HEAD,
            ),
        ),
    ),
    Claim(
        name="previous_token_in_layer_0",
        text="They form previous-token heads in layer 0",
        model="2L_varied_20000",
        conditions=(
            Condition(
                text="best corrected previous-token score in layer 0",
                measure=_best("previous_token_score", 0),
                at_least=PREVIOUS_TOKEN_HEAD,
            ),
            Condition(
                text="the same summed over the heads of layer 0",
                measure=lambda e: float(e.final.scores["previous_token_score"][0].sum()),
                at_least=0.5,
            ),
            Condition(text="best corrected current-token score in layer 0", measure=_best("current_token_score", 0)),
        ),
    ),
    Claim(
        name="generalises",
        text="After 20,000 steps they continue blocks of lengths never trained, if not perfectly",
        model="2L_varied_20000",
        conditions=(
            Condition(
                text="accuracy on training periods",
                measure=lambda e: _inside(e.final),
                at_least=LEARNED,
                premise=True,
            ),
            Condition(
                text="accuracy on periods 10 to 19",
                measure=lambda e: e.final.mean_accuracy(SHORT),
                at_least=LEARNED,
            ),
            Condition(
                text="accuracy on periods 30 to 39",
                measure=lambda e: e.final.mean_accuracy(LONG),
                at_least=LEARNED,
            ),
        ),
    ),
    Claim(
        name="confused_by_repeated_tokens",
        text="A token that occurs twice in the block confuses them",
        model="2L_varied_20000",
        conditions=(
            Condition(
                text="accuracy on a token that occurs twice in the block, relative to other tokens, training periods",
                measure=lambda e: _relative("inside")(e.final),
                at_most=0.5,
            ),
            Condition(text="the same on periods 30 to 39", measure=lambda e: _relative("longer")(e.final)),
            Condition(
                text="accuracy on other tokens of these blocks",
                measure=lambda e: e.final.doubled["inside"].other,
                at_least=LEARNED,
                premise=True,
            ),
        ),
    ),
    Claim(
        name="outside_accuracy_falls",
        text="Between 20,000 and 60,000 steps accuracy on lengths never trained falls",
        model="2L_varied_60000",
        conditions=(
            Condition(
                text="accuracy on periods 10 to 19 and 30 to 39 at 20,000 steps",
                measure=_then(lambda before: before.mean_accuracy((*SHORT, *LONG))),
                at_least=LEARNED,
                premise=True,
            ),
            Condition(text="its change until 60,000 steps", measure=_change((*SHORT, *LONG)), at_most=-FALL),
            Condition(text="change on periods 10 to 19", measure=_change(SHORT)),
            Condition(text="change on periods 30 to 39", measure=_change(LONG)),
        ),
    ),
    Claim(
        name="falls_more_for_longer",
        text="The fall is steeper for longer blocks",
        model="2L_varied_60000",
        conditions=(
            Condition(
                text="change of accuracy on periods 10 to 19 and 30 to 39",
                measure=_change((*SHORT, *LONG)),
                at_most=-FALL,
                premise=True,
            ),
            Condition(
                text="change on periods 30 to 39 less that on periods 10 to 19",
                measure=lambda e: _change(LONG)(e) - _change(SHORT)(e),
                at_most=-FALL,
            ),
        ),
    ),
    Claim(
        name="no_longer_confused",
        text="After 60,000 steps a token that occurs twice confuses no more, on training periods",
        model="2L_varied_60000",
        conditions=(
            Condition(
                text="accuracy on that token relative to other tokens at 20,000 steps",
                measure=_then(_relative("inside")),
                at_most=0.9,
                premise=True,
            ),
            Condition(text="the same at 60,000 steps", measure=lambda e: _relative("inside")(e.final), at_least=0.9),
        ),
    ),
    Claim(
        name="previous_token_head_dissolves",
        text="A previous-token head of layer 0 dissolves on the way to 60,000 steps",
        model="2L_varied_60000",
        conditions=(
            Condition(
                text="highest corrected previous-token score that a head of layer 0 reaches",
                measure=lambda e: float(_previous_token_peaks(e).max()),
                at_least=PREVIOUS_TOKEN_HEAD,
                premise=True,
            ),
            Condition(
                text="share of its highest score that the head with the largest loss ends with, of those above 0.3",
                measure=_least_kept_score,
                at_most=0.5,
            ),
        ),
    ),
)
"""The claims in the order of the page."""
