"""`spectral probe-step`: take some steps of a run again with projected updates."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectral.cli.outcome import guarded
from spectral.cli.parsing import parse_or_raise, with_underscores
from spectral.errors import ConfigError, RunDirectoryError

PROBE_STEP_FLAGS = {
    "run": "run folder, for example runs/demo; finished, interrupted or still running",
    "step": "where to begin: optimizer updates completed. The newest checkpoint at or before it is replayed forward",
    "n_steps": "how many steps every variant takes",
    "k": "how many top eigenvectors span the space",
    "refresh": "compute the eigenvectors again every this many steps, because the space moves; 0 = only once. Costs "
    "about 50 Hessian-vector products for each of three variants each time",
    "measure_interval": "measure loss and accuracy on the held-out probes every this many steps",
    "seed": "of the eigenvector search and the random space; the run's seed if not given. The batches stay the run's",
    "from_start": "where no checkpoint is early enough, repeat the run from its initialisation",
    "device": "auto, cpu, cuda or cuda:N; the run's own choice if not given",
    "output": "JSON file to write; the figure goes beside it. If not given: <run>/probe_steps/step_<S>.json and "
    "<run>/figures/probe_step_<S>.png",
    "quiet": "no progress output",
}


def probe_step(argv: Sequence[str] | None = None) -> int:
    """Take some steps of a run again with projected updates: `spectral probe-step`. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _probe_step(arguments))


def _probe_step(arguments: list[str]) -> int:
    chosen = parse_or_raise(_probe_step_parser(), with_underscores(arguments))
    from spectral.plots.probe_step import draw_probe_step
    from spectral.training import Progress
    from spectral.training.memory import keep_freed_memory
    from spectral.training.probe_step import probe_step as compute

    keep_freed_memory()
    run, step = Path(chosen.run), chosen.step
    data = run / "probe_steps" / f"step_{step}.json"
    figure = run / "figures" / f"probe_step_{step}.png"
    if chosen.output is not None:
        data = Path(chosen.output)
        figure = data.with_suffix(".png")
        if data.is_dir() or data.suffix == ".png":
            raise ConfigError([f"--output {data} cannot be the JSON file; give a file name such as probe.json"])
    for folder in (data.parent, figure.parent) if run.exists() else ():  # before minutes of work, not after
        place = next(place for place in (folder, *folder.parents) if place.exists())
        if not (place.is_dir() and os.access(place, os.W_OK)):
            msg = f"{place} cannot be written; choose another place with --output"
            raise RunDirectoryError(msg)
    result = compute(
        run,
        step,
        n_steps=chosen.n_steps,
        k=chosen.k,
        refresh=chosen.refresh,
        measure_interval=chosen.measure_interval,
        seed=chosen.seed,
        from_start=chosen.from_start,
        device=chosen.device,
        progress=None if chosen.quiet else Progress,
    )
    result.save(data)
    draw_probe_step(result, figure)
    print(describe_probe_step(result))
    print(f"{data}\n{figure}")
    return 0


def _probe_step_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spectral probe-step",
        description=(
            "Does learning happen in the top Hessian eigenspace? Takes some steps of a run again from one moment, on "
            "the same batches, in four variants: the optimizer's update unchanged; projected on the span of the top k "
            "eigenvectors (top); projected off it (bulk); projected on a random space of k dimensions (random). "
            "Nothing of the run is changed."
        ),
        epilog="Example: spectral probe-step --run runs/demo --step 500",
        allow_abbrev=False,
    )
    add, told = parser.add_argument, PROBE_STEP_FLAGS
    add("--run", required=True, help=told["run"])
    add("--step", required=True, type=int, metavar="S", help=told["step"])
    for name, default in (("n_steps", 100), ("k", 10), ("refresh", 10), ("measure_interval", 5)):
        add(f"--{name}", type=int, default=default, metavar="N", help=f"{told[name]} (default: {default})")
    add("--seed", type=int, default=None, help=told["seed"])
    add("--device", default=None, help=told["device"])
    add("--output", default=None, metavar="FILE", help=told["output"])
    for name in ("from_start", "quiet"):
        add(f"--{name}", action="store_true", help=told[name])
    return parser


def describe_probe_step(result: Any) -> str:
    """Return a `ProbeStep` as a table and a sentence."""
    settings, start = result.settings, result.variants["unchanged"]
    again = f"taken again every {settings['refresh']} steps" if settings["refresh"] else "taken once"
    chance = f"chance {result.yardsticks['share_chance']:.2%}"
    lines = [
        f"{result.run}, step {result.step:,} (from {result.origin}): {settings['n_steps']} steps, "
        f"top {settings['k']} of {result.n_parameters:,} directions {again}, {result.n_products:,} products",
        "",
        f"{'':<10} {'train loss':>10}   {'probe loss':>10} {'change':>8}   {'accuracy':>8} {'change':>8}   "
        f"{'update in space':>15}   {'space kept':>10}",
        f"{'start':<10} {start.loss[0]:>10.4f}   {start.probe_loss[0]:>10.4f} {'':>8}   "
        f"{start.induction_accuracy[0]:>8.3f} {'':>8}   {chance:>15}",
    ]
    for name, variant in result.variants.items():
        if variant.diverged is not None:
            lines.append(f"{name:<10} diverged after step {variant.diverged:,}")
            continue
        lines.append(
            f"{name:<10} {variant.final_loss:>10.4f}   {variant.probe_loss[-1]:>10.4f} "
            f"{variant.change('probe_loss'):>+8.4f}   {variant.induction_accuracy[-1]:>8.3f} "
            f"{variant.change('induction_accuracy'):>+8.3f}   {variant.update_share.mean():>15.2%}   "
            f"{'' if math.isnan(variant.space_kept) else format(variant.space_kept, '.0%'):>10}".rstrip()
        )
    return "\n".join([*lines, "", result.sentence()])
