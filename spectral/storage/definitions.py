"""Name, axes, unit and meaning of every stored number, one row per dataset.

`chance`, `ceiling` and `definition` stand here when the layout alone fixes them; those that depend on the probes, on
the nulls of a run's sizes or on the parameter count are given to `ResultsWriter.create(dataset_attributes=...)`. Every
larger group has a file of its own.
"""

import math

from spectral.storage.behaviour_definitions import behaviour_rows
from spectral.storage.causal_definitions import causal_rows
from spectral.storage.circuit_definitions import circuit_rows
from spectral.storage.entry import NATS, SECONDS, SLOPE, Row, step_row
from spectral.storage.hessian_definitions import hessian_rows
from spectral.storage.layout import RunLayout


def dataset_rows(layout: RunLayout) -> dict[str, list[Row]]:
    """Return the rows of every group for a run of this layout."""
    return {
        "train": _train(),
        "behaviour": behaviour_rows(layout),
        "hessian": hessian_rows(layout),
        "circuits": circuit_rows(layout),
        "detector": _detector(layout),
        "causal": causal_rows(layout),
    }


def _train() -> list[Row]:
    return [
        step_row("train_step"),
        step_row(),
        Row(
            "loss",
            "Training loss of the batch",
            "nats",
            ceiling=0.0,
            range=NATS,
            definition="train/cross_entropy_mean/v1",
        ),
        Row("learning_rate", "Learning rate of the update"),
        Row("gradient_norm", "Euclidean norm of the training gradient before clipping", SLOPE),
        Row("tokens_seen", "Tokens trained on so far", "token", dtype="int64"),
        Row("seconds", "Wall-clock time since the start of the process", SECONDS, extra=(("wall_clock", 1),)),
    ]


def _detector(layout: RunLayout) -> list[Row]:
    return [
        step_row(),
        *(
            Row(
                signal,
                f"Online change statistic of {signal}",
                definition="detector/online_statistic/v1",
                extra=(("threshold", math.nan),),
            )
            for signal in layout.signals
        ),
    ]
