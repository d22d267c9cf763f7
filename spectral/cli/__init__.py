"""The commands: `train.py`, `visualize_results.py`, and the `spectral` console command that holds all of them.

Exit codes: 0 done, 2 a user's mistake or a refused run (one line on standard error), 130 interrupted and saved.

One module per command; what a command computes lies in the rooms below. Heavy imports stand inside the functions, so
that `--help` and a mistyped flag are answered at once.
"""

from spectral.cli.densify_command import DENSIFY_FLAGS, densify
from spectral.cli.detect_command import DETECT_FLAGS, detect
from spectral.cli.dispatch import main
from spectral.cli.outcome import EXIT_INTERRUPTED, EXIT_USER_ERROR
from spectral.cli.probe_step_command import PROBE_STEP_FLAGS, describe_probe_step, probe_step
from spectral.cli.settings import COMMAND_FLAGS, parse_train
from spectral.cli.study_command import STUDY_FLAGS, study
from spectral.cli.train_command import train
from spectral.cli.verdict import describe_verdict
from spectral.cli.visualize_command import VISUALIZE_FLAGS, visualize

__all__ = [
    "COMMAND_FLAGS",
    "DENSIFY_FLAGS",
    "DETECT_FLAGS",
    "EXIT_INTERRUPTED",
    "EXIT_USER_ERROR",
    "PROBE_STEP_FLAGS",
    "STUDY_FLAGS",
    "VISUALIZE_FLAGS",
    "densify",
    "describe_probe_step",
    "describe_verdict",
    "detect",
    "main",
    "parse_train",
    "probe_step",
    "study",
    "train",
    "visualize",
]
