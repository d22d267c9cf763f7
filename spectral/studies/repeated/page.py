"""The comparison page: one HTML file that holds everything it shows and asks the network for nothing."""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

from spectral.behaviour import equal_count_ceiling
from spectral.config import RunConfig
from spectral.studies.repeated.figures import StudyFigure, describe_model
from spectral.studies.repeated.findings import VERDICTS, Finding, threshold
from spectral.studies.repeated.measurements import LONG, SHORT, Evidence
from spectral.studies.repeated.plan import MODELS
from spectral.studies.result import page_environment
from spectral.version import __version__


def number(value: float) -> str:
    """Return a measured number as text: three digits after the point, one for larger ones."""
    if math.isnan(value):
        return "undefined"
    return f"{value:.1f}" if abs(value) >= 2 else f"{value:.3f}"


def render_page(
    findings: Sequence[Finding],
    evidence: Mapping[str, Sequence[Evidence]],
    configs: Mapping[str, RunConfig],
    figures: Sequence[tuple[StudyFigure, bytes]],
    *,
    scale: float,
    n_sequences: int,
) -> str:
    """Return the page.

    Args:
        findings: in the order of the page.
        evidence: finished runs by model.
        configs: configuration of each model, any seed.
        figures: with their PNG files.
        scale: of the study; anything but 1 is said at the top.
        n_sequences: sequences behind every number.
    """
    environment = page_environment()
    environment.filters |= {"number": number, "threshold": threshold}
    found = {model: evidence[model] for model in MODELS if evidence.get(model)}
    config = configs[MODELS[0]]
    return environment.get_template("repeated/page.html.jinja").render(
        warnings=warnings(found, scale),
        findings=findings,
        verdicts=VERDICTS,
        models=[_model_row(model, runs, configs[model]) for model, runs in found.items()],
        config=config,
        chance=1 / config.vocab_size,
        ceiling_20=equal_count_ceiling(config.vocab_size, 20),
        ceiling_39=equal_count_ceiling(config.vocab_size, 39),
        n_sequences=n_sequences,
        runs=[f"runs/{run.path.name}" for runs in found.values() for run in runs],
        figures=[
            {
                "name": figure.name,
                "question": figure.question if i == 0 or figures[i - 1][0].question != figure.question else "",
                "description": figure.description,
                "data": base64.b64encode(data).decode("ascii"),
            }
            for i, (figure, data) in enumerate(figures)
        ],
        version=__version__,
    )


def warnings(evidence: Mapping[str, Sequence[Evidence]], scale: float) -> list[str]:
    """Return what a reader must know before the findings: a shortened study, models without a run."""
    said = []
    if scale != 1:
        said.append(
            f"Steps are multiplied by {scale:g}: the claims speak of full-length runs, so a claim that fails here may "
            "only have had too little time."
        )
    missing = [model for model in MODELS if not evidence.get(model)]
    if missing:
        said.append(f"Not trained, so nothing is said about them: {', '.join(missing)}.")
    single = [model for model, runs in evidence.items() if len(runs) == 1]
    if single:
        said.append(f"One seed only, which says nothing about other seeds: {', '.join(single)}.")
    return said


def _model_row(model: str, runs: Sequence[Evidence], config: RunConfig) -> dict[str, Any]:
    finals = [run.final for run in runs]
    ranges = (range(config.min_period, config.max_period + 1), SHORT, LONG)
    return {
        "model": model,
        "description": describe_model(config),
        "seeds": [final.seed for final in finals],
        "columns": [
            *([final.mean_accuracy(list(periods)) for final in finals] for periods in ranges),
            [final.boundary_accuracy for final in finals],
        ],
    }
