"""The results file of a run as it stands before the first row: layout, probes, chance levels and nulls."""

from pathlib import Path
from typing import Any

import numpy as np

from spectral.config import RunConfig
from spectral.data import DataSource
from spectral.detection.signals import SIGNALS
from spectral.detection.thresholds import threshold
from spectral.storage import ResultsWriter, RunLayout
from spectral.training.curvature_row import CurvatureMeter, curvature_attributes, curvature_layout
from spectral.training.measure import CausalMeter, ProbeMeter, causal_attributes, probe_attributes
from spectral.training.monitor import run_attributes
from spectral.training.setup import online_significance


def create_results(
    path: Path,
    config: RunConfig,
    source: DataSource,
    curvature: CurvatureMeter,
    probes: ProbeMeter,
    causes: CausalMeter | None,
) -> ResultsWriter:
    """Make the results file of a new run and return its writer.

    Args:
        path: where the file goes.
        config, source: of the run.
        curvature: what it measures of the Hessian.
        probes: what it measures of behaviour and circuits.
        causes: what it measures of causes; None = nothing, `/causal` stays empty.

    Raises:
        ResultsFileError: the file exists or cannot be written.
    """
    n = sum(parameter.numel() for parameter in curvature.subject.model.parameters())
    layout = RunLayout(
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        d_head=config.d_head,
        seq_length=config.seq_length,
        vocab_size=config.vocab_size,
        signals=tuple(entry.name for entry in SIGNALS) if config.detect else (),
        **curvature_layout(curvature),
        **probes.plan.layout(config),
        **({} if causes is None else causes.layout()),
    )
    hashed = {"probe_sha256": source.curvature_probe.sha256()}
    return ResultsWriter.create(
        path,
        layout,
        attributes=run_attributes(config.to_dict(), n_parameters=n, device=str(source.device)),
        probes={**_curvature_arrays(source), **probes.plan.arrays()},
        dataset_attributes={
            **curvature_attributes(curvature, hashed),
            "probes/curvature_tokens": hashed,
            **probes.plan.array_attributes(),
            **probe_attributes(config, probes.plan),
            **({} if causes is None else causal_attributes(probes.plan)),
            **_detector_attributes(config),
        },
    )


def _curvature_arrays(source: DataSource) -> dict[str, np.ndarray]:
    probe = source.curvature_probe
    arrays = {"curvature_tokens": probe.tokens.cpu().numpy()}
    if probe.targets is not None:
        arrays["curvature_targets"] = probe.targets.cpu().numpy()
    return arrays


def _detector_attributes(config: RunConfig) -> dict[str, dict[str, Any]]:
    if not config.detect or config.eigen_interval == 0:
        return {}
    level = threshold(len(config.snapshot_steps()), online_significance(config))
    return {
        f"detector/{entry.name}": {"threshold": level, "long_name": f"Online statistic: {entry.long_name}"}
        for entry in SIGNALS
    }
