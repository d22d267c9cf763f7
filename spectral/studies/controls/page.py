"""The page of the study: one HTML file that holds everything it shows and asks the network for nothing."""

import base64
import math
from collections.abc import Mapping, Sequence

from spectral.detection.tables import calibration_id
from spectral.studies.controls.findings import MARGIN, Finding, Lead, Rate, Summary
from spectral.studies.controls.outcomes import Outcome
from spectral.studies.controls.plan import KINDS, PRESET
from spectral.studies.result import page_environment
from spectral.version import __version__


def render_page(
    findings: Sequence[Finding],
    summaries: Sequence[Summary],
    outcomes: Mapping[str, Sequence[Outcome]],
    picture: bytes,
    *,
    scale: float,
) -> str:
    """Return the page over all runs; `picture` is the PNG of `figures.every_run`."""
    environment = page_environment()
    environment.filters |= {"rate": rate, "percent": percent, "lead": lead}
    return environment.get_template("controls/page.html.jinja").render(
        findings=findings,
        summaries=summaries,
        kinds=KINDS,
        missing=[model for model in KINDS if not outcomes.get(model)],
        runs=[one for model in KINDS for one in outcomes.get(model, ())],
        picture=base64.b64encode(picture).decode("ascii"),
        preset=PRESET,
        margin=MARGIN,
        scale=scale,
        calibration=calibration_id(),
        version=__version__,
    )


def rate(value: Rate) -> str:
    """Return a count with its interval, such as `0 of 12 [0, 0.24]`."""
    if value.n == 0:
        return "–"
    low, high = value.interval
    return f"{value.hits} of {value.n} [{low:.2g}, {high:.2g}]"


def percent(value: float | None) -> str:
    """Return a signed share of the run."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:+.1f} %"


def counted(n: int) -> str:
    """Return a number of runs in words."""
    return f"{n} run{'' if n == 1 else 's'}"


def lead(value: Lead) -> str:
    """Return how two families moved relative to each other, in words; there is at least one run."""
    way = "together with" if value.median == 0 else "before" if value.median < 0 else "after"
    size = f"{abs(value.median):.0f} steps " if value.median else ""
    return f"{value.first} {size}{way} {value.second} ({counted(value.n)}, p = {value.p_value:.2g})"
