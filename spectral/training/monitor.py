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
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from spectral.curvature import Spectrum
from spectral.curvature.backends import Backend
from spectral.curvature.objective import LossFunction
from spectral.detection import RunVerdict
from spectral.storage import ResultsWriter, RunDirectory, RunLayout, open_run
from spectral.training.curvature_row import CurvatureMeter, Notice, curvature_attributes, curvature_layout
from spectral.training.judge import judge_run, write_verdict
from spectral.training.row import Row
from spectral.training.spectrum import CurvatureSettings, Subject
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
        audit_interval: solve every this many snapshots a second time from another start and compare, also at the first
            one and when the eigenvalues jump; 0 = never.
        eigen_backend: `spectral`, or for comparison `scipy` or `pyhessian`, which certify nothing.
        compile: compile the Hessian product once, 20 to 60 s, and use it at every snapshot.
        optimizer: of your loop; needed for `track_preconditioned`, and gives the stability threshold its learning rate.
        track_preconditioned: top eigenvalues of the Hessian preconditioned by Adam.
        output_fn, criterion: (model, batch) -> outputs and (outputs, batch) -> mean loss; needed for `track_ggn`.
        track_ggn: top eigenvalues of the Gauss-Newton matrix.
        density_steps, density_probes: Lanczos steps and random starts for the density of all eigenvalues.
        trace_products: products for a better trace and the Frobenius norm; 0 = the free estimate of the trace.
        block_spectra: names of parameters or modules whose own diagonal block gets a spectrum.
        block_top_k: eigenvalues of each of these blocks.
        config: settings to store beside the results, JSON-ready.
        overwrite: replace an earlier run in `path`.

    Raises:
        RunDirectoryError: the folder exists and is not empty, is in use, or cannot be made.
        ValueError: an interval below 1, something missing that another argument needs, an unknown block, or what
            `top_eigenpairs` refuses.
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
        audit_interval: int = 10,
        eigen_backend: Backend = "spectral",
        compile: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
        track_preconditioned: int = 0,
        output_fn: Callable[[nn.Module, Any], Tensor] | None = None,
        criterion: Callable[[Tensor, Any], Tensor] | None = None,
        track_ggn: int = 0,
        density_steps: int = 0,
        density_probes: int = 1,
        trace_products: int = 0,
        block_spectra: Sequence[str] = (),
        block_top_k: int = 3,
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
            audit_interval=audit_interval,
            backend=eigen_backend,
            compile=compile,
            n_preconditioned=track_preconditioned,
            n_ggn=track_ggn,
            density_steps=density_steps,
            density_probes=density_probes,
            trace_products=trace_products,
            block_spectra=tuple(block_spectra),
            block_top_k=block_top_k,
        )
        subject = Subject(
            model=model,
            loss_fn=loss_fn,
            batch=probe_batch,
            optimizer=optimizer,
            output_fn=output_fn,
            criterion=criterion,
        )
        stored = dict(config or {}) | {"eigen_interval": eigen_interval, "seed": seed}
        n = sum(parameter.numel() for parameter in model.parameters())
        if n == 0:
            msg = "the model has no parameters, so there is no Hessian; pass the module that is trained"
            raise ValueError(msg)
        meter = CurvatureMeter(subject, settings)
        layout = RunLayout(n_layers=0, n_heads=0, d_head=0, seq_length=0, vocab_size=0, **curvature_layout(meter))
        directory = RunDirectory.create(path, stored, overwrite=overwrite)
        try:
            writer = ResultsWriter.create(
                directory.results_path,
                layout,
                attributes=run_attributes(stored, n_parameters=n, device=str(next(model.parameters()).device)),
                dataset_attributes=curvature_attributes(meter, {}),
            )
            self._start(meter, directory, writer, eigen_interval, (), significance=0.01, tell=_warn)
            directory.log_event("start", step=0)
        except BaseException:
            directory.close()
            raise

    @classmethod
    def over(
        cls,
        meter: CurvatureMeter,
        directory: RunDirectory,
        writer: ResultsWriter,
        *,
        eigen_interval: int,
        measurements: Sequence[Measurement] = (),
        significance: float = 0.01,
        tell: Callable[[Notice], None] | None = None,
    ) -> "SpectralMonitor":
        """Build a monitor over a run folder and a writer that exist already (the suite's own loop).

        Args:
            tell: takes what a person should see, such as a disagreement of two solves.
        """
        monitor = cls.__new__(cls)
        monitor._start(meter, directory, writer, eigen_interval, measurements, significance, tell)
        return monitor

    def _start(
        self,
        meter: CurvatureMeter,
        directory: RunDirectory,
        writer: ResultsWriter,
        eigen_interval: int,
        measurements: Sequence[Measurement],
        significance: float,
        tell: Callable[[Notice], None] | None,
    ) -> None:
        self._meter = meter
        self.directory, self.writer = directory, writer
        self._interval = eigen_interval
        self._measurements = tuple(measurements)
        self._significance = significance
        self._tell = tell
        self.seconds = 0.0
        self._started = time.perf_counter()
        self._closed = False
        writer.set_status("running")

    @property
    def spectrum(self) -> Spectrum | None:
        """The eigenpairs of the last snapshot, with vectors; None before the first."""
        return self._meter.spectrum

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

    def snapshot(self, step: int, extra: Callable[[Row], Row] | None = None, *, last: bool = False) -> Row:
        """Measure now and store the row; on return it is on disk.

        Args:
            step: optimizer updates completed.
            extra: computes more of the row from what was measured (the online detector's statistics).
            last: whether this is known to be the last snapshot; its eigenvalues are then audited.
        """
        started = time.perf_counter()
        row = self._meter.measure(step, last=last)
        for measurement in self._measurements:
            row |= measurement(self._meter.subject.model)
        if extra is not None:
            row |= extra(row)
        self.writer.append_snapshot({"step": step, **row})
        for notice in self._meter.notices:
            self.directory.log_event(notice.kind, **notice.fields)
            if self._tell is not None:
                self._tell(notice)
        self.seconds += time.perf_counter() - started
        return row

    def causes(self, step: int, measurement: Measurement) -> None:
        """Measure causes now and store the row of `/causal`; on return it is on disk.

        Args:
            step: optimizer updates completed.
            measurement: returns the row.
        """
        started = time.perf_counter()
        self.writer.append_causal({"step": step, **measurement(self._meter.subject.model)})
        self.seconds += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed monitor needs to measure the same rows."""
        return self._meter.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._meter.load_state_dict(state)

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
                verdict = write_verdict(self.directory, significance=self._significance)
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


def _warn(notice: Notice) -> None:
    """Tell a user who has no progress display."""
    if not notice.routine:
        warnings.warn(notice.text, RuntimeWarning, stacklevel=2)


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
