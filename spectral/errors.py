"""What a user can do wrong, as one exception type.

The command line turns a `UserError` into one line on standard error and exit code 2; every other exception is a
programming mistake and keeps its traceback.
"""


class UserError(Exception):
    """A mistake or a condition outside the program; the message names the cause and the remedy on one line."""


class ConfigError(UserError, ValueError):
    """A configuration that cannot be run. `faults` lists every fault found, not only the first."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(self.faults))


class RunDirectoryError(UserError):
    """A run folder that is missing, foreign, or in use by another process."""


class ResultsFileError(UserError):
    """A results file that cannot be read or written: truncated, foreign, of another schema, or on a full disk."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, missing, or of another configuration."""


class NonFiniteError(UserError, ArithmeticError):
    """The loss, the gradient or the spectrum became NaN or infinite; what was measured before is committed."""
