"""More labelled curves: what training does to a curve without any transition, and skewed or noisy transitions.

Same convention as `families.py`: (t, rng) -> (noisy curve, (onset, midpoint, end) or None). Learning-rate schedules
bend curves, evaluation noise shrinks as an accuracy saturates, losses spike and decay, and wide changes are no jumps.
"""

import numpy as np
from scipy import special

from spectral.detection.curves.families import (
    Family,
    Truth,
    _basic_place,
    _crossings,
    _hard_place,
    _kinked,
    _noise,
    _symmetric,
    ar1,
)
from spectral.detection.statistic import Array, sigmoid

HEAVY_TAIL_DEGREES = 2.5


def heavy_tails(n: int, sd: float, rng: np.random.Generator) -> Array:
    """Return [n] independent Student t noise with 2.5 degrees of freedom, scaled to a marginal sd of `sd`."""
    scale = np.sqrt(HEAVY_TAIL_DEGREES / (HEAVY_TAIL_DEGREES - 2))
    return np.asarray(sd * rng.standard_t(HEAVY_TAIL_DEGREES, n) / scale, dtype=np.float64)


def ar_drift(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A slow trend under AR(1) noise with coefficient 0.85-0.98."""
    y = rng.uniform(-0.5, 0.5) * t + ar1(len(t), rng.uniform(0.85, 0.98), rng.uniform(0.02, 0.1), rng)
    return y, None


def drifting_walk(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A random walk with drift and heavy-tailed increments."""
    return np.cumsum(rng.normal(0, 0.005) + heavy_tails(len(t), 0.02, rng)), None


def jumping_walk(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A Gaussian random walk that also jumps now and then, by sizes with a Pareto tail of index 2.2."""
    n = len(t)
    jumps = rng.choice([-1, 1], n) * 0.02 * (rng.pareto(2.2, n) + 1) * (rng.random(n) < rng.uniform(0.02, 0.5))
    return np.cumsum(rng.normal(0, 0.02, n) + jumps), None


def pareto_walk(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A random walk whose every increment has a Pareto (Lomax) tail of index 2.2-3.5."""
    increments = rng.choice([-1, 1], len(t)) * rng.pareto(rng.uniform(2.2, 3.5), len(t))
    return 0.02 * np.cumsum(increments), None


def smoothed_walk(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A random walk seen through a moving average of 5 snapshots: even its slope wanders."""
    walk = np.cumsum(rng.normal(0, 0.02, len(t) + 4))
    return np.convolve(walk, np.full(5, 0.2), mode="valid"), None


def plateau(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A drop within the first 1-5 % of the run, then a plateau."""
    return np.exp(-t / rng.uniform(0.005, 0.02)) + _noise(t, rng), None


def periodic(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A sine of 1.5-12 periods on a trend."""
    wave = rng.uniform(0.1, 0.5) * np.sin(2 * np.pi * (rng.uniform(1.5, 12) * t + rng.uniform()))
    return rng.uniform(0, 1) * t + wave + _noise(t, rng), None


def decaying_spikes(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A learning curve with 1-3 sharp rises that decay within 0.5-4 % of the run."""
    y = np.exp(-t / rng.uniform(0.1, 0.4)) + _noise(t, rng, 0.04)
    for _ in range(rng.integers(1, 4)):
        after = t - rng.uniform(0.1, 0.95)
        decay = np.exp(-np.maximum(after, 0) / rng.uniform(0.005, 0.04))
        y = y + rng.uniform(0.4, 1.2) * np.where(after >= 0, decay, 0)
    return y, None


def _warmed_up(t: Array, rng: np.random.Generator) -> Array:
    warm, tau = rng.uniform(0.02, 0.15), rng.uniform(0.08, 0.4)
    passed = np.where(t < warm, t**2 / (2 * warm), t - warm / 2)
    return np.asarray(np.exp(-passed / tau), dtype=np.float64)


def warmup_kink(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """Loss under a linear warm-up of 2-15 % of the run: quadratic progress first, an exponential after it."""
    return _warmed_up(t, rng) + _noise(t, rng, 0.04), None


def quiet_kink(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """0.3 t + b (t - k)+ under a tenth of the usual noise, as a loss on fixed probes has it."""
    return _kinked(t, rng) + 0.1 * _noise(t, rng, 0.04), None


def quiet_warmup(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """`warmup_kink` under a tenth of its noise."""
    return _warmed_up(t, rng) + 0.1 * _noise(t, rng, 0.04), None


def cosine_schedule(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """Loss whose progress follows the integral of a cosine schedule; its noise shrinks with the rate."""
    passed = (t + np.sin(np.pi * t) / np.pi) / 2
    rate = (1 + np.cos(np.pi * t)) / 2
    y = (1 + passed / rng.uniform(0.02, 0.2)) ** -rng.uniform(0.3, 1)
    return y + _noise(t, rng, 0.04) * (0.3 + rate), None


def step_decay(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """Loss at a learning rate that is cut once: the slope changes in a kink, the level does not jump."""
    cut, late = rng.uniform(0.3, 0.7), rng.uniform(0.1, 0.5)
    passed = np.minimum(t, cut) + late * np.maximum(t - cut, 0)
    return np.exp(-passed / rng.uniform(0.2, 0.6)) + _noise(t, rng, 0.04), None


def shrinking_noise(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """Accuracy that saturates exponentially, counted on 64-512 examples: noise shrinks near 1."""
    p = 1 - 0.9 * np.exp(-t / rng.uniform(0.08, 0.4))
    n = int(rng.integers(64, 513))
    return rng.binomial(n, p) / n, None


def heavy_noise(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A straight line under Student t noise."""
    return rng.uniform(0, 1) * t + heavy_tails(len(t), rng.uniform(0.02, 0.1), rng), None


def heavy_exponential(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """1 - exp(-t / tau) under Student t noise."""
    return 1 - np.exp(-t / rng.uniform(0.05, 0.4)) + heavy_tails(len(t), rng.uniform(0.01, 0.05), rng), None


def gradual(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """S of width 0.16-0.4: a change, but no abrupt one."""
    return sigmoid(t, rng.uniform(0.3, 0.7), rng.uniform(0.16, 0.4)) + _noise(t, rng, 0.04), None


def borderline(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """S of width 0.12-0.16: just wider than what counts as abrupt."""
    return sigmoid(t, rng.uniform(0.3, 0.7), rng.uniform(0.12, 0.16)) + _noise(t, rng, 0.04), None


def hill_step(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """t^k / (t^k + m^k), skewed towards late times, on a trend."""
    m, w = _hard_place(rng)
    k = 4.394 * m / w

    def part(x: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(np.clip(-k * np.log(np.maximum(x, 1e-12) / m), -60, 60))), dtype=np.float64)

    return part(t) + rng.uniform(-0.3, 0.3) * t + _noise(t, rng), _crossings(part)


def heavy_step(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """S under Student t noise."""
    m, w = _basic_place(rng)
    y = sigmoid(t, m, w) + heavy_tails(len(t), rng.uniform(0.01, 0.05), rng)
    return y, (m - w / 2, m, m + w / 2)


def saturating_step(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """Accuracy counted on 64-512 examples along 0.1 + 0.85 S, after a slow rise."""
    m, w = _hard_place(rng)
    n = int(rng.integers(64, 513))
    p = 0.05 + 0.1 * t + 0.8 * sigmoid(t, m, w)
    return rng.binomial(n, p) / n, (m - w / 2, m, m + w / 2)


def smooth_ramp(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A ramp with rounded corners, 3 x^2 - 2 x^3, on a trend."""
    m, w = _hard_place(rng)

    def part(x: Array) -> Array:
        u = np.clip(0.5 + 0.608 * (x - m) / w, 0, 1)  # 10-90 % within w
        return np.asarray(u * u * (3 - 2 * u), dtype=np.float64)

    return part(t) + rng.uniform(-0.3, 0.3) * t + _noise(t, rng), _crossings(part)


def relaxing_drop(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A loss that falls early, stands still, then drops at once and relaxes as a stretched exponential."""
    m, w = _hard_place(rng)
    power = rng.uniform(0.8, 1.4)

    def part(x: Array) -> Array:
        tau = w / (2.3 ** (1 / power) - 0.105 ** (1 / power))
        return np.asarray(-np.expm1(-((np.maximum(x - m, 0) / tau) ** power)), dtype=np.float64)

    return np.exp(-t / rng.uniform(0.02, 0.06)) - part(t) + _noise(t, rng, 0.04), _crossings(part)


def late_rise(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A rise that accelerates slowly and stops soon: a mirrored Gompertz curve."""
    m, w = _hard_place(rng)

    def part(x: Array) -> Array:
        return np.asarray(-np.expm1(-np.exp(np.clip(3.084 * (x - m) / w, -50, 50))), dtype=np.float64)

    return part(t) + _noise(t, rng), _crossings(part)


def noise_shift_step(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A Gaussian-integral step whose noise is 2-5 times as loud on one side."""
    m, w = _hard_place(rng)
    place = (t - m) / w
    rise = special.ndtr(2.563 * place)
    loud = rng.uniform(1, 4) * (rise if rng.random() < 0.5 else 1 - rise)
    return rise + _noise(t, rng, 0.025) * (1 + loud), _symmetric(m, w)


def unsettled_step(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A Gaussian-integral step; its noise is 2-5 times as loud from the onset on, for 1-3 widths."""
    m, w = _hard_place(rng)
    place = (t - m) / w
    loud = rng.uniform(1, 4) * ((place > -0.5) & (place < rng.uniform(0.5, 2.5)))
    return special.ndtr(2.563 * place) + _noise(t, rng, 0.03) * (1 + loud), _symmetric(m, w)


def jittered_step(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A step whose time wavers from snapshot to snapshot, by up to 0.15 widths: noise follows the slope."""
    m, w = _hard_place(rng)
    late = rng.uniform(0.03, 0.15) * w * ar1(len(t), rng.uniform(0, 0.6), 1.0, rng)
    return special.ndtr(2.563 * (t - m - late) / w) + _noise(t, rng, 0.03), _symmetric(m, w)


def burst_step(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A Gaussian-integral step; its noise swells to 2-5 times and falls again, a raised cosine of 0.7-1.5 widths."""
    m, w = _hard_place(rng)
    place = (t - m) / w
    reach = rng.uniform(0.7, 1.5)
    loud = rng.uniform(1, 4) * (1 + np.cos(np.pi * np.clip(place / reach, -1, 1))) / 2
    return special.ndtr(2.563 * place) + _noise(t, rng, 0.03) * (1 + loud), _symmetric(m, w)


def two_steps(t: Array, rng: np.random.Generator) -> tuple[Array, list[Truth]]:
    """Two steps of the same sign, 0.2-0.5 of the run apart; returns both truths, ascending."""
    first = rng.uniform(0.15, 0.4)
    places = (first, first + rng.uniform(0.2, 0.5))
    y, truths = _noise(t, rng, 0.04), []
    for m in places:
        w = rng.uniform(0.01, 0.06)
        y = y + rng.uniform(0.6, 1) * sigmoid(t, m, w)
        truths.append((m - w / 2, m, m + w / 2))
    return y, truths


TRAINING_NULL: dict[str, Family] = {
    f.__name__: f
    for f in (
        ar_drift,
        drifting_walk,
        jumping_walk,
        pareto_walk,
        smoothed_walk,
        plateau,
        periodic,
        decaying_spikes,
        warmup_kink,
        quiet_kink,
        quiet_warmup,
        cosine_schedule,
        step_decay,
        shrinking_noise,
        heavy_noise,
        heavy_exponential,
        gradual,
        borderline,
    )
}
TRAINING_ABRUPT: dict[str, Family] = {
    f.__name__: f
    for f in (
        hill_step,
        heavy_step,
        saturating_step,
        smooth_ramp,
        relaxing_drop,
        late_rise,
        noise_shift_step,
        unsettled_step,
        jittered_step,
        burst_step,
    )
}
