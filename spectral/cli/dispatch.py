"""The `spectral` console command, which holds all others."""

import sys
from collections.abc import Callable, Sequence

from spectral.cli.densify_command import densify
from spectral.cli.detect_command import detect
from spectral.cli.export_command import export
from spectral.cli.outcome import EXIT_USER_ERROR, report
from spectral.cli.probe_step_command import probe_step
from spectral.cli.show_command import show
from spectral.cli.study_command import study
from spectral.cli.train_command import train
from spectral.cli.train_gih_command import train_gih
from spectral.cli.visualize_command import visualize
from spectral.errors import ConfigError

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "train-gih": train_gih,
    "visualize": visualize,
    "show": show,
    "export": export,
    "detect": detect,
    "densify": densify,
    "probe-step": probe_step,
    "study": study,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of `COMMANDS`, named by the first argument; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        helps = "\n".join(f"spectral {name} --help" for name in COMMANDS)
        print(f"usage: spectral {{{','.join(COMMANDS)}}} ...\n\n{helps}")
        return 0 if arguments else EXIT_USER_ERROR
    name = arguments[0].replace("_", "-")
    if name not in COMMANDS:
        return report(ConfigError([f"unknown command {arguments[0]!r}; use one of {', '.join(COMMANDS)}"]))
    return COMMANDS[name](arguments[1:])
