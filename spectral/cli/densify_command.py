"""`spectral densify RUN`: snapshots every few steps in a window of a finished run."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spectral.cli.outcome import guarded
from spectral.cli.parsing import parse_or_raise, with_underscores
from spectral.cli.verdict import describe_verdict
from spectral.errors import ConfigError

DENSIFY_FLAGS = {
    "around_transition": "the detected transition, its length again on either side, and two snapshots more",
    "from_step": "first step of the window, with to_step",
    "to_step": "last step of the window",
    "interval": "steps between snapshots in the window; 0 = a tenth of the run's eigen_interval",
    "quiet": "no progress output",
}


def densify(argv: Sequence[str] | None = None) -> int:
    """Add dense snapshots to a finished run: `spectral densify`. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _densify(arguments))


def _densify(arguments: list[str]) -> int:
    chosen = parse_or_raise(_parser(), with_underscores(arguments))
    if chosen.around_transition == (chosen.from_step is not None or chosen.to_step is not None):
        raise ConfigError(["name one window: --around_transition, or --from_step with --to_step"])
    from spectral.storage import open_run
    from spectral.training import Progress
    from spectral.training.densify import densify as compute
    from spectral.training.memory import keep_freed_memory

    keep_freed_memory()
    done = compute(
        Path(chosen.run),
        start=chosen.from_step,
        end=chosen.to_step,
        interval=chosen.interval,
        progress=None if chosen.quiet else Progress,
    )
    n = len(done.compared)
    equal = f"{n} stored snapshot{'' if n == 1 else 's'} on the way agreed bit for bit" if n else "none lay on the way"
    print(
        f"{done.run}: {len(done.steps)} snapshots added from step {done.start} to {done.end}, every {done.interval} "
        f"steps, {done.n_products} products; replayed from {done.origin}, {equal}"
    )
    with open_run(done.run) as run:
        if run.transitions:
            print(describe_verdict(run.transitions))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spectral densify",
        description="Replay a window of a finished run from the newest checkpoint before it, or from the "
        "initialisation where there is none, with a snapshot every few steps; put the new snapshots among the stored "
        "ones and judge the run again. Stored snapshots stay as they are; nothing is written unless the replay "
        "reproduces them bit for bit.",
    )
    parser.add_argument("run", help="folder of a finished run, for example runs/demo")
    parser.add_argument("--around_transition", action="store_true", help=DENSIFY_FLAGS["around_transition"])
    parser.add_argument("--from_step", type=int, default=None, help=DENSIFY_FLAGS["from_step"])
    parser.add_argument("--to_step", type=int, default=None, help=DENSIFY_FLAGS["to_step"])
    parser.add_argument("--interval", type=int, default=0, help=DENSIFY_FLAGS["interval"])
    parser.add_argument("--quiet", action="store_true", help=DENSIFY_FLAGS["quiet"])
    return parser
