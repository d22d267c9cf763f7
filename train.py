"""Train a small transformer and measure curvature and circuits on the way: `python train.py --help`."""

import sys

from spectral.cli import train

if __name__ == "__main__":
    sys.exit(train())
