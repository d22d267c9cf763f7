"""`results.h5` of an experiment: one netCDF file with named dimensions, read by xarray and h5py alike.

The file is small (a row holds some dozens of numbers), so every commit replaces it whole: a reader meets the state
of one commit or of the next, and a writer that dies leaves the last one.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spectral.errors import ResultsFileError, RunDirectoryError
from spectral.gih.config import GIHConfig
from spectral.gih.generalisation import GeneralisationRow
from spectral.gih.information import SubsetInformation
from spectral.gih.references import Reference, least_double_softmax
from spectral.gih.runner import Measurement
from spectral.storage.atomic import fsync_folder, temporary_beside
from spectral.storage.locks import is_locked
from spectral.storage.run_directory import (
    CONFIG_NAME,
    LOCK_NAME,
    RESULTS_NAME,
    TRANSITIONS_NAME,
    read_json,
    require_run_folder,
)
from spectral.storage.schema import GIH_SCHEMA_NAME
from spectral.version import __version__

if TYPE_CHECKING:
    import pandas
    import xarray

SCHEMA_VERSION = "1.0"
CURVATURE = "nats / parameter_unit^2"


@dataclass(frozen=True)
class Variable:
    """One dataset over the rows: axes after `row`, unit, meaning."""

    dims: tuple[str, ...]
    units: str
    long_name: str
    definition: str = ""


ROWS = {
    "stage": Variable((), "1", "Stage, counted from 0"),
    "time": Variable((), "epoch", "Epochs of the descent, or time of the flow, since the stage began"),
    "flow_time": Variable((), "1", "Learning rate times epochs, or time of the flow, since the stage began"),
    "w": Variable(("head", "place"), "1", "Relative-position weight", "gih/w/v1"),
    "c": Variable(("subset",), "1", "Coefficient of a subset of heads", "gih/c/v1"),
    "a": Variable((), "1", "Weight of layer 2", "gih/a/v1"),
    "shares": Variable(("subset",), "1", "p_S = c_S^2 / sum c^2", "gih/shares/v1"),
    "sum_squares": Variable((), "1", "sum c^2", "gih/sum_squares/v1"),
    "own_offset": Variable(("head",), "1", "Softmax share of a head's weights at its target offset", "gih/own/v1"),
    "forces": Variable(("subset",), "nats", "J_S = -(1/a) dL/dp_S", "gih/forces/v1"),
    "train_double_softmax": Variable((), "nats", "Double-softmax loss, training chains", "gih/double_softmax/v1"),
    "train_nll": Variable((), "nats", "Cross-entropy, training chains", "gih/nll/v1"),
    "validation_double_softmax": Variable((), "nats", "Double-softmax loss, held-out chains", "gih/double_softmax/v1"),
    "validation_nll": Variable((), "nats", "Cross-entropy, held-out chains", "gih/nll/v1"),
    "accuracy": Variable((), "1", "Share of held-out chains whose target is the most probable token", "gih/hits/v1"),
    "eigenvalues": Variable(("rank",), CURVATURE, "Eigenvalues of the Hessian of the training loss", "gih/hessian/v1"),
}
_GENERALISATION = {
    "double_softmax": "double-softmax loss of the model",
    "nll": "cross-entropy of the model",
    "accuracy": "accuracy of the model",
    "double_softmax_se": "standard error of the double-softmax loss",
    "oracle_double_softmax": "double-softmax loss of the true probabilities",
    "oracle_nll": "cross-entropy of the true probabilities",
    "bayes_double_softmax": "double-softmax loss of the Bayes observer",
    "bayes_nll": "cross-entropy of the Bayes observer",
    "excess": "double-softmax loss above that of the true probabilities",
    "excess_se": "its standard error, paired by chain",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Extras:
    """What stands beside the rows: observers, information and generalisation, as far as they are there."""

    references: Sequence[Reference] = ()
    information: SubsetInformation | None = None
    generalisation: Sequence[GeneralisationRow] = ()


def build_dataset(config: GIHConfig, rows: Sequence[Measurement], extras: Extras, *, status: str) -> "xarray.Dataset":
    """Return everything known of a run as one labelled dataset; `eigenvalues` are NaN in rows without a spectrum."""
    import xarray

    model, stages = config.build_model(), config.stages()
    offsets = model.offsets.numpy()
    target = offsets == np.arange(1, model.n_heads + 1)[:, None]
    n_eigenvalues = max((len(row.eigenvalues) for row in rows if row.eigenvalues is not None), default=0)
    columns = {name: [_value(row, name, n_eigenvalues) for row in rows] for name in ROWS if name != "flow_time"}
    rate = [stage.lr if not stage.flow_time else 1.0 for stage in stages]
    plain = config.optim == "sgd" and not config.batch_size  # other updates pass no flow time
    columns["flow_time"] = [row.time * rate[row.stage] if plain else math.nan for row in rows]
    sizes = {"head": model.n_heads, "place": offsets.shape[1], "subset": len(model.subsets), "rank": n_eigenvalues}
    yardsticks = _yardsticks(config, extras.references)
    variables: dict[str, Any] = {}
    for name, variable in ROWS.items():
        shape = (len(rows), *(sizes[dim] for dim in variable.dims))
        values = np.asarray(columns[name], dtype=np.int64 if name == "stage" else np.float64).reshape(shape)
        attributes = {"units": variable.units, "long_name": variable.long_name} | yardsticks.get(name, {})
        if variable.definition:
            attributes["definition"] = variable.definition
        variables[name] = (("row", *variable.dims), values, attributes)
    coordinates: dict[str, Any] = {
        "head": ("head", np.arange(1, model.n_heads + 1), {"long_name": "Head; its target offset is its number"}),
        "subset": ("subset", np.array(model.subset_names), {"long_name": "Subset of heads, head 1 in front"}),
        "offset": (("head", "place"), offsets, {"units": "token", "long_name": "How far back a weight looks"}),
        "is_target": (("head", "place"), target, {"long_name": "Whether the offset is the head's target"}),
        "stage_name": ("stage_index", np.array(["+".join(stage.train) for stage in stages])),
    }
    for name, unit in (("epochs", "epoch"), ("lr", "1"), ("flow_time", "1")):
        listed = np.array([getattr(stage, name) for stage in stages], dtype=np.float64)
        variables[f"stage_{name}"] = ("stage_index", listed, {"units": unit, "long_name": f"{name} of each stage"})
    variables |= _references(extras.references) | _information(extras.information)
    variables |= _generalisation(extras.generalisation)
    if extras.references:
        coordinates["reference"] = ("reference", np.array([found.name for found in extras.references]))
    if extras.generalisation:
        coordinates["alpha"] = ("alpha", np.array(sorted({row.alpha for row in extras.generalisation})))
        coordinates["length"] = ("length", np.array(sorted({row.seq_length for row in extras.generalisation})))
    facts = {
        "schema": GIH_SCHEMA_NAME,
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "config_json": json.dumps(config.to_dict()),
        "spectral_version": __version__,
        "torch_version": str(torch.__version__),
        "information_set": str(list(extras.information.information_set)) if extras.information else "not computed",
    }
    return xarray.Dataset(variables, coords=coordinates, attrs=facts)


def write_dataset(dataset: "xarray.Dataset", path: Path) -> None:
    """Replace the file at `path` by this dataset, whole or not at all.

    Raises:
        ResultsFileError: the disk refused; the old file is still there.
    """
    temporary = temporary_beside(path)
    try:
        dataset.to_netcdf(temporary, engine="h5netcdf")
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        msg = f"{path} could not be written ({' '.join(str(error).split())[:200]}); free some space, then resume"
        raise ResultsFileError(msg) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_rows(dataset: "xarray.Dataset", n: int) -> list[Measurement]:
    """Return the first `n` rows as they were measured.

    Raises:
        ValueError: the dataset has fewer.
    """
    if dataset.sizes["row"] < n:
        msg = f"{dataset.sizes['row']} rows, {n} wanted"
        raise ValueError(msg)
    values = {name: dataset[name].values for name in ROWS}
    return [_measurement({name: column[i] for name, column in values.items()}) for i in range(n)]


def is_gih_run(path: str | os.PathLike[str]) -> bool:
    """Tell whether a folder, or the results file in it, belongs to a run of `spectral train-gih`."""
    place = Path(path)
    return "c_alpha" in read_json((place if place.is_dir() else place.parent) / CONFIG_NAME)


class GIHResults:
    """A run of `spectral train-gih` as it is stored, whether it is finished, live or dead.

    Args:
        path: the run folder, or the results file in it.

    Attributes:
        path: the folder.
        config: the settings.
        dataset: everything stored, in memory.

    Raises:
        RunDirectoryError: no run there, or nothing measured yet.
        ResultsFileError: a results file that is damaged or of another kind.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        place = Path(path)
        self.path = place.parent if place.is_file() else place
        require_run_folder(self.path)
        self.dataset = read_dataset(self.path / RESULTS_NAME)
        self.config = GIHConfig.from_dict(json.loads(self.dataset.attrs["config_json"]))

    @property
    def status(self) -> str:
        """`running`, `finished`, `interrupted`, `failed`, or `died`: it calls itself running, but nothing holds it."""
        status = str(self.dataset.attrs["status"])
        return "died" if status == "running" and not is_locked(self.path / LOCK_NAME) else status

    @property
    def transitions(self) -> dict[str, Any]:
        """What changed abruptly in each stage, from `transitions.json`; empty where nothing was judged yet."""
        return read_json(self.path / TRANSITIONS_NAME)

    @property
    def stage_names(self) -> list[str]:
        """What each stage trains, for example c."""
        return [str(name) for name in self.dataset["stage_name"].values]

    def read(self, name: str) -> np.ndarray:
        """Return one dataset, rows first; a `KeyError` names those there are."""
        if name not in self.dataset:
            msg = f"{name!r} is no dataset of {self.path}; known: {', '.join(map(str, self.dataset.variables))}"
            raise KeyError(msg)
        return np.asarray(self.dataset[name].values)

    def rows_of(self, stage: int) -> np.ndarray:
        """Return the indices of the rows of a stage; empty for one that has not begun."""
        return np.flatnonzero(self.read("stage") == stage)

    def to_xarray(self) -> "xarray.Dataset":
        """Return a copy of everything stored, with named dimensions and units."""
        return self.dataset.copy(deep=True)

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return one line per row, index (stage, time); columns are `a` for numbers and `shares[110]` for arrays."""
        import pandas

        columns: dict[str, np.ndarray] = {}
        for name, variable in ROWS.items():
            values = self.read(name).reshape(self.dataset.sizes["row"], -1)
            labels = [self.dataset[dim].values.tolist() for dim in variable.dims]
            if not variable.dims:
                columns[name] = values[:, 0]
                continue
            for flat, index in enumerate(np.ndindex(*(len(axis) for axis in labels))):
                inside = ",".join(str(axis[i]) for axis, i in zip(labels, index, strict=True))
                columns[f"{name}[{inside}]"] = values[:, flat]
        return pandas.DataFrame(columns).set_index(["stage", "time"])


def read_dataset(path: Path) -> "xarray.Dataset":
    """Return the dataset in a results file, in memory.

    Raises:
        RunDirectoryError: there is none yet. ResultsFileError: damaged, or of another kind.
    """
    import xarray

    if not path.exists():
        msg = f"{path.parent} has no {path.name} yet; wait for the first measurement or start the run again"
        raise RunDirectoryError(msg)
    try:
        with xarray.open_dataset(path, engine="h5netcdf") as file:
            dataset = file.load()
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        msg = f"{path} cannot be read ({' '.join(str(error).split())[:200]}); restore a copy or start a new run"
        raise ResultsFileError(msg) from error
    if dataset.attrs.get("schema") != GIH_SCHEMA_NAME:
        msg = f"{path} is no file of spectral train-gih; open it with spectral.open_run"
        raise ResultsFileError(msg)
    version = str(dataset.attrs.get("schema_version"))
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        msg = f"{path} has schema {version} and this program reads {SCHEMA_VERSION}; update the program"
        raise ResultsFileError(msg)
    return dataset


def _value(row: Measurement, name: str, n_eigenvalues: int) -> Any:
    value = getattr(row, name)
    if name == "eigenvalues":
        padded = np.full(n_eigenvalues, np.nan)
        if value is not None:
            padded[: len(value)] = value.numpy()
        return padded
    return value.numpy() if isinstance(value, torch.Tensor) else value


def _measurement(values: Mapping[str, Any]) -> Measurement:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name == "flow_time":
            continue
        if name == "stage":
            found[name] = int(value)
        elif name == "eigenvalues":
            measured = np.array(value[~np.isnan(value)])
            found[name] = torch.from_numpy(measured) if len(measured) else None
        elif np.ndim(value):
            found[name] = torch.from_numpy(np.array(value, dtype=np.float64))
        else:
            found[name] = float(value)
    return Measurement(**found)


def _yardsticks(config: GIHConfig, references: Sequence[Reference]) -> dict[str, dict[str, float]]:
    """Return chance level and ceiling of the datasets that have them."""
    uniform, n_subsets = math.log(config.vocab_size), len(config.build_model().subsets)
    by_name = {reference.name: reference for reference in references}
    best = by_name.get("bayes")
    entropy = {"ceiling": best.nll} if best else {}
    double = {"chance": uniform, "ceiling": least_double_softmax(config.vocab_size)}
    return {
        "shares": {"chance": 1 / n_subsets, "ceiling": 1.0},
        "own_offset": {"chance": 1 / config.offsets_per_head, "ceiling": 1.0},
        "accuracy": {"chance": 1 / config.vocab_size} | ({"ceiling": best.accuracy} if best else {}),
        "train_double_softmax": double,
        "validation_double_softmax": double,
        "train_nll": {"chance": uniform},
        "validation_nll": {"chance": uniform} | entropy,
    }


def _references(references: Sequence[Reference]) -> dict[str, Any]:
    if not references:
        return {}
    texts = {"double_softmax": "Double-softmax loss", "nll": "Cross-entropy", "accuracy": "Accuracy"}
    return {
        f"reference_{name}": (
            "reference",
            np.array([getattr(reference, name) for reference in references]),
            {"units": "1" if name == "accuracy" else "nats", "long_name": f"{text} of observers, held-out chains"},
        )
        for name, text in texts.items()
    }


def _information(found: SubsetInformation | None) -> dict[str, Any]:
    if found is None:
        return {}
    texts = {
        "modified": "Modified chi-square information",
        "modified_se": "Its standard error over chains",
        "ordinary": "Chi-square information",
    }
    return {
        f"information_{name}": ("subset", getattr(found, name).numpy(), {"units": "1", "long_name": text})
        for name, text in texts.items()
    }


def _generalisation(rows: Sequence[GeneralisationRow]) -> dict[str, Any]:
    if not rows:
        return {}
    alphas, lengths = sorted({row.alpha for row in rows}), sorted({row.seq_length for row in rows})
    found: dict[str, Any] = {}
    for name, text in _GENERALISATION.items():
        grid = np.full((len(alphas), len(lengths)), np.nan)
        for row in rows:
            grid[alphas.index(row.alpha), lengths.index(row.seq_length)] = getattr(row, name)
        attributes = {"units": "1" if name == "accuracy" else "nats", "long_name": f"Fresh chains: {text}"}
        found[f"generalisation_{name}"] = (("alpha", "length"), grid, attributes)
    return found
