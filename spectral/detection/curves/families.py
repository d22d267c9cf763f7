"""Labelled curve families: what a signal looks like with an abrupt transition, and without one.

Each family is a function of (t, rng) with t in [0, 1] that returns the noisy curve and its true (onset, midpoint,
end), the 10, 50 and 90 % points of the noiseless transition part, or None for a null curve. Used to calibrate the
online thresholds and to measure false alarms, power and coverage. "Basic" families tuned the detector; "hard" ones
are the fairer score.
"""

from collections.abc import Callable

import numpy as np

from spectral.detection.statistic import Array, sigmoid

Truth = tuple[float, float, float]
Family = Callable[[Array, np.random.Generator], tuple[Array, Truth | None]]


def ar1(n: int, phi: float, sd: float, rng: np.random.Generator) -> Array:
    """Return [n] stationary AR(1) noise of marginal sd `sd`."""
    draws = rng.standard_normal(n)
    for i in range(1, n):
        draws[i] = phi * draws[i - 1] + np.sqrt(1 - phi**2) * draws[i]
    return np.asarray(sd * draws, dtype=np.float64)


def _noise(t: Array, rng: np.random.Generator, high: float = 0.05) -> Array:
    return ar1(len(t), rng.uniform(0, 0.6), rng.uniform(0.01, high), rng)


def _symmetric(m: float, w: float) -> Truth:
    return m - w / 2, m, m + w / 2


def _crossings(part: Callable[[Array], Array]) -> Truth:
    """Find the 10, 50 and 90 % points of a monotone transition part on [0, 1]."""
    fine = np.linspace(0, 1, 20001)
    height = part(fine)
    height = (height - height[0]) / (height[-1] - height[0])
    low, mid, high = (float(fine[np.argmax(height >= level)]) for level in (0.1, 0.5, 0.9))
    return low, mid, high


def _basic_place(rng: np.random.Generator) -> tuple[float, float]:
    return rng.uniform(0.2, 0.8), rng.uniform(0.01, 0.08)


def _hard_place(rng: np.random.Generator) -> tuple[float, float]:
    return rng.uniform(0.15, 0.85), rng.uniform(0.01, 0.09)


