"""The study's finished runs, from their verdicts to the page."""

from collections.abc import Callable

from spectral.studies.controls.figures import every_run
from spectral.studies.controls.findings import describe, judge, summarise, to_json
from spectral.studies.controls.outcomes import Outcome, measure
from spectral.studies.controls.page import render_page
from spectral.studies.controls.plan import ControlsPlan
from spectral.studies.result import StudyResult, drawn, finished_jobs, write_files


def write_page(plan: ControlsPlan, say: Callable[[str], None]) -> StudyResult:
    """Judge every finished run of the study's folder and write page, findings and figure.

    Raises:
        RunDirectoryError: no finished run, a run with other settings, or the disk refused.
    """
    outcomes: dict[str, list[Outcome]] = {}
    finished = finished_jobs(plan)
    for job in finished:
        say(f"judging {job.name}")
        outcomes.setdefault(job.model, []).append(measure(job))
    findings, summaries = judge(outcomes), summarise(outcomes)
    picture = drawn(every_run(outcomes))
    page = write_files(
        plan.output,
        page=render_page(findings, summaries, outcomes, picture, scale=plan.scale),
        findings=to_json(findings, summaries, outcomes, plan.scale),
        figures={"every_run": picture},
    )
    return StudyResult(text=describe(findings, summaries), page=page, n_runs=len(finished))
