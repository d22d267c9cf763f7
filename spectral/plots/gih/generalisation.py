"""How the trained model does at other lengths and concentrations, beside the Bayes observer and the truth."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from spectral.gih import GIHResults
from spectral.plots.gih.source import MissingPartError, run_line
from spectral.plots.style import finish, house_style, new_figure

_COLORS = ("#332288", "#117733", "#cc6677")


def generalisation(run: GIHResults) -> Figure:
    """Draw both losses over the length, per concentration, and how far the model is above the true probabilities.

    Raises:
        MissingPartError: the run has not been tried on other chains.
    """
    if "generalisation_double_softmax" not in run.dataset:
        msg = "generalisation is measured at the end of a run with --generalisation_chains above 0"
        raise MissingPartError(msg)
    with house_style():
        n = run.config.generalisation_chains
        notes = [
            run_line(run),
            f"{n:,} fresh chains per concentration; all lengths read the last tokens of the same chains and predict "
            "the same targets. Bars: two standard errors, left over chains, right paired by chain. Dashed: the Bayes "
            "observer; dotted: the true probabilities. The vertical line is the trained length.",
        ]
        figure = new_figure(11.0, 3.6, title="Other lengths, other concentrations", notes=notes)
        left, middle, right = figure.subplots(1, 3)
        lengths, alphas = run.read("length"), run.read("alpha")

        def read(name: str) -> np.ndarray:
            return run.read(f"generalisation_{name}")

        for i, (alpha, color) in enumerate(zip(alphas, _COLORS, strict=False)):
            style = {"color": color, "marker": "o", "ms": 3, "label": f"alpha {alpha:g}"}
            double, twice = read("double_softmax")[i], 2 * read("double_softmax_se")[i]
            left.errorbar(lengths, double, twice, elinewidth=0.8, **style)
            middle.plot(lengths, read("nll")[i], **style)
            for axes, kind in ((left, "double_softmax"), (middle, "nll")):
                axes.plot(lengths, read(f"bayes_{kind}")[i], color=color, ls="--", lw=1.1)
                axes.plot(lengths, read(f"oracle_{kind}")[i], color=color, ls=":", lw=1.1)
            right.errorbar(lengths, read("excess")[i], 2 * read("excess_se")[i], elinewidth=0.8, **style)
            above = read("bayes_double_softmax")[i] - read("oracle_double_softmax")[i]
            right.plot(lengths, above, color=color, ls="--", lw=1.1)
        left.set_title("double-softmax loss")
        middle.set_title("cross-entropy")
        right.set_title("double-softmax loss above the truth's")
        right.set_yscale("symlog", linthresh=1e-3, linscale=0.5)
        for axes in (left, middle, right):
            axes.set_xscale("log")
            axes.set_xticks(lengths)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.tick_params(axis="x", labelrotation=45)
            axes.axvline(run.config.seq_length, color="#6e6e6e", lw=0.8, zorder=0.5)
            axes.set_xlabel("length")
            axes.set_ylabel("nats")
        left.legend(loc="upper right")
        return finish(figure)
