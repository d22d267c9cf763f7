"""One search for an abrupt change in one curve, and the further searches once that change is known.

A round scans for the best sigmoid, takes its p-value from surrogates and asks the gates. The next round masks the
snapshots of the change just found and gives its sigmoid a free height under both hypotheses, so a second transition
must earn its own evidence.
"""

import math
from dataclasses import dataclass

import numpy as np

from spectral.detection.gates import Evidence, judge
from spectral.detection.intervals import Dating, date, refine
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
    known_columns,
    scan_rows,
    smooth_curve,
)
from spectral.detection.tables import floor_p

MAX_ROUNDS = 3
MASK = 0.75  # of a width to either side of a known midpoint: beyond it, 4 % of the change is left
_FIRST_BATCH = 60
_FEWEST_EXCEEDANCES = 20
_FEW_SURROGATES = 199


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
    found: list[Round] = []
    known: list[tuple[float, float]] = []
    keep = np.ones(len(t), dtype=bool)
    while len(found) < max_rounds:
        this = search(
            t[keep],
            y[keep],
            significance=significance,
            n_surrogates=n_surrogates,
            rng=rng,
            known=np.array(known, dtype=np.float64).reshape(-1, 2),
            n_snapshots=len(t),
        )
        found.append(this)
        if this.verdict != "abrupt" or this.dating is None:
            break
        known.append((this.dating.midpoint, this.dating.width))
        inside = np.abs(t - this.dating.midpoint) < MASK * this.dating.width
        inside[[0, -1]] = False
        keep &= ~inside
        if np.count_nonzero(keep) < len(t) / 2:
            break
    return found


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
    p_calibrated = floor_p(float(scan.statistic[0]), phi, n_snapshots)
    # A change below the floor is out already: its p-value is for the record, and a further round needs none.
    drawn = n_surrogates if p_calibrated <= significance else min(n_surrogates, 0 if len(known) else _FEW_SURROGATES)
    p_value = surrogate_p(t, smooth, scan, drawn, significance, rng, known)
    spread = float(np.diff(np.quantile(y, [0.02, 0.98]))[0])
    basis, candidate = int(scan.fit.basis[0]), int(scan.fit.candidate[0])
    noise_sd = math.sqrt(float(scan.fit.rss1[0]) / (n - columns_of(basis) - len(known) - 2))
    midpoint, width = float(MIDPOINTS[candidate % len(MIDPOINTS)]), WIDTHS[candidate // len(MIDPOINTS)]
    amplitude, width_interval, dating = float(scan.fit.amplitude[0]), (width, width), None
    level = y
    if p_value <= significance:  # the bootstrap is for changes worth dating
        fit = refine(t, y, phi=phi, phi_index=phi_index, near=midpoint, rng=rng, known=known)
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
    """Return the sequential Monte Carlo p-value of T; the whole path is redone on each surrogate.

    Formula: h / l when the h-th surrogate with T* >= T is the l-th drawn, else (1 + #{T* >= T}) / (1 + n). h is at
    least twice what the significance allows, so stopping early changes no verdict. Source: Besag & Clifford 1991.
    """
    enough = max(_FEWEST_EXCEEDANCES, math.ceil(2 * significance * (n_surrogates + 1)))
    drawn, exceeded = 0, 0
    while drawn < n_surrogates:
        batch = min(_FIRST_BATCH if drawn == 0 else n_surrogates, n_surrogates - drawn)
        rows = smooth + noise_rows(t, scan, batch, rng, len(known))
        reached = scan_rows(t, hampel(rows), known).statistic >= scan.statistic[0]
        cumulative = exceeded + np.cumsum(reached)
        if cumulative[-1] >= enough:
            return enough / (drawn + 1 + int(np.argmax(cumulative >= enough)))
        drawn, exceeded = drawn + batch, int(cumulative[-1])
    return (1 + exceeded) / (1 + n_surrogates)
