"""Writing the chosen datasets of a run in one format each, to a path that nobody else looks at yet."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spectral.errors import ConfigError
from spectral.storage.export.tables import PROBES, TidyTable, probe_dataset, probe_frame, tidy_tables
from spectral.storage.reader import Run
from spectral.storage.run_directory import plain_json

DICTIONARY = "datasets.csv"
RUN_FACTS = "run.json"


def write_csv(run: Run, names: Sequence[str], folder: Path) -> None:
    """Write tidy tables as CSV, missing numbers as empty cells, every other number so that it reads back bit for bit.

    `datasets.csv` beside them holds what CSV cannot: table, axes, type and attributes of every column.
    """
    tables = tidy_tables(run, names)
    for table in tables:
        with open(folder / f"{table.name}.csv", "w", encoding="utf-8", newline="") as file:
            for i, frame in enumerate(table.frames()):
                frame.to_csv(file, index=False, header=i == 0, lineterminator="\n")
    probes = probe_frame(run, names)
    if probes is not None:
        probes.to_csv(folder / f"{PROBES}.csv", index=False, lineterminator="\n")
    _write_dictionary(tables, folder)
    _write_facts(run, folder)


def write_parquet(run: Run, names: Sequence[str], folder: Path) -> None:
    """Write the same tables as Parquet; a column's attributes are metadata of its field, as JSON under `attributes`."""
    pyarrow, parquet = require_pyarrow()
    tables = tidy_tables(run, names)
    for table in tables:
        schema = None
        writer = None
        for frame in table.frames():
            # Half precision is unknown to many readers; single holds every half exactly.
            halves = {name: "float32" for name, kind in frame.dtypes.items() if kind == np.float16}
            part = pyarrow.Table.from_pandas(frame.astype(halves), schema=schema, preserve_index=False)
            if writer is None:
                schema = pyarrow.schema(
                    [
                        field.with_metadata({"attributes": _json(table.attributes[field.name])})
                        if field.name in table.attributes
                        else field
                        for field in part.schema
                    ],
                    metadata={"table": table.name, "run": run.path.name},
                )
                writer = parquet.ParquetWriter(folder / f"{table.name}.parquet", schema, compression="zstd")
            writer.write_table(part.cast(schema))
        assert writer is not None  # even a table without rows has a frame
        writer.close()
    probes = probe_frame(run, names)
    if probes is not None:
        probes.to_parquet(folder / f"{PROBES}.parquet", engine="pyarrow", index=False)
    _write_dictionary(tables, folder)
    _write_facts(run, folder)


def write_netcdf(run: Run, names: Sequence[str], path: Path) -> None:
    """Write a NetCDF-4 file with the groups, dimensions and attributes of the run; facts about it at the root."""
    import xarray

    nodes: dict[str, Any] = {"/": xarray.Dataset(attrs=_root(run))}
    for group in dict.fromkeys(name.split("/")[0] for name in names):
        if group == PROBES:
            nodes[f"/{PROBES}"] = probe_dataset(run, names)
            continue
        dataset = run.to_xarray(group)
        dropped = [name for name in dataset.data_vars if f"{group}/{name}" not in names]
        dataset = dataset.drop_vars(dropped)
        used = set().union(*(variable.dims for variable in dataset.data_vars.values()), dataset.dims)
        dataset = dataset.drop_dims([dim for dim in dataset.dims if dim not in used])
        # NetCDF has no half precision; single holds every half exactly.
        halves = [name for name, variable in dataset.variables.items() if variable.dtype == np.float16]
        nodes[f"/{group}"] = dataset.assign({name: dataset[name].astype("float32") for name in halves})
    xarray.DataTree.from_dict(nodes).to_netcdf(path, engine="h5netcdf", mode="w", format="NETCDF4")


def write_pickle(run: Run, names: Sequence[str], path: Path) -> None:
    """Write a pickle of dicts, NumPy arrays, numbers and text alone, so that it opens without this package."""
    coordinates: dict[str, dict[str, np.ndarray]] = {}
    datasets = {}
    for name in names:
        group = name.split("/")[0]
        if group != PROBES and group not in coordinates:
            found = run.to_xarray(group)
            coordinates[group] = {str(axis): np.asarray(labels) for axis, labels in found.coords.items()}
        datasets[name] = {"values": run.read(name), "dims": run.dims(name), "attributes": run.attributes(name)}
    content = {
        "run": run.path.name,
        "status": run.status,
        "config": run.config,
        "transitions": run.transitions,
        "attributes": run.root_attributes,
        "coordinates": coordinates,
        "datasets": datasets,
    }
    with open(path, "wb") as file:
        pickle.dump(content, file, protocol=4)


def require_pyarrow() -> tuple[Any, Any]:
    """Return the modules that write Parquet.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(["--format parquet needs pyarrow: pip install pyarrow, or use --format netcdf"]) from None
    return pyarrow, pyarrow.parquet


def _root(run: Run) -> dict[str, Any]:
    facts = {key: value for key, value in run.root_attributes.items() if key != "config_json"}
    return facts | {
        "run": run.path.name,
        "status": run.status,
        "config_json": _json(run.config),
        "transitions_json": _json(run.transitions),
    }


def _write_dictionary(tables: Sequence[TidyTable], folder: Path) -> None:
    import pandas

    known = ("units", "long_name", "chance", "ceiling", "range", "definition")
    rows = []
    for table in tables:
        for name, values in table.columns.items():
            found = dict(table.attributes[name])
            row = {"table": table.name, "column": name, "axes": " ".join(table.axes), "type": values.dtype.name}
            row |= {key: _cell(found.pop(key, "")) for key in known}
            rows.append(row | {"more": _json(found) if found else ""})
    columns = ["table", "column", "axes", "type", *known, "more"]
    pandas.DataFrame(rows, columns=columns).to_csv(folder / DICTIONARY, index=False, lineterminator="\n")


def _write_facts(run: Run, folder: Path) -> None:
    facts = {
        "run": run.path.name,
        "status": run.status,
        "config": run.config,
        "transitions": run.transitions,
        "attributes": {key: value for key, value in run.root_attributes.items() if key != "config_json"},
    }
    text = json.dumps(plain_json(facts), indent=2, allow_nan=False)
    (folder / RUN_FACTS).write_text(text + "\n", encoding="utf-8")


def _cell(value: Any) -> Any:
    return " ".join(map(repr, value)) if isinstance(value, list) else value


def _json(value: Any) -> str:
    return json.dumps(value)  # infinities as Infinity, which Python and most others read back
