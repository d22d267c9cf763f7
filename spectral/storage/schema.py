"""What `results.h5` contains: every dataset with its axes, type, unit and meaning, as one table.

The table is a pure function of a `RunLayout` (the sizes and labels of one run). Writer, recovery and reader all derive
from it, so a file rebuilt after a crash has the same objects as a fresh one.
"""

import math
from dataclasses import dataclass

import numpy as np

from spectral.storage.definitions import dataset_rows
from spectral.storage.entry import Attribute
from spectral.storage.layout import RunLayout

SCHEMA_NAME = "spectral.results"
GIH_SCHEMA_NAME = "spectral.gih"
"""Of the results of `spectral train-gih`, a layout of its own."""

SCHEMA_VERSION = "1.2"
"""MAJOR.MINOR: readers accept every file of their own MAJOR."""

SNAPSHOT_GROUPS = ("behaviour", "hessian", "circuits", "detector")
"""Groups that gain exactly one row per snapshot, all in the same commit."""

COUNTED_GROUPS = {"train": ("train",), "snapshot": SNAPSHOT_GROUPS, "causal": ("causal",)}
"""Entry of the counter `committed` -> the groups whose rows it counts. Before schema 1.2 there were the first two."""


STATUS_CODES = {"running": 0, "finished": 1, "failed": 2, "interrupted": 3}

SNAPSHOT_SCALAR_CHUNK = 64
TRAIN_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One named axis of a group: its coordinate values, or None for the axis that grows."""

    name: str
    values: np.ndarray | None
    long_name: str

    @property
    def size(self) -> int:
        """Number of entries; 0 for the growing axis of an empty file."""
        return 0 if self.values is None else len(self.values)


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One dataset of the file.

    Attributes:
        path: `group/name`.
        dims: axis names, the growing one first.
        row_shape: shape of one row, that is without the first axis.
        dtype: NumPy type name.
        units: unit, "1" for pure numbers.
        long_name: what the number is, in words.
        chance: value without any learning, where it is known from the layout.
        ceiling: best possible value.
        definition: identifier of the formula.
        range: smallest and largest possible value.
        extra: further attributes.
    """

    path: str
    dims: tuple[str, ...]
    row_shape: tuple[int, ...]
    dtype: str
    units: str
    long_name: str
    chance: float | None = None
    ceiling: float | None = None
    definition: str | None = None
    range: tuple[float, float] | None = None
    extra: tuple[tuple[str, Attribute], ...] = ()

    @property
    def group(self) -> str:
        """Name of the group."""
        return self.path.split("/")[0]

    @property
    def name(self) -> str:
        """Name within the group."""
        return self.path.split("/")[1]

    @property
    def fill_value(self) -> float | int:
        """Value of what was never written: NaN, or -1 for integers. With 0 an unwritten step would read as step 0."""
        return math.nan if np.dtype(self.dtype).kind == "f" else -1

    @property
    def chunks(self) -> tuple[int, ...]:
        """One row where a row holds an array, many rows for scalars."""
        if self.row_shape:
            return (1, *self.row_shape)
        return (TRAIN_CHUNK if self.group == "train" else SNAPSHOT_SCALAR_CHUNK,)

    @property
    def fletcher32(self) -> bool:
        """Whether chunks carry a checksum: only those that are written once.

        A chunk of several rows is rewritten at each append; a live reader that catches it half written would see the
        checksum fail, and a torn rewrite would condemn good rows for ever.
        """
        return bool(self.row_shape)

    @property
    def attributes(self) -> dict[str, Attribute]:
        """Attributes to store with the dataset."""
        found: dict[str, Attribute] = {"units": self.units, "long_name": self.long_name}
        for key in ("chance", "ceiling", "definition"):
            value = getattr(self, key)
            if value is not None:
                found[key] = value
        if self.range is not None:
            found["range"] = list(self.range)
        found.update(self.extra)
        return found


def counter_of(group: str) -> int:
    """Return the place in `committed` of the entry that counts the rows of a group."""
    return next(place for place, groups in enumerate(COUNTED_GROUPS.values()) if group in groups)


