"""Reading a run: finished, still running, or killed."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import h5py
import numpy as np

from spectral.errors import ResultsFileError, RunDirectoryError
from spectral.storage.hdf5 import (
    LONG_ATTRIBUTES,
    check_allocated,
    check_schema,
    check_superblock,
    config_of,
    get_attributes,
    get_root_attributes,
    open_reader,
    reason,
)
from spectral.storage.layout import RunLayout
from spectral.storage.locks import is_locked
from spectral.storage.rows import checked_rows, committed_rows
from spectral.storage.run_directory import (
    CONFIG_NAME,
    LOCK_NAME,
    RESULTS_NAME,
    TRANSITIONS_NAME,
    read_json,
    require_run_folder,
)
from spectral.storage.schema import (
    COUNTED_GROUPS,
    SNAPSHOT_GROUPS,
    STATUS_CODES,
    counter_of,
    dataset_table,
    group_axes,
)

if TYPE_CHECKING:
    import pandas
    import xarray

T = TypeVar("T")

# Failures of a live file come in bursts: immediate retries fail alike.
_PAUSES = (0.01, 0.05, 0.2, 0.5, 0.0)
_LARGEST_FLATTENED_ROW = 4096
# HDF5 gives wrong data when one live file is opened several times at once in a process.
_ONE_AT_A_TIME = threading.RLock()


def open_run(path: str | os.PathLike[str]) -> "Run":
    """Open a run for reading, whether it is finished, live or crashed.

    Args:
        path: a run folder, or its results file.

    Raises:
        RunDirectoryError: no such path, or a folder that is no run or has no results yet.
        ResultsFileError: a results file that is empty, truncated, foreign, or of a newer schema.
    """
    place = Path(path)
    if not place.exists():
        msg = f"{place} does not exist; check the path"
        raise RunDirectoryError(msg)
    if place.is_dir():
        require_run_folder(place)
        place = place / RESULTS_NAME
        if not place.exists():
            msg = f"{place.parent} has no {RESULTS_NAME} yet; wait for the first measurement or start the run again"
            raise RunDirectoryError(msg)
    return Run(place)


class Run:
    """A read-only view of a run, cut to the rows that were committed at the last `refresh`.

    No file stays open between calls, so a view never hinders the writer and needs no care in long sessions.
    """

    def __init__(self, results_path: Path) -> None:
        self.results_path = results_path
        self.path = results_path.parent
        self._inode = -1
        self.refresh()

    def refresh(self) -> None:
        """Look again at how many rows there are."""

        def look(file: h5py.File) -> None:
            check_schema(file, self.results_path)
            if not self._closed:
                check_allocated(file, self.results_path)
            self._root = get_root_attributes(file)
            self._layout = RunLayout.from_json(self._root["layout_json"])
            self._table = {spec.path: spec for spec in dataset_table(self._layout)}
            specs = tuple(self._table.values())
            self._rows = committed_rows(file, specs)
            if not self._closed:
                self._rows = checked_rows(file, specs, self._rows)
            self._code = int(file["status"][0])
            self._steps = [self._values(file, f"{groups[0]}/step") for groups in COUNTED_GROUPS.values()]
            self._names = _dataset_names(file)

        self._closed = check_superblock(self.results_path)
        self._attempt(look, recheck=False)
        for steps in self._steps:
            if len(steps) and (np.any(np.diff(steps) <= 0) or steps[0] < 0):
                msg = f"{self.results_path} is damaged: its steps do not increase; restore a copy or start a new run"
                raise ResultsFileError(msg)

    @property
    def layout(self) -> RunLayout:
        """Sizes and labels of the run."""
        return self._layout

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration: `config.json`, or the copy inside the results file."""
        return read_json(self.path / CONFIG_NAME) or config_of(self._root)

    @property
    def root_attributes(self) -> dict[str, Any]:
        """Facts about the run: schema, versions, device, revision."""
        return dict(self._root)

    @property
    def steps(self) -> np.ndarray:
        """[snapshot] int64, optimizer steps of the snapshots, strictly increasing."""
        return self.steps_of("behaviour")

    @property
    def train_steps(self) -> np.ndarray:
        """[train row] int64, optimizer steps of the rows of `/train`, strictly increasing."""
        return self.steps_of("train")

    def steps_of(self, name: str) -> np.ndarray:
        """Return the optimizer steps of the rows of a dataset or group, int64, strictly increasing.

        `/causal` has steps of its own: those of the checkpoints, unless the run says otherwise.

        Args:
            name: a group, or `group/name`.

        Raises:
            KeyError: no such group, or one without steps.
        """
        group = name.split("/")[0]
        if group not in group_axes(self._layout):
            msg = f"{group!r} has no steps; known: {', '.join(group_axes(self._layout))}"
            raise KeyError(msg)
        return np.array(self._steps[counter_of(group)])

    @property
    def transitions(self) -> dict[str, Any]:
        """The detector's verdicts from `transitions.json`; empty when there are none yet."""
        return read_json(self.path / TRANSITIONS_NAME)

    @property
    def status(self) -> str:
        """`running`, `finished`, `failed`, or `died`: it calls itself running, but no process holds it."""
        names = {code: name for name, code in STATUS_CODES.items()}
        status = names.get(self._code, "failed")
        if status == "running" and not (is_locked(self.path / LOCK_NAME) or is_locked(self.results_path)):
            return "died"
        return status

    def datasets(self) -> list[str]:
        """Return the names that `read` takes."""
        return [*self._table, *sorted(self._names - set(self._table))]

    def dims(self, name: str) -> tuple[str, ...]:
        """Return the axis names of a dataset.

        Raises:
            KeyError: no such dataset.
        """
        self._require(name)
        if name in self._table:
            return self._table[name].dims
        return self._attempt(lambda file: tuple(d.keys()[0] if len(d) else "" for d in file[name].dims))

    def attributes(self, name: str) -> dict[str, Any]:
        """Return unit, meaning, chance level and so on of a dataset.

        Raises:
            KeyError: no such dataset.
        """
        self._require(name)
        if name not in self._names:
            return dict(self._table[name].attributes)
        return self._attempt(lambda file: get_attributes(file[name]))

    def read(self, name: str, *, rows: Sequence[int] | None = None) -> np.ndarray:
        """Return a dataset, one row per committed step; NaN or -1 where nothing was measured.

        Args:
            name: `group/name`, one of `datasets()`.
            rows: only these rows, ascending; what is not asked for is not read. None takes all of them.

        Raises:
            KeyError: no such dataset.
            ResultsFileError: the stored bytes are damaged.
        """
        self._require(name)
        return self._attempt(lambda file: self._values(file, name, rows))

    def probe(self, name: str) -> np.ndarray:
        """Return a stored probe array, integers or bools as they were given.

        Raises:
            KeyError: no such probe.
        """
        path = f"probes/{name}"
        self._require(path)

        def load(file: h5py.File) -> np.ndarray:
            values = np.asarray(file[path][()])
            return values.astype(bool) if get_attributes(file[path]).get("dtype") == "bool" else values

        return self._attempt(load)

    @overload
    def to_xarray(self, group: str) -> "xarray.Dataset": ...
    @overload
    def to_xarray(self, group: None = None) -> "xarray.DataTree": ...
    def to_xarray(self, group: str | None = None) -> "xarray.Dataset | xarray.DataTree":
        """Return one group as a labelled Dataset, or all groups as a DataTree, in memory.

        Args:
            group: `train`, `behaviour`, `hessian`, `circuits`, `detector` or `causal`; None for all of them.

        Raises:
            KeyError: no such group.
        """
        import xarray

        groups = list(group_axes(self._layout))
        if group is None:
            return xarray.DataTree.from_dict({f"/{name}": self.to_xarray(name) for name in groups})
        if group not in groups:
            msg = f"{group!r} is no group; known: {', '.join(groups)}"
            raise KeyError(msg)
        coordinates: dict[str, Any] = {}
        for axis in group_axes(self._layout)[group]:
            if axis.values is not None:
                labels = np.char.decode(axis.values, "utf-8") if axis.values.dtype.kind == "S" else axis.values
                coordinates[axis.name] = (axis.name, labels, {"long_name": axis.long_name})
        variables: dict[str, Any] = {}

        def load(file: h5py.File) -> None:
            for spec in self._table.values():
                if spec.group == group:
                    found = get_attributes(file[spec.path]) if spec.path in file else dict(spec.attributes)
                    entry = (spec.dims, self._values(file, spec.path), found)
                    (coordinates if spec.name == spec.dims[0] else variables)[spec.name] = entry

        self._attempt(load)
        return xarray.Dataset(variables, coords=coordinates)

    def to_dataframe(self, group: str | None = None) -> "pandas.DataFrame":
        """Return one row per snapshot (index `step`) and one column per number.

        Columns are `group/name` for scalars and `group/name[i,j]` for arrays, with the labels of the axes inside the
        brackets. Datasets of more than 4096 numbers per snapshot are left out.

        Args:
            group: one group only; `train` and `causal` have rows of their own. None takes all snapshot groups.

        Raises:
            KeyError: no such group.
        """
        import pandas

        columns: dict[str, np.ndarray] = {}
        for name in SNAPSHOT_GROUPS if group is None else (group,):
            dataset = self.to_xarray(name)
            for variable in dataset.data_vars.values():
                if variable.name == "step":
                    continue
                labels = [dataset[dim].values.tolist() for dim in variable.dims[1:]]
                shape = variable.shape[1:]
                if int(np.prod(shape)) > _LARGEST_FLATTENED_ROW:
                    continue
                values = variable.values.reshape(len(variable), -1)
                for flat, index in enumerate(np.ndindex(*shape)):
                    inside = ",".join(str(axis[i]) for axis, i in zip(labels, index, strict=True))
                    columns[f"{name}/{variable.name}" + (f"[{inside}]" if inside else "")] = values[:, flat]
        steps = self.steps if group is None else self.steps_of(group)
        return pandas.DataFrame(columns, index=pandas.Index(steps, name="step"))

    def close(self) -> None:
        """Nothing is held open; there so that a run can be used like a file."""

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require(self, name: str) -> None:
        if name not in self._table and name not in self._names:
            group = name.split("/")[0]
            near = [n for n in self.datasets() if n.startswith(f"{group}/")] or sorted(group_axes(self._layout))
            msg = f"{name!r} is no dataset of {self.results_path}; known: {', '.join(near)}"
            raise KeyError(msg)

    def _values(self, file: h5py.File, name: str, rows: Sequence[int] | None = None) -> np.ndarray:
        spec = self._table.get(name)
        if spec is None:
            return np.asarray(file[name][()] if rows is None else file[name][list(rows)])
        n = self._rows[counter_of(spec.group)]
        if name not in file:
            return np.full((n if rows is None else len(rows), *spec.row_shape), spec.fill_value, dtype=spec.dtype)
        return np.asarray(file[name][:n] if rows is None else file[name][[row for row in rows if row < n]])

    def _attempt(self, look: Callable[[h5py.File], T], *, recheck: bool = True) -> T:
        """Run `look` on the opened file, again after a pause when a live writer got in the way."""
        failure: BaseException = OSError("unknown")
        with _ONE_AT_A_TIME:
            for pause in _PAUSES:
                try:
                    inode = self.results_path.stat().st_ino
                    if recheck and inode != self._inode:
                        # A resumed run replaced the file, perhaps by a shorter one.
                        self.refresh()
                    with open_reader(self.results_path) as file:
                        found = look(file)
                    self._inode = inode
                    return found
                except (OSError, RuntimeError, KeyError) as error:
                    failure = error
                    if self._closed and recheck and not isinstance(error, FileNotFoundError):
                        # Nobody is writing, so waiting cannot help; yet the file may have been reopened meanwhile.
                        with contextlib.suppress(ResultsFileError):
                            if check_superblock(self.results_path):
                                break
                time.sleep(pause)
        msg = f"{self.results_path} cannot be read ({reason(failure)}); restore a copy or resume the run"
        raise ResultsFileError(msg) from failure


def _dataset_names(file: h5py.File) -> set[str]:
    names: set[str] = set()
    for group, node in file.items():
        if isinstance(node, h5py.Group) and group != LONG_ATTRIBUTES:
            names |= {
                f"{group}/{name}"
                for name, dataset in node.items()
                if isinstance(dataset, h5py.Dataset) and not (group == "probes" and dataset.is_scale)
            }
    return names
