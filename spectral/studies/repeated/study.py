"""The study's finished runs, from their measurements to the page."""

from collections.abc import Callable, Sequence

from spectral.studies.repeated.figures import draw_all
from spectral.studies.repeated.findings import Finding, judge, to_json
from spectral.studies.repeated.measurements import Evidence, measure_run
from spectral.studies.repeated.page import render_page
from spectral.studies.repeated.plan import MODELS, StudyPlan
from spectral.studies.result import StudyResult, drawn, finished_jobs, write_files


def write_page(plan: StudyPlan, say: Callable[[str], None]) -> StudyResult:
    """Measure every finished run of the study's folder and write page, findings and figures.

    Raises:
        RunDirectoryError: no finished run, a run with other settings, or the disk refused.
    """
    evidence: dict[str, list[Evidence]] = {}
    finished = finished_jobs(plan)
    for job in finished:
        evidence.setdefault(job.model, []).append(measure_run(job, n_sequences=plan.n_sequences, tell=say))
    configs = {model: plan.job(model, 0).config for model in MODELS}
    findings = judge(evidence)
    say("drawing")
    figures = [(figure, drawn(figure.figure)) for figure in draw_all(evidence, configs)]
    page = write_files(
        plan.output,
        page=render_page(findings, evidence, configs, figures, scale=plan.scale, n_sequences=plan.n_sequences),
        findings=to_json(findings, evidence, scale=plan.scale, n_sequences=plan.n_sequences),
        figures={figure.name: data for figure, data in figures},
    )
    return StudyResult(text=describe_findings(findings), page=page, n_runs=len(finished))


def describe_findings(findings: Sequence[Finding]) -> str:
    """Return a line per claim: verdict, seeds, statement."""
    lines = []
    for finding in findings:
        seeds = f"{finding.n_holding} of {finding.n_seeds}" if finding.n_seeds else ""
        lines.append(f"{finding.verdict:<13} {seeds:<7} {finding.claim.text} ({finding.claim.model})")
    return "\n".join(lines)
