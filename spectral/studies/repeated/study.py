"""The study from its plan to its page."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spectral.errors import RunDirectoryError
from spectral.plots.command import render
from spectral.storage import write_bytes_atomic, write_text_atomic
from spectral.studies.repeated.figures import DPI, StudyFigure, compact_png, draw_all
from spectral.studies.repeated.findings import Finding, judge, to_json
from spectral.studies.repeated.measurements import Evidence, measure_run
from spectral.studies.repeated.page import render_page
from spectral.studies.repeated.plan import MODELS, Job, StudyPlan
from spectral.studies.repeated.training import Tell, check_folders, is_finished, train_all
from spectral.training.estimate import estimate

PAGE_NAME, FINDINGS_NAME = "index.html", "findings.json"


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a study found.

    Attributes:
        findings: by claim.
        page: the comparison page.
        n_runs: finished runs behind it.
    """

    findings: list[Finding]
    page: Path
    n_runs: int


def run_study(
    plan: StudyPlan, *, n_parallel: int = 1, tell: Tell, say: Callable[[str], None], resume_anyway: bool = False
) -> StudyResult | None:
    """Train what is not finished yet, then measure every finished run of the folder and write the page.

    Args:
        plan: what to do.
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
    if not train_all(jobs, plan, n_parallel=n_parallel, tell=tell, resume_anyway=resume_anyway):
        return None
    return write_page(plan, say=say)


def write_page(plan: StudyPlan, *, say: Callable[[str], None]) -> StudyResult:
    """Measure every finished run of the study's folder and write page, findings and figures.

    Raises:
        RunDirectoryError: no finished run, a run with other settings, or the disk refused.
    """
    check_folders(plan, [])
    finished = [job for job in plan.found_jobs() if is_finished(job)]
    if not finished:
        msg = f"{plan.output} holds no finished run; train some first"
        raise RunDirectoryError(msg)
    evidence: dict[str, list[Evidence]] = {}
    for job in finished:
        evidence.setdefault(job.model, []).append(measure_run(job, n_sequences=plan.n_sequences, tell=say))
    configs = {model: plan.job(model, 0).config for model in MODELS}
    findings = judge(evidence)
    say("drawing")
    figures = [(figure, _draw(figure)) for figure in draw_all(evidence, configs)]
    page = render_page(findings, evidence, configs, figures, scale=plan.scale, n_sequences=plan.n_sequences)
    content = to_json(findings, evidence, scale=plan.scale, n_sequences=plan.n_sequences)
    target = plan.output / PAGE_NAME
    try:
        (plan.output / "figures").mkdir(exist_ok=True)
        for figure, data in figures:
            write_bytes_atomic(plan.output / "figures" / f"{figure.name}.png", data)
        write_text_atomic(plan.output / FINDINGS_NAME, json.dumps(content, allow_nan=False) + "\n")
        write_text_atomic(target, page)
    except OSError as error:
        msg = f"{plan.output} cannot be written ({error.strerror}); free some space and give the command again"
        raise RunDirectoryError(msg) from error
    return StudyResult(findings=findings, page=target, n_runs=len(finished))


def expected_seconds(jobs: Sequence[Job], n_parallel: int) -> float:
    """Return about how long training takes, timed on a few steps of each model; nothing is written.

    Interrupted runs are counted as if they began anew. With several at a time it is at least as long as the longest.
    """
    price = {}
    for job in jobs:
        if job.model not in price:
            price[job.model] = estimate(job.config).seconds
    seconds = [price[job.model] for job in jobs if not is_finished(job)]
    return max(sum(seconds) / n_parallel, max(seconds, default=0.0)) if seconds else 0.0


def describe_findings(findings: Sequence[Finding]) -> str:
    """Return a line per claim: verdict, seeds, statement."""
    lines = []
    for finding in findings:
        seeds = f"{finding.n_holding} of {finding.n_seeds}" if finding.n_seeds else ""
        lines.append(f"{finding.verdict:<13} {seeds:<7} {finding.claim.text} ({finding.claim.model})")
    return "\n".join(lines)


def human(seconds: float) -> str:
    """Return a duration in a unit that suits it."""
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _draw(figure: StudyFigure) -> bytes:
    return compact_png(render(figure.figure, "png", dpi=DPI))
