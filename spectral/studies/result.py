"""What every study ends with: a page, its numbers as JSON, its figures, over all finished runs of the folder."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from matplotlib.figure import Figure
from PIL import Image

from spectral.errors import RunDirectoryError
from spectral.plots.command import render
from spectral.storage import write_bytes_atomic, write_text_atomic
from spectral.studies.plan import Job, Plan
from spectral.studies.training import Tell, check_folders, is_finished, train_all

PAGE_NAME, FINDINGS_NAME = "index.html", "findings.json"
DPI = 110

AnyPlan = TypeVar("AnyPlan", bound=Plan)


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a study found.

    Attributes:
        text: a line per finding.
        page: the page.
        n_runs: finished runs behind it.
    """

    text: str
    page: Path
    n_runs: int


def run_study(
    plan: AnyPlan,
    write_page: Callable[[AnyPlan, Callable[[str], None]], StudyResult],
    *,
    n_parallel: int = 1,
    tell: Tell,
    say: Callable[[str], None],
    resume_anyway: bool = False,
) -> StudyResult | None:
    """Train what is not finished yet, then measure every finished run of the folder and write the page.

    Args:
        plan: what to do.
        write_page: of the study; takes the plan and `say`.
        n_parallel: runs trained at a time, in processes of their own.
        tell: receives what happens in the runs.
        say: receives a line now and then.
        resume_anyway: go on with runs that were begun on another machine or with other library versions.

    Returns:
        The result; None when interrupted, with every running model saved.

    Raises:
        UserError: a folder that cannot be used, found before anything is written, or a run that failed.
    """
    jobs = plan.jobs()
    check_folders(plan, jobs)
    if not train_all(jobs, n_parallel=n_parallel, tell=tell, resume_anyway=resume_anyway):
        return None
    return write_page(plan, say)


def finished_jobs(plan: Plan) -> list[Job]:
    """Return the finished runs of a study's folder, by model and seed, asked for or not.

    Raises:
        RunDirectoryError: no finished run, or a run with other settings.
    """
    check_folders(plan, [])
    finished = [job for job in plan.found_jobs() if is_finished(job)]
    if not finished:
        msg = f"{plan.output} holds no finished run; train some first"
        raise RunDirectoryError(msg)
    return finished


def write_files(output: Path, *, page: str, findings: dict[str, Any], figures: Mapping[str, bytes]) -> Path:
    """Write page, findings and figures (name -> PNG) into a study's folder; return the path of the page.

    Raises:
        RunDirectoryError: the disk refused.
    """
    target = output / PAGE_NAME
    try:
        (output / "figures").mkdir(exist_ok=True)
        for name, data in figures.items():
            write_bytes_atomic(output / "figures" / f"{name}.png", data)
        write_text_atomic(output / FINDINGS_NAME, json.dumps(findings, allow_nan=False) + "\n")
        write_text_atomic(target, page)
    except OSError as error:
        msg = f"{output} cannot be written ({error.strerror}); free some space and give the command again"
        raise RunDirectoryError(msg) from error
    return target


def drawn(figure: Figure) -> bytes:
    """Return a figure as a PNG small enough to be held by a page."""
    return compact_png(render(figure, "png", dpi=DPI))


def compact_png(data: bytes) -> bytes:
    """Return a PNG with at most 256 colours: a page with a dozen figures stays small enough to be mailed."""
    buffer = BytesIO()
    image = Image.open(BytesIO(data)).convert("RGB")
    # Without the refinement by k-means rare colours are lost, such as the dark end of a colour scale.
    image.quantize(256, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE).save(
        buffer, format="png", optimize=True
    )
    return min(buffer.getvalue(), data, key=len)


def page_environment() -> jinja2.Environment:
    """Return the environment of all pages: names in them are escaped, and what a page forgets to give is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("spectral.studies", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
