"""Dense snapshots of a window of a finished run: replay it bit for bit and put the new rows among the stored ones.

    spectral densify runs/demo --around_transition

A transition that lasts a few snapshots cannot be resolved by them. Weights and batches are functions of the checkpoint
and of the step, so the window can be walked through again from the newest checkpoint before it, or from the
initialisation where there is none, with a snapshot every few steps. At stored steps on the way the replayed model has
to give the stored behaviour bit for bit; only then is anything written. The step axis of the run is irregular
afterwards; its detector verdict is computed again on it.

What an inserted row leaves missing: the columns that relate a snapshot to the run's own snapshot before it
(identities and overlaps of eigenvectors, crossings, audits) and the online detector's statistics.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spectral.config import RunConfig
from spectral.data import DataSource
from spectral.detection import RunVerdict
from spectral.errors import ConfigError, RunDirectoryError
from spectral.storage import RunDirectory, insert_snapshots, open_run
from spectral.training.curvature_row import CurvatureMeter
from spectral.training.dense_window import dense_interval
from spectral.training.judge import write_verdict
from spectral.training.measure import ProbeMeter
from spectral.training.progress import Progress
from spectral.training.restore import (
    Origin,
    Replica,
    environment,
    environment_differences,
    find_origin,
    read_run_config,
    run_conditions,
)
from spectral.training.row import Row
from spectral.training.setup import curvature_settings, curvature_subject, make_deterministic, select_device

TO_THE_PREVIOUS = ("track_id", "track_overlap", "crossings", "subspace_overlap", "eigenvector_overlap", "audit")
COMPARED = ("behaviour/loss_by_position", "behaviour/induction_loss")


@dataclass(frozen=True, kw_only=True)
class Densified:
    """What was added to a run.

    Attributes:
        run: its folder.
        start, end: first and last step of the window.
        interval: steps between snapshots in the window.
        steps: of the rows that were added; those stored already are not among them.
        origin: where the replay began, in words.
        compared: stored steps at which the replayed model gave the stored behaviour bit for bit.
        n_products: Hessian-vector products spent.
        verdict: of the detector, on the denser axis.
    """

    run: Path
    start: int
    end: int
    interval: int
    steps: tuple[int, ...]
    origin: str
    compared: tuple[int, ...]
    n_products: int
    verdict: RunVerdict | None


def densify(
    run_path: str | os.PathLike[str],
    *,
    start: int | None = None,
    end: int | None = None,
    interval: int = 0,
    progress: Callable[[int], Progress] | None = None,
) -> Densified:
    """Measure a window of a finished run more densely, store the rows and judge the run again.

    Args:
        run_path: folder of a finished run of `train.py`.
        start, end: the window in steps; both None = around the detected transition, its length again on either side
            and two snapshots more.
        interval: steps between snapshots in the window; 0 = a tenth of the run's.
        progress: makes the display from the number of updates to do; None = silent.

    Raises:
        ConfigError: an argument that cannot be, or no transition to go around.
        RunDirectoryError: no finished run there, or one that this machine does not reproduce bit for bit.
        CheckpointError: a checkpoint of another run.
        ResultsFileError: the file is damaged or could not be written; it is then as it was.
    """
    path = Path(run_path)
    config = read_run_config(path)
    if not config.eigen_interval:
        raise ConfigError([f"{path} was made with --eigen_interval 0, so it has no snapshots to add to"])
    with RunDirectory.open(path, for_writing=True) as directory:
        with open_run(path) as run:
            if run.status != "finished":
                msg = f"{path} is {run.status}; finish it first with: python train.py --resume {path}"
                raise RunDirectoryError(msg)
            stored = {int(step) for step in run.steps}
            kept = {name: dict(zip(run.steps.tolist(), run.read(name), strict=True)) for name in COMPARED}
            start, end = _window(path, config, run.transitions, max(stored), start, end)
        interval = interval or dense_interval(config)
        wanted = [s for s in range(start, end + 1) if (s % interval == 0 or s in (start, end)) and s not in stored]
        _check(path, interval, wanted, start, end)
        place = select_device(config.device)
        make_deterministic(place)
        source = DataSource(config, place)
        origin = find_origin(path, config, start, from_start=True, map_location=place)
        last = max(wanted)
        display = None if progress is None else progress(last - origin.step)
        try:
            with run_conditions(config, origin, place):
                _require_same_conditions(path, origin, environment_differences(origin.environment, environment(place)))
                rows, compared = _replay(path, config, source, origin, wanted, kept, display)
        finally:
            if display is not None:
                display.close()
        insert_snapshots(directory.results_path, rows)
        directory.log_event("densified", start=start, end=end, interval=interval, rows=len(rows), origin=origin.step)
        verdict = write_verdict(directory, significance=config.significance) if config.detect else None
    return Densified(
        run=path,
        start=start,
        end=end,
        interval=interval,
        steps=tuple(wanted),
        origin=f"checkpoint {origin.checkpoint}" if origin.checkpoint else "the initialisation",
        compared=tuple(compared),
        n_products=sum(int(row["hessian/n_products"]) for row in rows),
        verdict=verdict,
    )


def _window(
    path: Path, config: RunConfig, transitions: dict[str, object] | None, last: int, start: int | None, end: int | None
) -> tuple[int, int]:
    """Return the window asked for, or the one around the transition."""
    if (start is None) != (end is None):
        raise ConfigError(["--from_step and --to_step belong together; give both, or --around_transition"])
    if start is not None and end is not None:
        if not 0 <= start <= end <= last:
            raise ConfigError(
                [f"--from_step {start} --to_step {end}; give 0 <= from <= to <= {last}, the last step of {path}"]
            )
        return start, end
    consensus = (transitions or {}).get("consensus")
    if not isinstance(consensus, dict) or not consensus["detected"]:
        raise ConfigError([f"{path} has no detected transition; name the window with --from_step and --to_step"])
    first, final = float(consensus["onset"]), float(consensus["end"])
    margin = (final - first) + 2 * config.eigen_interval
    return max(0, math.floor(first - margin)), min(last, math.ceil(final + margin))


def _check(path: Path, interval: int, wanted: list[int], start: int, end: int) -> None:
    if interval < 1:
        raise ConfigError([f"--interval {interval}; it must be at least 1"])
    if not wanted:
        raise ConfigError(
            [f"{path} holds every snapshot from step {start} to {end} at interval {interval}; lower --interval"]
        )


def _require_same_conditions(path: Path, origin: Origin, differences: list[str]) -> None:
    if origin.environment and differences:
        msg = (
            f"{path} was made under other conditions ({', '.join(differences)}), so a replay would not give its "
            "weights; do it on the machine and with the versions of the run"
        )
        raise RunDirectoryError(msg)


def _replay(
    path: Path,
    config: RunConfig,
    source: DataSource,
    origin: Origin,
    wanted: list[int],
    stored: dict[str, dict[int, np.ndarray]],
    display: Progress | None,
) -> tuple[list[Row], list[int]]:
    """Walk through the window; return the new rows, and the stored steps that were compared."""
    replica = Replica.at(origin, config, source)
    n = sum(parameter.numel() for parameter in replica.model.parameters())
    settings = dataclasses.replace(curvature_settings(config, n), audit_interval=0)
    curvature = CurvatureMeter(curvature_subject(config, replica.model, replica.optimizer, source), settings)
    probes = ProbeMeter(config, source)
    rows: list[Row] = []
    compared: list[int] = []
    pending = set(wanted)
    if display is not None:
        display.start(0)
        for reason in origin.skipped:
            display.message(f"skipped a damaged checkpoint: {reason}")
    while True:
        step = replica.completed
        if step in stored[COMPARED[0]]:
            _compare(path, step, probes.measure(replica.model), stored)
            compared.append(step)
        if step in pending:
            row = {
                name: value
                for name, value in curvature.measure(step).items()
                if name.removeprefix("hessian/") not in TO_THE_PREVIOUS
            }
            rows.append({"step": step, **row, **probes.measure(replica.model)})
            pending.discard(step)
        if not pending:
            return rows, compared
        loss = replica.replay(path)
        if display is not None:
            display.update(replica.completed - origin.step, loss=loss)


def _compare(path: Path, step: int, row: Row, stored: dict[str, dict[int, np.ndarray]]) -> None:
    """Require the stored behaviour bit for bit."""
    for name in COMPARED:
        kept = stored[name][step]
        if not np.array_equal(np.asarray(row[name]).astype(kept.dtype), kept, equal_nan=True):
            msg = (
                f"{path}: the replayed model is not the run's at step {step} ({name} differs); nothing was written. "
                "Replay it on the machine that made it, with the same versions and number of threads"
            )
            raise RunDirectoryError(msg)