def step(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """S."""
    m, w = _basic_place(rng)
    return sigmoid(t, m, w) + _noise(t, rng), _symmetric(m, w)


def step_after_exponential(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """0.8 S + a (1 - exp(-t / tau))."""
    m, w = _basic_place(rng)
    early = rng.uniform(0.3, 1) * (1 - np.exp(-t / rng.uniform(0.02, 0.08)))
    return 0.8 * sigmoid(t, m, w) + early + _noise(t, rng), _symmetric(m, w)


def step_on_curved_trend(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """0.35 S + 0.65 t^p."""
    m, w = _basic_place(rng)
    return 0.35 * sigmoid(t, m, w) + 0.65 * t ** rng.uniform(0.5, 1) + _noise(t, rng), _symmetric(m, w)


def step_with_outliers(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """S with 1-3 single points far off."""
    m, w = _basic_place(rng)
    y = sigmoid(t, m, w) + _noise(t, rng)
    for i in rng.integers(0, len(t), rng.integers(1, 4)):
        y[i] += rng.choice([-1, 1]) * rng.uniform(0.4, 1.2)
    return y, _symmetric(m, w)


def tilted_step(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """S + b t."""
    m, w = _basic_place(rng)
    return sigmoid(t, m, w) + rng.uniform(-0.3, 0.3) * t + _noise(t, rng), _symmetric(m, w)


def skewed_accuracy(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """Binomial accuracy along a Gompertz curve."""
    m, w = _hard_place(rng)

    def part(x: Array) -> Array:
        return np.asarray(np.exp(-np.exp(np.clip(-3.6 * (x - m) / w, -50, 50))), dtype=np.float64)

    return rng.binomial(256, 0.1 + 0.88 * part(t)) / 256, _crossings(part)


def loss_with_ramp(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """Loss: early exponential drop, plateau, straight ramp down, slow improvement."""
    m, w = _hard_place(rng)
    ramp = 1.5 * (1 - np.clip((t - m) / w + 0.5, 0, 1))
    y = 2 * np.exp(-t / 0.03) + ramp - 0.2 * np.sqrt(np.maximum(t - m, 0)) + _noise(t, rng, 0.04)
    return y, (m - 0.4 * w, m, m + 0.4 * w)


def overshoot(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """A step that overshoots and settles."""
    m, w = _hard_place(rng)
    bump = 1 + 0.8 * np.exp(-np.maximum(t - m, 0) / 0.1)
    return sigmoid(t, m, w) * bump + 2 * _noise(t, rng, 0.04), _symmetric(m, w)


def noisy_transition(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """Noise grows fourfold inside the transition."""
    m, w = _hard_place(rng)
    y = sigmoid(t, m, w) + _noise(t, rng, 0.04) * (1 + 3 * np.exp(-(((t - m) / w) ** 2)))
    return y, _symmetric(m, w)


def exponential(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """1 - exp(-t / tau)."""
    return 1 - np.exp(-t / rng.uniform(0.05, 0.4)) + _noise(t, rng), None


def power_law(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """1 - (1 + t / u)^-p."""
    return 1 - (1 + t / rng.uniform(0.01, 0.1)) ** -rng.uniform(0.3, 1) + _noise(t, rng), None


def line(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """Straight line b t."""
    return rng.uniform(0.5, 1) * t + _noise(t, rng), None


def slow_sigmoid(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """S of width 0.4-0.8."""
    return sigmoid(t, rng.uniform(0.35, 0.65), rng.uniform(0.4, 0.8)) + _noise(t, rng), None


def noise(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """Noise alone."""
    return _noise(t, rng), None


def persistent_noise(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """AR(1) noise with coefficient 0.95."""
    return ar1(len(t), 0.95, 2 * rng.uniform(0.01, 0.05), rng), None


def spikes(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """0.5 t with 1-3 spikes of 1-3 points."""
    y = 0.5 * t + _noise(t, rng)
    for _ in range(rng.integers(1, 4)):
        start = rng.integers(0, len(t) - 3)
        y[start : start + rng.integers(1, 4)] += rng.choice([-1, 1]) * rng.uniform(0.4, 1.2)
    return y, None


def logarithm(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """ln(1 + a t) / ln(1 + a)."""
    a = rng.uniform(5, 100)
    return np.log1p(a * t) / np.log1p(a) + _noise(t, rng, 0.04), None


def root(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """Square root of t."""
    return np.sqrt(t) + _noise(t, rng, 0.04), None


def stretched(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """1 - exp(-(t / tau)^p)."""
    return 1 - np.exp(-((t / rng.uniform(0.1, 0.5)) ** rng.uniform(0.5, 1.4))) + _noise(t, rng, 0.04), None


def _kinked(t: Array, rng: np.random.Generator) -> Array:
    return np.asarray(0.3 * t + rng.uniform(1, 3) * np.maximum(t - rng.uniform(0.3, 0.7), 0), dtype=np.float64)


def slope_kink(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """0.3 t + b (t - k)+."""
    return _kinked(t, rng) + _noise(t, rng, 0.04), None


def slow_accuracy(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """Binomial accuracy along a wide sigmoid."""
    p = 0.1 + 0.8 * sigmoid(t, rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.7))
    return rng.binomial(256, p) / 256, None


def transient_bump(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """0.4 t with one Gaussian bump."""
    m, _ = _hard_place(rng)
    bump = rng.choice([-1, 1]) * 0.8 * np.exp(-(((t - m) / 0.02) ** 2))
    return 0.4 * t + bump + _noise(t, rng, 0.04), None


def random_walk(t: Array, rng: np.random.Generator) -> tuple[Array, Truth | None]:
    """Cumulative sum of Gaussian steps."""
    return np.cumsum(rng.normal(0, 0.02, len(t))), None


BASIC_ABRUPT: dict[str, Family] = {
    f.__name__: f for f in (step, step_after_exponential, step_on_curved_trend, step_with_outliers, tilted_step)
}
HARD_ABRUPT: dict[str, Family] = {f.__name__: f for f in (skewed_accuracy, loss_with_ramp, overshoot, noisy_transition)}
BASIC_NULL: dict[str, Family] = {
    f.__name__: f for f in (exponential, power_law, line, slow_sigmoid, noise, persistent_noise, spikes)
}
HARD_NULL: dict[str, Family] = {
    f.__name__: f for f in (logarithm, root, stretched, slope_kink, slow_accuracy, transient_bump, random_walk)
}
ABRUPT = BASIC_ABRUPT | HARD_ABRUPT
NULL = BASIC_NULL | HARD_NULL
