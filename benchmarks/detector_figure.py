"""The figure of docs/transition.md: a detected, a gradual and a control curve with their verdicts.

python -m benchmarks.detector_figure [--output docs/images/transition_verdicts.png]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from spectral.detection import detect_transition
from spectral.detection.curves.families import ar1
from spectral.detection.statistic import sigmoid


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/images/transition_verdicts.png"))
    options = parser.parse_args()
    steps = np.linspace(0, 20000, 200)
    t = steps / steps[-1]
    rng = np.random.default_rng(3)
    curves = {
        "early drop, then a jump": 0.8 * sigmoid(t, 0.45, 0.05)
        + 0.5 * (1 - np.exp(-t / 0.04))
        + ar1(200, 0.4, 0.03, rng),
        "a wide rise": sigmoid(t, 0.5, 0.3) + ar1(200, 0.4, 0.03, rng),
        "control: random walk": np.cumsum(rng.normal(0, 0.03, 200)),
    }
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
    for panel, (title, y) in zip(axes, curves.items(), strict=True):
        found = detect_transition(steps, y, signal=title)
        panel.plot(steps, y, ".", color="0.35", markersize=3)
        if found.detected and found.onset is not None and found.end is not None and found.interval is not None:
            panel.axvspan(found.onset, found.end, color="tab:orange", alpha=0.25, linewidth=0)
            panel.axvspan(*found.interval, color="tab:red", alpha=0.7, linewidth=0)
        reason = f" ({found.reason})" if found.reason else ""
        panel.set_title(f"{title}\n{found.verdict}{reason}, p = {found.p_value:.2g}", fontsize=9)
        panel.set_xlabel("step")
        panel.ticklabel_format(axis="x", style="plain")
    axes[0].set_ylabel("signal")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=100, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
