"""Measures any model in anyone's training loop and writes a run folder.

    monitor = SpectralMonitor(model, loss_fn, probe_batch, "runs/mine", eigen_interval=100)
    for step in range(num_steps + 1):
        monitor.step(step)          # step = optimizer updates completed
        ...                         # one update
    monitor.close()

The suite's own training loop uses the same class with circuit and behaviour measurements added.
"""

import json
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from spectral.curvature import Spectrum
from spectral.curvature.operator import LossFunction
from spectral.detection import RunVerdict, detect_run
from spectral.detection.signals import FAMILY_OF, LOG_SIGNALS, signal_values
from spectral.storage import ResultsWriter, Run, RunDirectory, RunLayout, open_run
from spectral.training.measure import CurvatureSettings, Row, measure_curvature, parameter_blocks
from spectral.version import __version__

Measurement = Callable[[nn.Module], Row]


class SpectralMonitor:
    """Takes a snapshot every `eigen_interval` steps and stores it in `<path>/results.h5`.

    Args:
        model: any module; never changed by measuring.
        loss_fn: callable (model, batch) -> scalar mean loss.
        probe_batch: fixed held-out batch on which the Hessian is taken.
        path: run folder to create.
        eigen_interval: steps between snapshots; step 0 is one of them.
        k, k_negative: eigenvalues at the upper and the lower end.
        rtol: relative error at which a top eigenvalue counts as certified.
        max_products: limit on Hessian-vector products per snapshot; None = the solver's default.
        microbatch_size: sequences per product pass; None = all at once.
        hessian_dtype: precision of the products; None = the model's.
        seed: of the start vectors.
        config: settings to store beside the results, JSON-ready.
        overwrite: replace an earlier run in `path`.

    Raises:
        RunDirectoryError: the folder exists and is not empty, is in use, or cannot be made.
        ValueError: an interval below 1, or what `top_eigenpairs` refuses.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        probe_batch: Any,
        path: str | Path,
        *,
        eigen_interval: int = 100,
        k: int = 10,
        k_negative: int = 3,
        rtol: float = 1e-3,
        max_products: int | None = None,
        microbatch_size: int | None = None,
        hessian_dtype: torch.dtype | None = None,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        if eigen_interval < 1:
            msg = f"eigen_interval={eigen_interval}; it must be at least 1"
            raise ValueError(msg)
        settings = CurvatureSettings(
            k=k,
            k_negative=k_negative,
            rtol=rtol,
            max_products=max_products,
            microbatch_size=microbatch_size,
            dtype=hessian_dtype,
            seed=seed,
        )
        stored = dict(config or {}) | {"eigen_interval": eigen_interval, "seed": seed}
        blocks = model_blocks(model)
        n = sum(parameter.numel() for parameter in model.parameters())
        if n == 0:
            msg = "the model has no parameters, so there is no Hessian; pass the module that is trained"
            raise ValueError(msg)
        layout = RunLayout(
            n_layers=0,
            n_heads=0,
            d_head=0,
            n_top=k,
            n_negative=k_negative,
            seq_length=0,
            vocab_size=0,
            block_names=tuple(blocks),
        )
        directory = RunDirectory.create(path, stored, overwrite=overwrite)
        try:
            writer = ResultsWriter.create(
                directory.results_path,
                layout,
                attributes=run_attributes(stored, n_parameters=n, device=str(next(model.parameters()).device)),
                dataset_attributes=curvature_attributes(n, k, {}),
            )
            self._start(model, loss_fn, probe_batch, directory, writer, settings, eigen_interval, (), significance=0.01)
            directory.log_event("start", step=0)
        except BaseException:
            directory.close()
            raise

    @classmethod
    def over(
        cls,
        model: nn.Module,
        loss_fn: LossFunction,
        probe_batch: Any,
        directory: RunDirectory,
        writer: ResultsWriter,
        *,
        settings: CurvatureSettings,
        eigen_interval: int,
        measurements: Sequence[Measurement] = (),
        significance: float = 0.01,
    ) -> "SpectralMonitor":
        """Build a monitor over a run folder and a writer that exist already (the suite's own loop)."""
        monitor = cls.__new__(cls)
        monitor._start(
            model, loss_fn, probe_batch, directory, writer, settings, eigen_interval, measurements, significance
        )
        return monitor

    def _start(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        probe_batch: Any,
        directory: RunDirectory,
        writer: ResultsWriter,
        settings: CurvatureSettings,
        eigen_interval: int,
        measurements: Sequence[Measurement],
        significance: float,
    ) -> None:
        self._model, self._loss_fn, self._probe = model, loss_fn, probe_batch
        self.directory, self.writer = directory, writer
        self._settings = settings
        self._interval = eigen_interval
        self._measurements = tuple(measurements)
        self._significance = significance
        self._blocks = model_blocks(model)
        self._previous: Tensor | None = None
        self.spectrum: Spectrum | None = None
        self.seconds = 0.0
        self._started = time.perf_counter()
        self._closed = False
        writer.set_status("running")

    def step(self, step: int, **training: float | int) -> Row | None:
        """Call once per optimizer step, with the number of updates completed.

        Takes a snapshot when `step` is a multiple of `eigen_interval`, and returns it. Keyword arguments (`loss`,
        `learning_rate`, `gradient_norm`, `tokens_seen`) are stored in `/train`.

        Raises:
            ValueError: steps that do not increase.
            NonFiniteError: NaN or infinity in loss or spectrum; what was measured before is on disk.
        """
        if training:
            self.log(step, **training)
        return self.snapshot(step) if step % self._interval == 0 else None

    def log(self, step: int, **training: float | int) -> None:
        """Store one row of `/train`."""
        self.writer.append_train({"step": step, "seconds": time.perf_counter() - self._started, **training})

    def snapshot(self, step: int, extra: Callable[[Row], Row] | None = None) -> Row:
        """Measure now and store the row; on return it is on disk.

        Args:
            step: optimizer updates completed.
            extra: computes more of the row from what was measured (the online detector's statistics).
        """
        started = time.perf_counter()
        row, self.spectrum = measure_curvature(
            self._model,
            self._loss_fn,
            self._probe,
            step=step,
            settings=self._settings,
            previous=self._previous,
            blocks=self._blocks,
        )
        self._previous = self.spectrum.top.vectors
        for measurement in self._measurements:
            row |= measurement(self._model)
        if extra is not None:
            row |= extra(row)
        self.writer.append_snapshot({"step": step, **row})
        self.seconds += time.perf_counter() - started
        return row

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed monitor needs: the eigenvectors that the next snapshot is compared with."""
        return {"previous_eigenvectors": self._previous}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._previous = state["previous_eigenvectors"]

    def verdict(self) -> RunVerdict | None:
        """Judge what has been stored so far; None without a snapshot."""
        with open_run(self.directory.path) as run:
            return judge_run(run, significance=self._significance)

    def close(self, *, status: str = "finished", judge: bool = True) -> RunVerdict | None:
        """Write the final verdict to `transitions.json` and close the run; does nothing the second time.

        Args:
            status: `finished`, `interrupted` or `failed`.
            judge: whether a finished run gets a verdict.
        """
        if self._closed:
            return None
        self._closed = True
        verdict = None
        try:
            if status == "finished" and judge:
                verdict = self.verdict()
                if verdict is not None:
                    self.directory.write_json("transitions.json", verdict.to_dict())
            self.writer.set_status(status)
            if status != "interrupted":  # whoever interrupts a run knows its step and says so
                self.directory.log_event("finish" if status == "finished" else status, step=self.writer.last_steps[1])
        finally:
            self.writer.close()
            self.directory.close()
        return verdict

    def __enter__(self) -> "SpectralMonitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(status="finished" if error is None else "failed")


def judge_run(run: Run, *, significance: float = 0.01) -> RunVerdict | None:
    """Run the offline detector over every signal a run holds; None when it holds no snapshot."""
    if len(run.steps) == 0:
        return None
    signals = signal_values(run.read, run.datasets())
    return detect_run(
        run.steps,
        signals,
        {name: FAMILY_OF[name] for name in signals},
        significance=significance,
        seed=int(run.config.get("seed", 0)),
        log_signals=LOG_SIGNALS & set(signals),
    )


def model_blocks(model: nn.Module) -> dict[str, slice]:
    """Return `parameter_blocks` of a whole model, in the order of its named parameters."""
    slices, start = {}, 0
    for name, parameter in model.named_parameters():
        slices[name] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return parameter_blocks(slices, model)


def curvature_attributes(n: int, k: int, attributes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the dataset attributes that depend on the number of parameters: chance levels 1/n and k/n."""
    if k == 0:
        return {}
    return {
        "hessian/gradient_alignment": {"chance": 1.0 / n, **attributes},
        "hessian/gradient_alignment_total": {"chance": [min((i + 1) / n, 1.0) for i in range(k)], **attributes},
        "hessian/eigenvector_overlap": {"chance": min(k / n, 1.0), **attributes},
    }


def run_attributes(config: Mapping[str, Any], *, n_parameters: int, device: str) -> dict[str, Any]:
    """Return the facts about a run that go to the root of its results file."""
    return {
        "config_json": json.dumps(dict(config), sort_keys=True),
        "package_version": __version__,
        "git_revision": _git_revision(),
        "python_version": platform.python_version(),
        "torch_version": str(torch.__version__),
        "numpy_version": np.__version__,
        "h5py_version": h5py.__version__,
        "n_parameters": n_parameters,
        "n_threads": torch.get_num_threads(),
        "device": device,
    }


def _git_revision() -> str:
    """Return the commit of the source tree; "unknown" where it is no git checkout or git is missing."""
    folder = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"
