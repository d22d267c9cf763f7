"""Other ways to date a transition, each reduced to one question: at which snapshots does this curve change?

Each takes (t, y) and returns predicted change points as snapshot indices. Parameters are the common defaults, not tuned
on the curves that judge them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from spectral.detection.statistic import sigmoid

Baseline = Callable[[np.ndarray, np.ndarray], list[int]]
MAX_WIDTH = 0.12


def never(t: np.ndarray, y: np.ndarray) -> list[int]:
    """Report nothing."""
    return []


def half_change_of_window(t: np.ndarray, y: np.ndarray, *, window: int = 100, relative: float = 0.5) -> list[int]:
    """Flag a 50 % change of |y| within 100 measurements and report the window's end; silent with fewer than 100."""
    for end in range(window, len(y) + 1):
        first, last = abs(y[end - window]), abs(y[end - 1])
        if abs(last - first) > relative * max(first, 1e-12):
            return [end - 1]
    return []


def five_percent_window(t: np.ndarray, y: np.ndarray) -> list[int]:
    """Flag the window of 5 % of the run that holds more than half of the curve's range; report its middle."""
    size = max(round(0.05 * len(y)), 1)
    change = np.abs(y[size:] - y[:-size])
    best = int(np.argmax(change))
    return [best + size // 2] if change[best] > 0.5 * np.ptp(y) else []


def largest_second_difference(t: np.ndarray, y: np.ndarray) -> list[int]:
    """Report the largest second difference of the curve smoothed over 5 snapshots; always answers."""
    smooth = np.convolve(y, np.full(5, 0.2), mode="same")
    return [int(np.argmax(np.abs(np.diff(smooth[3:-3], 2)))) + 4]


def sigmoid_by_bic(t: np.ndarray, y: np.ndarray) -> list[int]:
    """Sigmoid of width <= 12 % against line, exponential and power law by BIC, independent noise."""
    n = len(t)

    def rss(columns: list[np.ndarray]) -> float:
        x = np.stack([np.ones(n), t, *columns], axis=1)
        beta = np.linalg.lstsq(x, y, rcond=None)[0]
        return max(float(np.sum((y - x @ beta) ** 2)), 1e-14)

    def bic(value: float, k: int) -> float:
        return n * np.log(value / n) + k * np.log(n)

    smooth = [bic(rss([]), 3)]
    smooth += [bic(rss([np.exp(-t / tau)]), 5) for tau in np.geomspace(0.01, 1.5, 12)]
    smooth += [bic(rss([(1 + t / u) ** -p]), 6) for u in (0.01, 0.05) for p in (0.3, 0.8)]
    places = [(rss([sigmoid(t, m, w)]), m) for m in np.linspace(0.05, 0.95, 91) for w in (0.01, 0.03, 0.06, 0.12)]
    value, m = min(places)
    return [int(np.argmin(np.abs(t - m)))] if bic(value, 6) < min(smooth) else []


def cusum(t: np.ndarray, y: np.ndarray, *, threshold: float = 5.0, drift: float = 0.5) -> list[int]:
    """Two-sided CUSUM on values standardised by the first 20 snapshots; reports every alarm, then starts anew."""
    return _sequential(y, threshold, drift, page_hinkley=False)


def page_hinkley(t: np.ndarray, y: np.ndarray, *, threshold: float = 50.0, drift: float = 0.005) -> list[int]:
    """Page-Hinkley with the usual delta 0.005 and lambda 50, on the same standardised values."""
    return _sequential(y, threshold, drift, page_hinkley=True)


def _sequential(y: np.ndarray, threshold: float, drift: float, *, page_hinkley: bool, warm: int = 20) -> list[int]:
    alarms, start = [], 0
    while start + warm < len(y):
        known = y[start : start + warm]
        mean, sd = float(np.mean(known)), max(float(np.std(known)), 1e-9)
        up = down = 0.0
        for i in range(start + warm, len(y)):
            if page_hinkley:
                mean += (y[i] - mean) / (i - start + 1)
            z = (y[i] - mean) / sd
            up, down = max(0.0, up + z - drift), max(0.0, down - z - drift)
            if max(up, down) > threshold:
                alarms.append(i)
                start = i
                break
        else:
            break
    return alarms


def ruptures_baselines() -> dict[str, Baseline]:
    """PELT l2 and KernelCPD with BIC penalties, Binseg clinear with a width rule; empty when ruptures is missing."""
    try:
        import ruptures
    except ImportError:
        return {}

    def scaled(y: np.ndarray) -> np.ndarray:
        # Noise sd from first differences: the penalty needs a unit.
        return np.asarray((y - np.mean(y)) / max(np.median(np.abs(np.diff(y))) / 0.954, 1e-9))

    def pelt(t: np.ndarray, y: np.ndarray) -> list[int]:
        found: Any = ruptures.Pelt(model="l2", min_size=3, jump=1).fit(scaled(y)).predict(pen=2 * np.log(len(y)))
        return [int(i) for i in found[:-1]]

    def kernel(t: np.ndarray, y: np.ndarray) -> list[int]:
        found: Any = ruptures.KernelCPD(kernel="linear", min_size=3).fit(scaled(y)).predict(pen=2 * np.log(len(y)))
        return [int(i) for i in found[:-1]]

    def binseg(t: np.ndarray, y: np.ndarray) -> list[int]:
        # Stopped by the same penalty as the others: a fixed number of cuts leaves those around a step too far apart.
        # A transition may be cut into pieces, so its ends are any two cuts at most 12 % of the run apart.
        search = ruptures.Binseg(model="clinear", min_size=3, jump=1).fit(scaled(y))
        found: Any = search.predict(pen=2 * np.log(len(y)))
        cuts = [0, *(int(i) for i in found[:-1]), len(y) - 1]
        level = np.convolve(np.pad(y, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
        pairs = [(a, b) for i, a in enumerate(cuts) for b in cuts[i + 1 :] if t[b] - t[a] <= MAX_WIDTH and a > 2]
        a, b = max(pairs, key=lambda pair: abs(level[pair[1]] - level[pair[0]]), default=(0, 0))
        return [(a + b) // 2] if abs(level[b] - level[a]) > 0.4 * np.ptp(y) else []

    return {"ruptures PELT l2, BIC": pelt, "ruptures KernelCPD": kernel, "ruptures Binseg clinear + width": binseg}


def baselines() -> dict[str, Baseline]:
    """Return all baselines by name."""
    return {
        "never": never,
        "50 % change in 100 measurements": half_change_of_window,
        "> 50 % in a 5 % window": five_percent_window,
        "largest second difference": largest_second_difference,
        "sigmoid against smooth, BIC": sigmoid_by_bic,
        "CUSUM": cusum,
        "Page-Hinkley": page_hinkley,
        **ruptures_baselines(),
    }