def group_axes(layout: RunLayout) -> dict[str, tuple[Axis, ...]]:
    """Return the axes of each group, the growing one first, without those of size 0."""
    heads = {
        "layer": _count(layout.n_layers, "layer", "Layer"),
        "head": _count(layout.n_heads, "head", "Head"),
        "eigen": _count(layout.d_head, "eigen", "Eigenvalue index, largest modulus first"),
        "part": Axis(name="part", values=_labels(("real", "imaginary")), long_name="Part of a complex number"),
        "layer_from": _count(layout.n_layers, "layer_from", "Layer of the earlier head"),
        "head_from": _count(layout.n_heads, "head_from", "Earlier head"),
        "layer_to": _count(layout.n_layers, "layer_to", "Layer of the later head"),
        "head_to": _count(layout.n_heads, "head_to", "Later head"),
        "query": _count(layout.attention_positions, "query", "Position that attends"),
        "key": _count(layout.attention_positions, "key", "Position attended to"),
    }
    step = Axis(name="step", values=None, long_name="Optimizer steps completed")
    probe = Axis(name="probe", values=_labels(layout.probe_kinds), long_name="Kind of probe sequences")
    groups = {
        "train": (Axis(name="train_step", values=None, long_name="Optimizer steps completed"),),
        "behaviour": (
            step,
            _count(max(layout.seq_length - 1, 0), "position", "Position of the predicting token"),
            Axis(name="period", values=np.asarray(layout.probe_periods, dtype=np.int64), long_name="Repeat period"),
            probe,
            Axis(
                name="copy",
                values=np.arange(1, layout.n_copies, dtype=np.int64),
                long_name="Copy, 0 would be the first",
            ),
            Axis(
                name="aligned_position",
                values=np.arange(-layout.aligned_before, layout.aligned_after, dtype=np.int64),
                long_name="Position of the predicting token, counted from the first token of the repeat",
            ),
            Axis(name="reference", values=_labels(layout.references), long_name="Reference observer"),
        ),
        "hessian": (
            step,
            _count(layout.n_top, "rank", "Rank from the largest eigenvalue, 0 = largest"),
            _count(layout.n_negative, "rank_negative", "Rank from the smallest eigenvalue, 0 = most negative"),
            Axis(name="block", values=_labels(layout.block_names), long_name="Parameter block"),
            _count(layout.n_preconditioned, "rank_preconditioned", "Rank in the preconditioned Hessian, 0 = largest"),
            _count(layout.n_ggn, "rank_ggn", "Rank in the Gauss-Newton matrix, 0 = largest"),
            _count(layout.density_probes, "density_probe", "Random start"),
            _count(layout.density_steps, "density_step", "Quadrature node, ascending"),
            Axis(
                name="spectrum_block",
                values=_labels(layout.spectrum_block_names),
                long_name="Parameter block with a spectrum of its own",
            ),
            _count(layout.n_block, "rank_block", "Rank within the block, 0 = largest"),
        ),
        "circuits": (step, probe, *heads.values()),
        "detector": (step,),
        "causal": (
            step,
            Axis(name="mode", values=_labels(layout.ablation_modes), long_name="How a head is removed"),
            heads["layer"],
            heads["head"],
            Axis(name="component", values=_labels(layout.components), long_name="What writes to the logits"),
        ),
    }
    return {group: tuple(a for a in axes if a.values is None or a.size) for group, axes in groups.items()}


def dataset_table(layout: RunLayout) -> tuple[DatasetSpec, ...]:
    """Return every growing dataset of a run with this layout, growing axes included, in file order.

    Datasets with an axis of size 0 are left out.
    """
    table: list[DatasetSpec] = []
    axes = group_axes(layout)
    for group, rows in dataset_rows(layout).items():
        sizes = {axis.name: axis.size for axis in axes[group]}
        for row in rows:
            if any(dim not in sizes for dim in row.dims):
                continue
            table.append(
                DatasetSpec(
                    path=f"{group}/{row.name}",
                    dims=(axes[group][0].name, *row.dims),
                    row_shape=tuple(sizes[dim] for dim in row.dims),
                    dtype=row.dtype,
                    units=row.units,
                    long_name=row.long_name,
                    chance=row.chance,
                    ceiling=row.ceiling,
                    definition=row.definition,
                    range=row.range,
                    extra=row.extra,
                )
            )
    return tuple(table)


def _count(size: int, name: str, long_name: str) -> Axis:
    return Axis(name=name, values=np.arange(size, dtype=np.int64), long_name=f"{long_name}, counted from 0")


def _labels(names: tuple[str, ...]) -> np.ndarray:
    # Fixed-length bytes: SWMR cannot hold variable-length strings.
    return np.array([name.encode("utf-8") for name in names], dtype=np.bytes_)
