"""One search for an abrupt change in one curve, and the further searches once that change is known.

A round scans for the best sigmoid, takes its p-value from surrogates and asks the gates. The next round masks the
snapshots of the change just found and gives its sigmoid a free height under both hypotheses, so a second transition
must earn its own evidence. Where a first search fails since the other steps of the curve look like wandering noise,
two or three are placed together and each is then tested given the others.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spectral.detection.gates import Evidence, judge
from spectral.detection.intervals import Dating, date, quantities, refine
from spectral.detection.statistic import (
    MIDPOINTS,
    PHI_GRID,
    WIDTHS,
    Array,
    Scan,
    abrupt_heights,
    colour,
    columns_of,
    correlations,
    hampel,
    jump_ratio,
    known_columns,
    scan_rows,
    screen_rows,
    smooth_curve,
)
from spectral.detection.tables import PHI_EDGES, calibrated_p

MAX_ROUNDS = 3
MASK = 0.75  # of a width to either side of a known midpoint: beyond it, 4 % of the change is left
_FIRST_BATCH = 60
_FEWEST_EXCEEDANCES = 20
_FEW_SURROGATES = 199
_BATCH = 500
# A surrogate whose rough T is r >= 0 has T <= 1.5 r + 40, or + 100 where noise wanders: of 90,000 (N = 50 and 200, phi
# from 0 to 0.97) none came higher than 1.5 r + 33 and 1.5 r + 77.
_SCREEN_FACTOR, _SCREEN_OFFSETS = 1.5, (40.0, 100.0)
# Below this coefficient the residuals hold no further step that could have hidden the first.
WANDERING = PHI_EDGES[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """What one search found; times are fractions of the run, heights in units of the curve.

    Attributes:
        verdict: of the gates.
        reason: why not, when not.
        p_value: against surrogates.
        p_calibrated: against the calibration families.
        scan: the coarse search.
        dating: the sigmoid and its intervals; None when the change is not significant.
        noise_sd: marginal sd of the noise around the abrupt fit.
        spread: 2-98 % range of the filtered curve.
        smooth: [n] fitted smooth curve.
        jump_ratio: height over the largest change elsewhere; see `statistic.jump_ratio`.
        t: [n] axis after masking.
    """

    verdict: str
    reason: str | None
    p_value: float
    p_calibrated: float
    scan: Scan
    dating: Dating | None
    noise_sd: float
    spread: float
    smooth: Array
    jump_ratio: float
    t: Array


def search_rounds(
    t: Array,
    y: Array,
    *,
    significance: float,
    n_surrogates: int,
    rng: np.random.Generator,
    max_rounds: int = MAX_ROUNDS,
) -> list[Round]:
    """Search, mask, search again until a round finds nothing; the first round is always there.

    Args:
        t: [n] times as fractions of the run.
        y: [n] filtered curve of range 1.
        significance: largest p-value that counts.
        n_surrogates: curves behind each p-value.
        rng: source of all draws.
        max_rounds: searches at most.
    """
    settings: dict[str, Any] = {"significance": significance, "n_surrogates": n_surrogates, "rng": rng}
    first = _search_masked(t, y, [], **settings)
    if max_rounds > 1 and first.reason == "not_significant" and float(first.scan.phi[0]) >= WANDERING:
        return search_together(t, y, first, **settings, max_rounds=max_rounds) or [first]
    found = [first]
    known: list[tuple[float, float]] = []
    while len(found) < max_rounds and found[-1].verdict == "abrupt" and found[-1].dating is not None:
        known.append((found[-1].dating.midpoint, found[-1].dating.width))
        if np.count_nonzero(_kept(t, known)) < len(t) / 2:
            break
        found.append(_search_masked(t, y, known, **settings))
    return found


def search_together(
    t: Array,
    y: Array,
    alone: Round,
    *,
    significance: float,
    n_surrogates: int,
    rng: np.random.Generator,
    max_rounds: int,
) -> list[Round]:
    """Place two sigmoids, then three, and test each given the others; empty unless all of them are abrupt.

    Each test holds the others fixed in place and free in height, so the weakest must beat the best that chance makes of
    what the others leave. `alone` is the failed search for one.
    """
    places = [_place(alone.scan)]
    while len(places) < max_rounds:
        places.append(_place(scan_rows(t, y[None], np.array(places))))
        for finely in (False, True):
            for i in range(len(places)):
                others = np.array(places[:i] + places[i + 1 :])
                scan = scan_rows(t, y[None], others)
                places[i] = _place(scan)
                if finely:  # what the search grid leaves of a tall step looks like wandering noise to the others
                    fit = refine(t, y, phi_index=int(scan.phi_index[0]), near=places[i][0], known=others)
                    found_at = quantities(fit)
                    places[i] = found_at["midpoint"][0], found_at["width"][0]
        if float(scan.phi[0]) >= WANDERING or floor_misses(t, scan, significance):
            continue
        found = []
        for i in range(len(places)):
            this = _search_masked(
                t, y, places[:i] + places[i + 1 :], significance=significance, n_surrogates=n_surrogates, rng=rng
            )
            if this.verdict != "abrupt":
                break
            found.append(this)
        if len(found) == len(places):
            return sorted(found, key=lambda one: -float(one.scan.statistic[0]))
    return []


def floor_misses(t: Array, scan: Scan, significance: float) -> bool:
    """Tell whether one scan fails the calibrated tests."""
    p = calibrated_p(float(scan.statistic[0]), float(scan.phi[0]), len(t), jump_ratio(t, scan, 0))
    return p > significance


def _place(scan: Scan) -> tuple[float, float]:
    candidate = int(scan.fit.candidate[0])
    return float(MIDPOINTS[candidate % len(MIDPOINTS)]), float(WIDTHS[candidate // len(MIDPOINTS)])


def _kept(t: Array, known: list[tuple[float, float]]) -> npt.NDArray[np.bool_]:
    keep = np.ones(len(t), dtype=bool)
    for midpoint, width in known:
        inside = np.abs(t - midpoint) < MASK * width
        inside[[0, -1]] = False
        keep &= ~inside
    return keep


def _search_masked(
    t: Array,
    y: Array,
    known: list[tuple[float, float]],
    *,
    significance: float,
    n_surrogates: int,
    rng: np.random.Generator,
) -> Round:
    keep = _kept(t, known)
    return search(
        t[keep],
        y[keep],
        significance=significance,
        n_surrogates=n_surrogates,
        rng=rng,
        known=np.array(known, dtype=np.float64).reshape(-1, 2),
        n_snapshots=len(t),
    )


def search(
    t: Array,
    y: Array,
    *,
    significance: float,
    n_surrogates: int,
    rng: np.random.Generator,
    known: Array,
    n_snapshots: int,
) -> Round:
    """Search once; `known` [q, 2] holds midpoint and width of the transitions found before."""
    n = len(t)
    scan = scan_rows(t, y[None], known)
    phi_index, phi = int(scan.phi_index[0]), float(scan.phi[0])
    white = float(PHI_GRID[phi_index])
    smooth = smooth_curve(t, y, white, int(scan.fit.smooth[0]), known)
    ratio = jump_ratio(t, scan, 0)
    p_calibrated = calibrated_p(float(scan.statistic[0]), phi, n_snapshots, ratio)
    # A change below the floor is out already: its p-value is for the record, and a further round needs none.
    drawn = n_surrogates if p_calibrated <= significance else min(n_surrogates, 0 if len(known) else _FEW_SURROGATES)
    p_value = surrogate_p(t, smooth, scan, drawn, significance, rng, known)
    spread = float(np.diff(np.quantile(y, [0.02, 0.98]))[0])
    basis = int(scan.fit.basis[0])
    noise_sd = math.sqrt(float(scan.fit.rss1[0]) / (n - columns_of(basis) - len(known) - 2))
    midpoint, width = _place(scan)
    amplitude, width_interval, dating = float(scan.fit.amplitude[0]), (width, width), None
    level = y
    if p_value <= significance:  # the bootstrap is for changes worth dating
        fit = refine(t, y, phi_index=phi_index, near=midpoint, known=known)
        dating = date(fit, t)
        midpoint, width, amplitude = dating.midpoint, dating.width, dating.amplitude
        width_interval, noise_sd = dating.width_interval, dating.noise_sd
        if len(known):
            level = y - known_columns(t, known) @ abrupt_heights(t, y, white, basis, midpoint, width, known)
    evidence = Evidence(
        p_value=p_value,
        p_calibrated=p_calibrated,
        n_snapshots=n_snapshots,
        midpoint=midpoint,
        width=width,
        width_interval=width_interval,
        amplitude=amplitude,
        spread=spread,
        noise_sd=noise_sd,
        smooth_move=float(np.ptp(smooth)),
    )
    verdict, reason = judge(t, level, evidence, significance)
    return Round(
        verdict=verdict,
        reason=reason,
        p_value=p_value,
        p_calibrated=p_calibrated,
        scan=scan,
        dating=dating,
        noise_sd=noise_sd,
        spread=spread,
        smooth=smooth,
        jump_ratio=ratio,
        t=t,
    )


def noise_rows(t: Array, scan: Scan, n_rows: int, rng: np.random.Generator, n_known: int = 0) -> Array:
    """Draw [n_rows, n] AR(1) noise with the coefficient and sd of the first row's abrupt fit."""
    n = len(t)
    k = columns_of(int(scan.fit.basis[0])) + n_known
    sd = math.sqrt(float(scan.fit.rss1[0]) / (n - k - 2))
    return sd * colour(rng.standard_normal((n_rows, n)), correlations(t, float(scan.phi[0])))


