"""What happened in a run, in sentences that a newcomer understands: when, which heads, what the spectrum did.

Every number comes from the run; thresholds are those of the detector (`spectral.detection.mechanism`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spectral.detection.mechanism import FIXED, FORMED, MATCHING
from spectral.plots.source import MissingDataError, head_name, values, values_or_none, yardstick
from spectral.plots.verdict import REASONS, Verdict
from spectral.storage import Run

_NAMED = 4  # heads of a kind that are listed one by one
_KINDS = {
    "induction": "They match content: repeats at distances that training never had are followed too.",
    "positional": "But they look back a fixed way: at distances that training never had hardly anything is left.",
    "mixed": "At distances that training never had only a part of that is left.",
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One question and its answer, a sentence each."""

    question: str
    sentences: tuple[str, ...]


def headline(run: Run, verdict: Verdict) -> str:
    """Return the answer in one line."""
    if verdict.midpoint is not None:
        formed = formed_heads(run, "induction_score") if len(run.steps) else []
        heads = f"; induction heads: {', '.join(head.name for head in formed[:_NAMED])}" if formed else ""
        return f"An abrupt transition at step {verdict.midpoint:,.0f}{heads}"
    if verdict.judged:
        return "No abrupt transition"
    if run.status == "running":
        return "Still running: the verdict comes at the end"
    return "No verdict: the detector has not judged this run"


def story(run: Run, verdict: Verdict) -> list[Part]:
    """Return the summary of a run; what was not measured is said."""
    parts = [Part(question="When did it happen?", sentences=tuple(_when(run, verdict)))]
    if len(run.steps):
        parts.append(Part(question="Which heads formed?", sentences=tuple(_heads(run))))
        parts.append(Part(question="What did the spectrum do?", sentences=tuple(_spectrum(run, verdict))))
    order = tuple(_order(run))
    if order:
        parts.append(Part(question="What came first?", sentences=order))
    return parts


@dataclass(frozen=True, kw_only=True)
class FormedHead:
    """A head whose corrected score is at least `FORMED` at the last snapshot.

    Attributes:
        layer, head: which one.
        score: corrected score at the last snapshot: 0 = uniform attention, 1 = perfect.
        since: first snapshot step from which on it stayed formed.
    """

    layer: int
    head: int
    score: float
    since: int

    @property
    def name(self) -> str:
        """Such as L1H3."""
        return head_name(self.layer, self.head)


def formed_heads(run: Run, score: str) -> list[FormedHead]:
    """Return the heads that have formed at the last snapshot that measured them, best first; empty when unmeasured.

    Args:
        run: any run.
        score: `induction_score` or `previous_token_score`.
    """
    scores = _corrected(run, score)
    if scores is None:
        return []
    known = np.flatnonzero(np.isfinite(scores).any(axis=(1, 2)))
    scores, steps = scores[known], run.steps[known]
    found = []
    for layer, head in np.argwhere(scores[-1] >= FORMED):
        below = np.flatnonzero(~(scores[:, layer, head] >= FORMED))
        since = int(steps[below[-1] + 1]) if len(below) else int(steps[0])
        found.append(
            FormedHead(layer=int(layer), head=int(head), score=float(scores[-1, layer, head]), since=since)
        )  # fmt: skip
    return sorted(found, key=lambda head: -head.score)


def _corrected(run: Run, score: str) -> np.ndarray | None:
    """Return corrected scores [step, layer, head]; from raw ones and their mean chance in files that lack them."""
    found = values_or_none(run, f"circuits/{score}_corrected")
    if found is not None:
        return found
    raw, chance = values_or_none(run, f"circuits/{score}"), yardstick(run, f"circuits/{score}", "chance")
    return None if raw is None else (raw - (chance or 0.0)) / (1 - (chance or 0.0))


