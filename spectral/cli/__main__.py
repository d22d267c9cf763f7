"""`python -m spectral.cli`: the `spectral` command where the package is not installed."""

import sys

from spectral.cli.dispatch import main

if __name__ == "__main__":
    sys.exit(main())
