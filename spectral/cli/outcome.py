"""How a command ends: its exit codes, and a user's mistake as one line on standard error."""

import sys
from collections.abc import Callable

from spectral.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def guarded(command: Callable[[], int]) -> int:
    """Run a command; a user's mistake becomes one line and exit code 2, everything else keeps its traceback."""
    try:
        return command()
    except UserError as error:
        return report(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def report(error: UserError) -> int:
    """Print a mistake as one line and return its exit code."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return EXIT_USER_ERROR
