"""A run as tidy tables: one row per measurement, one column per dataset, one table per combination of axes.

Datasets of one group that share their axes share a table, so `circuits_layer_head` has the columns step, layer, head
and then every score of a head. Nothing is left out and nothing is spread over numbered columns.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spectral.storage.reader import Run

if TYPE_CHECKING:
    import pandas
    import xarray

_ROWS_AT_ONCE = 500_000
PROBES = "probes"


@dataclass(frozen=True)
class TidyTable:
    """One table of a run.

    Attributes:
        name: the group, then its axes other than the step: `train`, `hessian_rank`, `circuits_layer_head`.
        axes: column name -> coordinates [size], the slowest first; the first one is `step`.
        columns: dataset name -> values, one axis each in that order.
        attributes: dataset name -> unit, meaning, chance level and so on.
    """

    name: str
    axes: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]
    attributes: dict[str, dict[str, Any]]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return math.prod(len(labels) for labels in self.axes.values())

    def frames(self) -> Iterator["pandas.DataFrame"]:
        """Yield the rows in order, some 500 000 at a time; a table without rows is one empty frame."""
        import pandas

        first, *others = self.axes
        shape = [len(self.axes[name]) for name in others]
        per_step = max(1, math.prod(shape))
        inner = {
            name: np.broadcast_to(
                self.axes[name].reshape([-1 if i == j else 1 for j in range(len(others))]), shape
            ).ravel()
            for i, name in enumerate(others)
        }
        steps = self.axes[first]
        at_once = max(1, _ROWS_AT_ONCE // per_step)
        for start in range(0, max(1, len(steps)), at_once):
            part = steps[start : start + at_once]
            found = {first: np.repeat(part, per_step)}
            found |= {name: np.tile(labels, len(part)) for name, labels in inner.items()}
            found |= {name: values[start : start + at_once].ravel() for name, values in self.columns.items()}
            yield pandas.DataFrame(found)

    def frame(self) -> "pandas.DataFrame":
        """Return all rows."""
        import pandas

        return pandas.concat(self.frames(), ignore_index=True)


def tidy_tables(run: Run, names: Sequence[str]) -> list[TidyTable]:
    """Return datasets of a run as tidy tables, in file order.

    Args:
        run: to read.
        names: datasets, `group/name`; those of `/probes` are left to `probe_frame`.
    """
    tables = []
    for group in dict.fromkeys(name.split("/")[0] for name in names):
        if group == PROBES:
            continue
        dataset = run.to_xarray(group)
        wanted = [name.split("/")[1] for name in names if name.startswith(f"{group}/")]
        by_dims: dict[tuple[str, ...], list[str]] = {}
        for name in wanted:
            if name not in ("step", "train_step") and name in dataset.data_vars:
                by_dims.setdefault(tuple(map(str, dataset[name].dims[1:])), []).append(name)
        steps = run.steps_of(group)
        for dims, members in by_dims.items():
            tables.append(
                TidyTable(
                    name="_".join([group, *dims]),
                    axes={"step": steps} | {dim: dataset[dim].values for dim in dims},
                    columns={name: dataset[name].values for name in members},
                    attributes={name: dict(dataset[name].attrs) for name in members},
                )
            )
    return tables


def probe_frame(run: Run, names: Sequence[str]) -> "pandas.DataFrame | None":
    """Return probe arrays as one table (array, index_0, index_1, value), or None where none is among the names.

    `index_0` counts sequences and `index_1` positions; an array with a single axis has no `index_1` (-1).
    """
    import pandas

    frames = []
    for name in names:
        if name.startswith(f"{PROBES}/"):
            values = run.read(name)
            places = [place.ravel() for place in np.indices(values.shape)]
            second = places[1] if len(places) > 1 else np.full(values.size, -1)
            frames.append(
                pandas.DataFrame(
                    {
                        "array": name.split("/")[1],
                        "index_0": places[0],
                        "index_1": second,
                        "value": values.ravel().astype(np.int64),
                    }
                )
            )
    return pandas.concat(frames, ignore_index=True) if frames else None


def probe_dataset(run: Run, names: Sequence[str]) -> "xarray.Dataset":
    """Return probe arrays with their attributes as a Dataset."""
    import xarray

    return xarray.Dataset(
        {
            name.split("/")[1]: (run.dims(name), run.read(name), run.attributes(name))
            for name in names
            if name.startswith(f"{PROBES}/")
        }
    )
