"""Everything a page shows, gathered from a run: the same for the file and for the live page."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jinja2
import numpy as np
from plotly.utils import PlotlyJSONEncoder

from spectral.plots.report.attention import MAP_BYTES, attention_views
from spectral.plots.report.curves import CURVES
from spectral.plots.report.snapshots import SNAPSHOTS
from spectral.plots.report.story import headline, story
from spectral.plots.report.tables import commands, config_rows, facts, lead_lag_rows, signal_rows
from spectral.plots.report.view import View
from spectral.plots.source import MissingDataError, setting
from spectral.plots.verdict import Verdict, read_verdict
from spectral.storage import Run

SLIDER_STEPS = 4000  # a slider has no more positions than a screen has pixels
STATUS_WORDS = {
    "running": "running",
    "finished": "finished",
    "interrupted": "interrupted",
    "failed": "failed",
    "died": "died",
    "waiting": "waiting for the first measurement",
}

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("spectral.plots.report", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def gather(run: Run, *, map_bytes: int = MAP_BYTES, checkpoints: bool = True) -> dict[str, Any]:
    """Return the page's content; what the run does not hold is listed under `missing` with the reason.

    Args:
        run: finished, running or crashed.
        map_bytes: what the attention maps may take.
        checkpoints: whether checkpoints may be loaded for maps on further probes.
    """
    verdict = read_verdict(run)
    views, missing = _views(run, verdict, map_bytes=map_bytes, checkpoints=checkpoints)
    steps = run.steps
    if len(steps) > SLIDER_STEPS:
        steps = steps[np.round(np.linspace(0, len(steps) - 1, SLIDER_STEPS)).astype(int)]
        missing.append(f"the slider stops at {SLIDER_STEPS:,} of the {len(run.steps):,} snapshots")
    parts = story(run, verdict)
    return {
        "name": run.path.name,
        "status": run.status,
        "statusText": STATUS_WORDS.get(run.status, run.status),
        "note": _progress(run),
        "steps": steps.tolist(),
        "start": _start(steps, verdict),
        "marks": _marks(verdict),
        "views": [view.to_payload() for view in views],
        "html": {
            "summary": _render("summary.html.jinja", headline=headline(run, verdict), parts=parts, missing=missing),
            "details": _render(
                "details.html.jinja",
                signals=signal_rows(run),
                lags=lead_lag_rows(run),
                config=config_rows(run),
                commands=commands(run),
                facts=facts(run),
            ),
        },
    }


def waiting(name: str, note: str) -> dict[str, Any]:
    """Return the content for a run that has no results file yet."""
    html = {"summary": _render("summary.html.jinja", headline=note, parts=[], missing=[]), "details": ""}
    return {
        "name": name, "status": "waiting", "statusText": STATUS_WORDS["waiting"], "note": note, "steps": [], "start": 0,
        "marks": [], "views": [], "html": html,
    }  # fmt: skip


def to_json(content: dict[str, Any]) -> str:
    """Return content as JSON that may stand inside a script element: no character in it can end one."""
    text = json.dumps(content, cls=PlotlyJSONEncoder, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _views(run: Run, verdict: Verdict, *, map_bytes: int, checkpoints: bool) -> tuple[list[View], list[str]]:
    views: list[View] = []
    missing: list[str] = []

    def draw(what: str, make: Callable[[], Iterable[View]]) -> None:
        try:
            views.extend(make())
        except MissingDataError as error:
            missing.append(f"{what}: {error.reason}")

    draw("attention maps", lambda: attention_views(run, verdict, map_bytes=map_bytes, checkpoints=checkpoints))
    for function in (*SNAPSHOTS, *CURVES):
        draw(function.__name__.replace("_", " "), partial(_alone, function, run, verdict))
    return views, missing


def _progress(run: Run) -> str:
    last = max([0, *run.steps[-1:].tolist(), *run.train_steps[-1:].tolist()])
    planned = setting(run, "num_steps")
    of = f" of {planned:,}" if isinstance(planned, int) else ""
    return f"{len(run.steps):,} snapshots, up to step {last:,}{of}"


def _alone(draw: Callable[[Run, Verdict], View], run: Run, verdict: Verdict) -> list[View]:
    return [draw(run, verdict)]


def _start(steps: np.ndarray, verdict: Verdict) -> int:
    """Return the index of the step that a page opens at: the midpoint of the transition, else the last."""
    if not len(steps):
        return 0
    return len(steps) - 1 if verdict.midpoint is None else int(np.argmin(np.abs(steps - verdict.midpoint)))


def _marks(verdict: Verdict) -> list[dict[str, Any]]:
    """Return the places of the transition that the slider can jump to."""
    places = {"onset": verdict.onset, "midpoint": verdict.midpoint, "end": verdict.end}
    return [{"name": name, "step": step} for name, step in places.items() if step is not None]


def _render(template: str, **content: Any) -> str:
    return ENVIRONMENT.get_template(template).render(**content)
