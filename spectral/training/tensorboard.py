"""A copy of the scalars of a run for TensorBoard, in `<run>/tensorboard`.

The results file stays the record; this log is derived from it. Opened for a resumed run it is therefore written anew
from the committed rows, so that nothing appears twice and nothing that a kill swallowed is missing.
"""

import contextlib
import io
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectral.detection.signals import signal_values
from spectral.errors import ConfigError
from spectral.storage import Run
from spectral.training.row import Row

FOLDER = "tensorboard"
TRAINING = ("loss", "learning_rate", "gradient_norm", "tokens_seen")
_SCALARS = ("behaviour", "hessian")
_RANKS = 3


class TensorBoardLog:
    """Writes scalars for TensorBoard; measures nothing and draws no random numbers.

    Args:
        folder: of the event files.

    Raises:
        ConfigError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        writer = require_tensorboard()
        self.folder = folder
        self._writer = writer(str(folder), flush_secs=10)

    @classmethod
    def rewritten(cls, folder: Path, run: Run | None) -> "TensorBoardLog":
        """Replace what is in `folder` by the committed rows of a run; None = a new run without any."""
        require_tensorboard()
        shutil.rmtree(folder, ignore_errors=True)
        log = cls(folder)
        if run is not None:
            log._replay(run)
        return log

    def training(self, step: int, row: Mapping[str, float | int]) -> None:
        """Add a row of the training log: dataset name -> value."""
        for name, value in row.items():
            self._add(f"train/{name}", value, step)

    def snapshot(self, step: int, row: Row) -> None:
        """Add a snapshot: its scalars, the outermost eigenvalues, and the curves that the detector follows."""
        for name, value in row.items():
            values = np.asarray(value)
            missing = values.dtype.kind in "iu" and values.ndim == 0 and values == -1
            if name.split("/")[0] in _SCALARS and values.ndim == 0 and not missing:
                self._add(name, float(values), step)
        for name in ("eigenvalues", "negative_eigenvalues"):
            for rank, value in enumerate(np.asarray(row.get(f"hessian/{name}", ()))[:_RANKS], 1):
                self._add(f"hessian/{name}/{rank}", float(value), step)
        for name, signal in signal_values(row.__getitem__, row).items():
            self._add(f"signals/{name}", float(signal), step)

    def flush(self) -> None:
        """Bring everything to disk."""
        self._writer.flush()

    def close(self) -> None:
        """Bring everything to disk and end the file."""
        self._writer.close()

    def _add(self, name: str, value: float | int, step: int) -> None:
        if math.isfinite(value):
            self._writer.add_scalar(name, value, step)

    def _replay(self, run: Run) -> None:
        train = {name.split("/")[1]: run.read(name) for name in run.datasets() if name.startswith("train/")}
        for i, step in enumerate(run.train_steps.tolist()):
            self.training(step, {name: float(train[name][i]) for name in TRAINING if name in train})
        groups = (*_SCALARS, "circuits")
        names = [name for name in run.datasets() if name.split("/")[0] in groups and run.dims(name)[0] == "step"]
        stored = {name: run.read(name) for name in names if not name.endswith("/step")}
        for i, step in enumerate(run.steps.tolist()):
            self.snapshot(step, {name: values[i] for name, values in stored.items()})
        self.flush()


def require_tensorboard() -> Any:
    """Return the class that writes event files.

    Raises:
        ConfigError: tensorboard is not installed.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # TensorFlow's absence is no news
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(["--log_to tensorboard needs a package: pip install tensorboard"]) from None
    return SummaryWriter
