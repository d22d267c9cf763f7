"""Offline detector: did a finished curve change abruptly, when, and how surely?

A transition is progress that accelerates after a slower stretch, is over soon, and stays. The test is a likelihood
ratio between smooth curves with and without one abrupt sigmoid; its null distribution comes from surrogates of the
fitted smooth curve that go through the same filter, noise estimate and fits as the data.
"""

import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spectral.detection.bumps import MAX_BUMPS, Bump, find_bumps
from spectral.detection.gates import MIN_SNAPSHOTS
from spectral.detection.intervals import Dating, spacing_at
from spectral.detection.multiple import holm_in_order
from spectral.detection.rounds import MAX_ROUNDS, Round, search_rounds
from spectral.detection.statistic import N_SHAPES, Array, Scan, hampel
from spectral.detection.tables import calibration_id
from spectral.randomness import numpy_generator

# Fewer points than this leave no degrees of freedom beside four columns, a midpoint, a width and a coefficient.
_FEWEST_FOR_FIT = 12
_PEAK_SLOPE = math.log(9.0) / 2  # of a logistic with unit height and unit 10-90 % width
_INTERVALS = ("interval", "onset_interval", "end_interval", "width_interval")

Curve = Sequence[float] | Sequence[int] | npt.NDArray[Any]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One signal's verdict. Times are in optimizer steps; heights in units of the signal (its logarithm, if taken).

    Attributes:
        detected: verdict is "abrupt".
        verdict: "abrupt", "gradual", "none" or "inconclusive".
        reason: why not, when not: not_significant, too_small, too_wide, not_persistent, too_few_snapshots, at_edge,
            non_finite or running_extreme (a record curve such as "best so far"); None when detected.
        onset: 10 % point. This and the following times are None when there is nothing to date.
        midpoint: 50 % point.
        end: 90 % point.
        interval: nominal 90 % interval of the midpoint.
        onset_interval: of the onset.
        end_interval: of the end.
        width_interval: of end - onset, in steps; its lower end is 0 when fewer than 5 snapshots resolve the change.
        width_steps: end - onset.
        width_fraction: end - onset as a fraction of the run, in (0, 0.3].
        amplitude: signed height of the sigmoid.
        abruptness: peak slope of the sigmoid over the slope of a change spread evenly over the run, >= 0. Formula:
            1.0986 (|A| / R) / width_fraction with R the 2-98 % range; about 1 = even, 22 = a clean step of 5 % width.
        p_value: of the likelihood ratio, in [1 / (surrogates + 1), 1]; 1 when no test was made.
        statistic: T = N ln(RSS0 / RSS1); None when no test was made.
        share_in_best_5pct: largest change within 5 % of the run over the full range of the filtered curve, in [0, 1].
            Descriptive only: pure noise scores high.
        delta_bic: BIC(smooth) - BIC(abrupt); positive favours abrupt. Descriptive only: it ignores the search.
        phi: estimated AR(1) coefficient of the noise per median spacing, in [0, 0.97]. Above 0.9 the noise is nearly
            a random walk, and one signal alone should not be believed.
        noise_sd: marginal sd of the noise.
        n_snapshots: length of the curve.
        resolution_steps: snapshot spacing at the midpoint (the median spacing, when nothing is dated).
        calibration_id: names the tables behind the numbers.
        p_calibrated: share of null curves that reach T, for the worst calibration family at this noise coefficient, in
            (0, 1]. A change counts only if this and `p_value` are at most the significance.
        amplitude_in_noise_sd: |amplitude| over the noise sd.
        amplitude_in_range: |amplitude| over the 2-98 % range of the filtered curve.
        jump_ratio: height over the largest change elsewhere within as many snapshots; where the noise wanders
            (phi >= 0.75) it must reach the calibrated one.
        shape: most probable shape of the change, a name of `shapes.SHAPES`; None when nothing is dated.
        further: other abrupt transitions of the signal, Holm-corrected over the searches, strongest first.
        bumps: passing events, strongest first; they never count as detected.
    """

    detected: bool
    onset: float | None
    midpoint: float | None
    end: float | None
    interval: Interval | None
    p_value: float
    abruptness: float | None
    reason: str | None
    verdict: str
    statistic: float | None
    onset_interval: Interval | None
    end_interval: Interval | None
    width_interval: Interval | None
    amplitude: float | None
    width_steps: float | None
    width_fraction: float | None
    share_in_best_5pct: float | None
    delta_bic: float | None
    phi: float | None
    noise_sd: float | None
    n_snapshots: int
    resolution_steps: float | None
    calibration_id: str = field(default_factory=calibration_id)
    p_calibrated: float = 1.0
    amplitude_in_noise_sd: float | None = None
    amplitude_in_range: float | None = None
    jump_ratio: float | None = None
    shape: str | None = None
    further: tuple["Transition", ...] = ()
    bumps: tuple[Bump, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; intervals become lists, what is unknown is None, never NaN."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return plain | {"further": [other.to_dict() for other in self.further]}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Transition":
        """Rebuild a transition from `to_dict`; keys that are no fields of it (such as "family") are ignored."""
        known = {key: value for key, value in fields.items() if key in cls.__dataclass_fields__}
        for key in _INTERVALS:
            if known.get(key) is not None:
                known[key] = (float(known[key][0]), float(known[key][1]))
        known["further"] = tuple(cls.from_dict(other) for other in known.get("further", ()))
        known["bumps"] = tuple(Bump(**bump) for bump in known.get("bumps", ()))
        return cls(**known)


def detect_transition(
    steps: Curve,
    values: Curve,
    *,
    significance: float = 0.01,
    n_surrogates: int = 999,
    seed: int = 0,
    signal: str = "signal",
    log: bool = False,
    several: bool = True,
    bumps: bool = True,
) -> Transition:
    """Tell whether one curve changed abruptly, and date the change.

    Args:
        steps: [n] optimizer steps of the snapshots, strictly increasing; uneven spacing is allowed.
        values: [n] the signal there.
        significance: largest p-value that counts, in (0, 1).
        n_surrogates: curves behind the p-value, whose smallest value is 1 / (n_surrogates + 1).
        seed: with `signal`, fixes all random draws (stream "detector/<signal>").
        signal: name of the signal.
        log: analyse log(values), for positive heavy-tailed signals such as the largest eigenvalue. A value <= 0 has
            no logarithm and counts as non-finite.
        several: search for further transitions once one is found (`Transition.further`).
        bumps: search for passing events (`Transition.bumps`).

    Returns:
        The verdict. Adding a constant to `values` or multiplying by a positive number changes no time and no p-value;
        a negative factor flips the amplitude only.

    Raises:
        ValueError: for arrays of other shapes than two equal [n], steps that do not increase or are not finite, a
            significance outside (0, 1), or too few surrogates to ever reach it.

    Source: likelihood-ratio scan with parametric bootstrap; Diebold & Chen 1996 and Boldea et al. 2017 on why
    bootstrap sizes hold in short autocorrelated samples where asymptotic ones fail.
    """
    x, y = _checked(steps, values, significance, n_surrogates)
    n = len(x)
    if log:
        y = np.where(y > 0, np.log(np.where(y > 0, y, 1.0)), np.nan)
    resolution = float(np.median(np.diff(x))) if n > 1 else None
    if not np.all(np.isfinite(y)):
        return _undated("inconclusive", "non_finite", n, resolution)
    if n < _FEWEST_FOR_FIT:
        return _undated("inconclusive", "too_few_snapshots", n, resolution)
    center, scale = float(np.median(y)), float(np.max(y) - np.min(y))
    if scale <= 1e-12 * float(np.max(np.abs(y))):
        few = n < MIN_SNAPSHOTS
        return _undated("inconclusive" if few else "none", "too_few_snapshots" if few else "too_small", n, resolution)

    if _running_extreme(y):
        return _undated("inconclusive", "running_extreme", n, resolution)

    # From here on times are fractions of the run and heights fractions of the range.
    span = float(x[-1] - x[0])
    t = (x - x[0]) / span
    raw = (y - center) / scale
    y = hampel(raw[None])[0]
    rng = numpy_generator(seed, f"detector/{signal}")
    rounds = search_rounds(
        t, y, significance=significance, n_surrogates=n_surrogates, rng=rng, max_rounds=MAX_ROUNDS if several else 1
    )
    passing = _bumps(t, raw, rounds, significance, n_surrogates, rng) if bumps else []
    scaled = tuple(
        replace(
            bump, peak=float(x[0]) + span * bump.peak, height=bump.height * scale, width_steps=span * bump.width_steps
        )
        for bump in passing
    )
    first, *rest = [
        _described(found, x=x, y=y, significance=significance, scale=scale, resolution=resolution) for found in rounds
    ]
    p_later = holm_in_order([max(found.p_value, found.p_calibrated) for found in rounds])
    later = [one for one, p in zip(rest, p_later[1:], strict=True) if one.detected and p <= significance]
    return replace(first, further=tuple(later), bumps=scaled)


def midpoint_bounds(signal: Transition) -> Interval:
    """Return the interval of the midpoint of an abrupt signal; a ValueError when it carries none."""
    if signal.interval is None:
        msg = "an abrupt signal carries no interval; rebuild the transition with detect_transition"
        raise ValueError(msg)
    return signal.interval


def _described(
    found: Round, *, x: Array, y: Array, significance: float, scale: float, resolution: float | None
) -> Transition:
    """Turn one round into a verdict in optimizer steps and units of the signal."""
    n, span = len(x), float(x[-1] - x[0])
    dating = found.dating
    tested: dict[str, Any] = {
        "p_value": found.p_value,
        "p_calibrated": found.p_calibrated,
        "statistic": float(found.scan.statistic[0]),
        "share_in_best_5pct": _best_share((x - x[0]) / span, y),
        "delta_bic": _delta_bic(found.scan, len(found.t)),
        "phi": float(found.scan.phi[0]),
        "noise_sd": found.noise_sd * scale,
        "jump_ratio": found.jump_ratio if math.isfinite(found.jump_ratio) else None,
    }
    if found.verdict == "none" or found.reason == "not_significant" or dating is None:
        return _undated(found.verdict, found.reason, n, resolution, **tested)
    return Transition(
        detected=found.verdict == "abrupt",
        verdict=found.verdict,
        reason=found.reason,
        n_snapshots=n,
        resolution_steps=spacing_at((x - x[0]) / span, dating.midpoint) * span,
        abruptness=_PEAK_SLOPE * abs(dating.amplitude) / max(found.spread, 1e-9) / dating.width,
        amplitude=dating.amplitude * scale,
        amplitude_in_noise_sd=abs(dating.amplitude) / max(found.noise_sd, 1e-12),
        amplitude_in_range=abs(dating.amplitude) / max(found.spread, 1e-9),
        shape=dating.shape,
        **_times(dating, float(x[0]), span),
        **tested,
    )


def _running_extreme(y: Array) -> bool:
    """Tell whether a curve is a record such as "best so far": monotone, standing still between several jumps.

    Its jumps are where noise set a record and its plateaus hold no noise, so nothing that compares a jump with the
    noise applies. A saturated sigmoid stands still twice, at its two ends.
    """
    d = np.diff(y)
    still = d == 0
    if not (np.all(d >= 0) or np.all(d <= 0)) or np.mean(still) < 0.5:
        return False
    starts = still & ~np.concatenate([[False], still[:-1]])
    return int(np.count_nonzero(starts)) >= 3


def _bumps(
    t: Array, raw: Array, rounds: list[Round], significance: float, n_surrogates: int, rng: np.random.Generator
) -> list[Bump]:
    dated = [found.dating for found in rounds if found.dating is not None and found.verdict != "none"]
    known = np.array([(d.midpoint, d.width) for d in dated], dtype=np.float64).reshape(-1, 2)
    smooth = int(rounds[0].scan.fit.smooth[0])
    phi = float(rounds[-1].scan.phi[0])
    return find_bumps(
        t,
        raw,
        smooth_index=0 if len(known) and smooth > N_SHAPES else smooth,
        phi=phi,
        known=known,
        significance=significance,
        n_surrogates=math.ceil(MAX_BUMPS / significance),
        rng=rng,
    )


def _checked(steps: Curve, values: Curve, significance: float, n_surrogates: int) -> tuple[Array, Array]:
    x, y = np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)
    if x.ndim != 1 or y.ndim != 1:
        msg = (
            f"steps has shape {x.shape} and values {y.shape}, but both must be one-dimensional; pass one signal at "
            "a time, for example eigenvalues[:, 0]"
        )
        raise ValueError(msg)
    if len(x) != len(y):
        msg = f"{len(x)} steps for {len(y)} values, but they must pair up; cut both to the same snapshots"
        raise ValueError(msg)
    if not np.all(np.isfinite(x)):
        msg = "steps holds a non-finite number, but each snapshot needs its step; drop those snapshots"
        raise ValueError(msg)
    fall = np.flatnonzero(np.diff(x) <= 0)
    if len(fall):
        i = int(fall[0])
        msg = (
            f"steps[{i}]={x[i]:g} is followed by {x[i + 1]:g}, but steps must strictly increase; sort the snapshots "
            "and drop repeated ones"
        )
        raise ValueError(msg)
    if not 0 < significance < 1:
        msg = f"significance={significance} lies outside (0, 1); use for example 0.01"
        raise ValueError(msg)
    if n_surrogates < 1 / significance - 1 - 1e-9:
        msg = (
            f"n_surrogates={n_surrogates} cannot give a p-value below {1 / (n_surrogates + 1):.2g}, but "
            f"significance={significance} needs one; use at least {math.ceil(1 / significance - 1)}"
        )
        raise ValueError(msg)
    return x, y


def _undated(verdict: str, reason: str | None, n: int, resolution: float | None, **tested: Any) -> Transition:
    given = {"detected", "verdict", "reason", "n_snapshots", "resolution_steps"}
    fields = Transition.__dataclass_fields__.values()
    unknown: dict[str, Any] = {
        one.name: None
        for one in fields
        if one.name not in given and one.default is MISSING and one.default_factory is MISSING
    }
    unknown["p_value"] = 1.0
    return Transition(
        detected=False,
        verdict=verdict,
        reason=reason,
        n_snapshots=n,
        resolution_steps=resolution,
        **(unknown | tested),
    )


def _times(dating: Dating, first: float, span: float) -> dict[str, Any]:
    def at(fraction: float) -> float:
        return first + span * min(max(fraction, 0.0), 1.0)

    def both(interval: Interval) -> Interval:
        return at(interval[0]), at(interval[1])

    return {
        "onset": at(dating.onset),
        "midpoint": at(dating.midpoint),
        "end": at(dating.end),
        "interval": both(dating.midpoint_interval),
        "onset_interval": both(dating.onset_interval),
        "end_interval": both(dating.end_interval),
        "width_interval": (span * dating.width_interval[0], span * dating.width_interval[1]),
        "width_steps": span * dating.width,
        "width_fraction": dating.width,
    }


def _best_share(t: Array, y: Array) -> float:
    ahead = np.interp(np.minimum(t + 0.05, 1.0), t, y)
    return float(np.max(np.abs(ahead - y)) / max(float(np.ptp(y)), 1e-12))


def _delta_bic(scan: Scan, n: int) -> float:
    # A curved shape costs its coefficient and its time constant, a sigmoid also its width.
    smooth, n_curved = int(scan.fit.smooth[0]), scan.fit.basis[0]
    k0 = 2 + (0 if smooth == 0 else 3 if smooth > N_SHAPES else 2)
    k1 = 2 + (2 if n_curved > 0 else 0) + 3
    return float(scan.statistic[0] - (k1 - k0) * math.log(n))
