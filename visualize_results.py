"""Draw the figures of a run: `python visualize_results.py runs/<run>`."""

import sys

from spectral.cli import visualize

if __name__ == "__main__":
    sys.exit(visualize())
