"""Exporting a run: which datasets, where to, and that a reader never meets half of it."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from spectral.errors import ConfigError, RunDirectoryError
from spectral.storage.atomic import fsync_folder, temporary_beside
from spectral.storage.export.formats import require_pyarrow, write_csv, write_netcdf, write_parquet, write_pickle
from spectral.storage.export.tables import PROBES
from spectral.storage.reader import Run, open_run
from spectral.storage.run_directory import CONFIG_NAME, RESULTS_NAME
from spectral.storage.schema import group_axes

_Writer = Callable[[Run, Sequence[str], Path], None]
_FOLDERS: dict[str, _Writer] = {"csv": write_csv, "parquet": write_parquet}
_FILES: dict[str, tuple[str, _Writer]] = {"netcdf": (".nc", write_netcdf), "pkl": (".pkl", write_pickle)}
FORMATS = ("csv", "parquet", "netcdf", "pkl")


def export_run(
    run_path: str | os.PathLike[str],
    form: str,
    *,
    output: str | os.PathLike[str] | None = None,
    select: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write what a run measured in the format of another program.

    Args:
        run_path: a run folder, or its results file; of a live or crashed run the committed rows are written.
        form: `csv` and `parquet` give a folder of tidy tables, `netcdf` and `pkl` one file.
        output: folder or file to write; None takes `<run>/export/<form>` or `<run>/export/<run>.nc`, `.pkl`.
        select: groups and datasets, such as `hessian` or `circuits/induction_score`; empty = everything.
        overwrite: replace an earlier export there.

    Returns:
        The folder or file. It appears whole or not at all.

    Raises:
        ConfigError: an unknown format, group or dataset, or a missing package.
        RunDirectoryError: no run, or a place that exists already, holds something else, or cannot be written.
        ResultsFileError: a damaged results file.
    """
    if form not in FORMATS:
        raise ConfigError([f"--format {form!r} is unknown; use one of {', '.join(FORMATS)}"])
    if form == "parquet":
        require_pyarrow()  # before anything is read
    run = open_run(run_path)
    names = _chosen(run, select)
    suffix = "" if form in _FOLDERS else _FILES[form][0]
    default = run.path / "export" / (form if form in _FOLDERS else f"{run.path.resolve().name}{suffix}")
    target = default if output is None else Path(output)
    _check_place(target, suffix, overwrite=overwrite)
    writer = _FOLDERS[form] if form in _FOLDERS else _FILES[form][1]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(target)
        try:
            if form in _FOLDERS:
                temporary.mkdir()
            writer(run, names, temporary)
            _replace(target, temporary)
        except BaseException:
            _remove(temporary)
            raise
    except OSError as error:
        msg = f"{target} cannot be written ({error.strerror or error}); choose another --output or free some space"
        raise RunDirectoryError(msg) from error
    return target


def _chosen(run: Run, select: Sequence[str]) -> list[str]:
    """Return the datasets that are meant, without the axes, which every format writes anyway."""
    groups = [*group_axes(run.layout), PROBES]
    axes = {f"{group}/{axis.name}" for group, found in group_axes(run.layout).items() for axis in found}
    known = [name for name in run.datasets() if name not in axes]
    for word in select:
        if word not in groups and word not in known:
            raise ConfigError([f"--groups {word!r} is no group or dataset of {run.path}; groups: {', '.join(groups)}"])
    return [name for name in known if not select or name in select or name.split("/")[0] in select]


def _check_place(target: Path, suffix: str, *, overwrite: bool) -> None:
    """Refuse to replace anything that is no earlier export: a mistyped path must not cost someone's files."""
    if not target.exists():
        return
    if not overwrite:
        msg = f"{target} exists already; add --overwrite to replace it or choose another --output"
        raise RunDirectoryError(msg)
    if suffix:
        ours = target.is_file() and target.suffix == suffix
    else:
        kinds = {".csv", ".parquet", ".json"}
        entries = list(target.iterdir()) if target.is_dir() else []
        ours = target.is_dir() and all(entry.is_file() and entry.suffix in kinds for entry in entries)
        ours = ours and not (target / CONFIG_NAME).exists() and not (target / RESULTS_NAME).exists()
    if not ours:
        msg = f"{target} is no earlier export of this format and is not replaced; choose another --output"
        raise RunDirectoryError(msg)


def _replace(target: Path, temporary: Path) -> None:
    for file in sorted(temporary.iterdir()) if temporary.is_dir() else [temporary]:
        with open(file, "rb") as written:
            os.fsync(written.fileno())
    if target.is_dir():  # a folder cannot be renamed over one that is not empty
        old = temporary_beside(target)
        os.replace(target, old)
        os.replace(temporary, target)
        shutil.rmtree(old)
    else:
        os.replace(temporary, target)
    fsync_folder(target.parent)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