def _when(run: Run, verdict: Verdict) -> Iterator[str]:
    if verdict.onset is not None and verdict.midpoint is not None and verdict.end is not None:
        yield f"Abruptly: half-way at step {verdict.midpoint:,.0f}, from step {verdict.onset:,.0f} (10 %) to " + (
            f"step {verdict.end:,.0f} (90 %)."
        )
        if verdict.interval is not None:
            yield "The half-way step lies between {:,.0f} and {:,.0f} with 90 % confidence.".format(*verdict.interval)
        consensus = run.transitions.get("consensus") or {}
        families = consensus.get("agreeing_signals") or {}
        if families:
            names = "; ".join(f"{family}: {', '.join(map(_words, found))}" for family, found in families.items())
            p = "" if verdict.p_value is None else f" (p = {verdict.p_value:.2g})"
            yield f"These signals jump together{p}: {names}."
    elif verdict.judged:
        yield verdict.sentence
        for name, signal in (run.transitions.get("signals") or {}).items():
            if isinstance(signal, dict):
                why = REASONS.get(str(signal.get("reason")), _words(signal.get("verdict")))
                yield f"{_words(name).capitalize()}: {'abrupt' if signal.get('detected') else why}."
    else:
        yield verdict.sentence
    n = len(run.steps)
    if n == 0:
        yield "No snapshot was measured yet, so there is nothing to say about heads and spectrum."
    if run.status == "died":
        yield "The process that wrote this run died; everything up to its last snapshot is here."
    elif run.status == "failed":
        yield "The run failed (see events.jsonl); everything up to its last snapshot is here."


def _heads(run: Run) -> Iterator[str]:
    try:
        values(run, "circuits/induction_score")
    except MissingDataError as error:
        yield f"Not measured: {error.reason}."
        return
    total = run.layout.n_layers * run.layout.n_heads
    so_far = " so far" if run.status == "running" else ""
    for score, kind in (("induction_score", "induction"), ("previous_token_score", "previous-token")):
        formed = formed_heads(run, score)
        scores = _corrected(run, score)
        if not formed and scores is not None:
            layer, head = np.unravel_index(int(np.argmax(_last(scores))), scores.shape[1:])
            yield (
                f"No {kind} head{so_far}: the highest score at the last snapshot is {float(_last(scores).max()):.2f} "
                f"({head_name(int(layer), int(head))})."
            )
            continue
        if not formed:
            continue
        listed = [f"{head.name} (score {head.score:.2f}, formed since step {head.since:,})" for head in formed[:_NAMED]]
        more = f" and {len(formed) - _NAMED} more" if len(formed) > _NAMED else ""
        verb = "are" if len(formed) > 1 else "is an" if kind == "induction" else "is a"
        yield f"{len(formed)} of {total} heads {verb} {kind} head{'s' * (len(formed) > 1)}: {', '.join(listed)}{more}."
        if kind == "induction":
            yield from _content(run, formed)
    yield f"Scores: 0 is uniform attention, 1 a perfect head; {FORMED:g} counts as formed."


def _content(run: Run, formed: list[FormedHead]) -> Iterator[str]:
    """Tell whether the induction heads match content, head by head from the fractions of the last snapshot."""
    fractions = values_or_none(run, "circuits/content_match_fraction")
    if fractions is None:
        return
    last = _last(fractions, fill=np.nan)
    found = {head.name: float(last[head.layer, head.head]) for head in formed}
    known = {name: share for name, share in found.items() if np.isfinite(share)}
    if not known:
        return
    best = max(known.values())
    kind = "induction" if best >= MATCHING else "positional" if best <= FIXED else "mixed"
    shares = ", ".join(f"{name} {share:.0%}" for name, share in list(known.items())[:_NAMED])
    yield f"{_KINDS[kind]} Left of the score at new distances: {shares}."