def surrogate_p(
    t: Array,
    smooth: Array,
    scan: Scan,
    n_surrogates: int,
    significance: float,
    rng: np.random.Generator,
    known: Array,
) -> float:
    """Return the sequential Monte Carlo p-value of T; the whole path is redone on each surrogate that might reach it.

    Formula: h / l when the h-th surrogate with T* >= T is the l-th drawn, else (1 + #{T* >= T}) / (1 + n). h is at
    least twice what the significance allows, so stopping early changes no verdict. Source: Besag & Clifford 1991.
    """
    enough = max(_FEWEST_EXCEEDANCES, math.ceil(2 * significance * (n_surrogates + 1)))
    offset = _SCREEN_OFFSETS[int(scan.phi[0] >= WANDERING)]
    drawn, exceeded = 0, 0
    while drawn < n_surrogates:
        batch = min(max(_FIRST_BATCH, drawn), _BATCH, n_surrogates - drawn)
        rows = hampel(smooth + noise_rows(t, scan, batch, rng, len(known)))
        rough = screen_rows(t, rows, phi_index=int(scan.phi_index[0]), smooth=int(scan.fit.smooth[0]), known=known)
        near = np.flatnonzero(_SCREEN_FACTOR * np.maximum(rough, 0.0) + offset >= scan.statistic[0])
        reached = np.zeros(batch, dtype=bool)
        if len(near):
            reached[near] = scan_rows(t, rows[near], known).statistic >= scan.statistic[0]
        cumulative = exceeded + np.cumsum(reached)
        if cumulative[-1] >= enough:
            return enough / (drawn + 1 + int(np.argmax(cumulative >= enough)))
        drawn, exceeded = drawn + batch, int(cumulative[-1])
    return (1 + exceeded) / (1 + n_surrogates)