def _spectrum(run: Run, verdict: Verdict) -> Iterator[str]:
    try:
        top = values(run, "hessian/eigenvalues")[:, 0]
    except MissingDataError as error:
        yield f"Not measured: {error.reason}."
        return
    steps = run.steps[np.isfinite(top)]
    top = top[np.isfinite(top)]
    if not len(top):
        yield "The largest eigenvalue was never measured."
        return
    peak = int(np.argmax(top))
    onset, end = verdict.onset, verdict.end
    text = f"The largest Hessian eigenvalue λ₁ starts at {top[0]:.3g} (step {steps[0]:,})"
    if onset is not None and end is not None:
        before = top[steps < onset]
        text += f", is {before[-1]:.3g} just before the transition" if len(before) else ""
        where = "before" if steps[peak] < onset else "after" if steps[peak] > end else "inside"
        text += f", is highest at step {steps[peak]:,} ({top[peak]:.3g}, {where} the transition)"
    else:
        text += f", is highest at step {steps[peak]:,} ({top[peak]:.3g})"
    last = "is now" if run.status == "running" else "ends at"
    yield f"{text} and {last} {top[-1]:.3g} (step {steps[-1]:,})."
    bounds = values_or_none(run, "hessian/error_bounds")
    if bounds is not None and np.isfinite(bounds[:, 0]).any():
        yield f"Its error bound is at most {np.nanmax(bounds[:, 0]):.1g}."
    bottom = values_or_none(run, "hessian/negative_eigenvalues")
    if bottom is not None and np.isfinite(bottom[:, 0]).any():
        lowest = int(np.nanargmin(bottom[:, 0]))
        ends = bottom[np.isfinite(bottom[:, 0]), 0]
        yield (
            f"The most negative one is lowest at step {run.steps[lowest]:,} ({bottom[lowest, 0]:.3g}) and {last} "
            f"{ends[-1]:.3g}."
        )
    share = values_or_none(run, "hessian/gradient_alignment_total")
    chance = yardstick(run, "hessian/gradient_alignment", "chance")
    if share is not None and np.isfinite(share[:, -1]).any():
        k = share.shape[1]
        known = share[np.isfinite(share[:, -1]), -1]
        by_chance = "" if chance is None else f"; chance {k * chance:.2g}"
        yield (
            f"Of the squared gradient {np.median(known):.0%} lies in the space of the top {k} eigenvectors "
            f"(median of the snapshots{by_chance})."
        )
    signals = run.transitions.get("signals") or {}
    spectrum = {name: s for name, s in signals.items() if isinstance(s, dict) and s.get("family") == "spectrum"}
    for detected, word in ((True, "an"), (False, "no")):
        names = [_words(name) for name, signal in spectrum.items() if bool(signal.get("detected")) == detected]
        if names:
            yield f"The detector finds {word} abrupt change in {' and '.join(names)}."


def _order(run: Run) -> Iterator[str]:
    pairs = [pair for pair in run.transitions.get("lead_lag") or [] if isinstance(pair, dict)]
    resolved = [pair for pair in pairs if pair.get("resolved")]
    if pairs and not resolved:
        yield "No order is certain: every interval of a time lag between families of signals contains 0."
    for pair in sorted(resolved, key=lambda pair: -abs(float(pair["difference"])))[:2]:
        lag = float(pair["difference"])
        early, late = (pair["first"], pair["second"]) if lag < 0 else (pair["second"], pair["first"])
        yield f"{_words(early).capitalize()} changed {abs(lag):,.0f} steps before {_words(late)}."


def _last(found: np.ndarray, fill: float = -np.inf) -> np.ndarray:
    """Return the last row of [step, ...] that holds a number, `fill` where it has none."""
    known = np.flatnonzero(np.isfinite(found.reshape(len(found), -1)).any(axis=1))
    row = found[known[-1]] if len(known) else np.full(found.shape[1:], np.nan)
    return np.where(np.isfinite(row), row, fill)


def _words(name: object) -> str:
    return str(name).replace("_", " ")
