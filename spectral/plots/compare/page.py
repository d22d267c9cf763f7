"""The page of a comparison: one HTML file without scripts, with its figures inside."""

import base64
from typing import TYPE_CHECKING, Any

import jinja2

from spectral.plots.compare.runs import Comparison
from spectral.plots.compare.tables import group_table, run_table

if TYPE_CHECKING:
    import pandas

_WORDS = ("run", "group", "status", "verdict", "reason", "mechanism")


def render_page(comparison: Comparison, figures: dict[str, bytes], files: list[str]) -> str:
    """Return the page.

    Args:
        comparison: the runs.
        figures: title -> PNG file.
        files: names of the tables beside the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spectral.plots.compare", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html.jinja").render(
        headline=headline(comparison),
        summary=" ".join(summary_lines(comparison)),
        figures=[{"title": title, "png": base64.b64encode(data).decode()} for title, data in figures.items()],
        tables=[
            _table("Groups", group_table(comparison)),
            _table(
                "Runs: transition steps with their 90 % interval, and the largest eigenvalue", run_table(comparison)
            ),
        ],
        left_out=comparison.left_out,
        files=files,
    )


def headline(comparison: Comparison) -> str:
    """Return what is compared in a few words."""
    n, g = len(comparison.members), len(comparison.groups)
    return f"{n} run{'s' * (n != 1)} in {g} group{'s' * (g != 1)}"


def summary_lines(comparison: Comparison) -> list[str]:
    """Return one sentence per group: how many transitions were dated, and when."""
    lines = []
    for row in group_table(comparison).to_dict("records"):
        text = f"{row['group']}: {row['dated']} of {row['runs']} with a dated abrupt transition"
        if row["dated"]:
            text += (
                f", midpoint {row['midpoint_median']:,.0f} (median; quartiles {row['midpoint_q25']:,.0f} to "
                f"{row['midpoint_q75']:,.0f}, range {row['midpoint_min']:,.0f} to {row['midpoint_max']:,.0f})"
            )
        lines.append(text + ".")
    return lines


def _table(title: str, frame: "pandas.DataFrame") -> dict[str, Any]:
    rows = [[(name, _cell(value)) for name, value in row.items()] for row in frame.to_dict("records")]
    return {"title": title, "columns": list(frame.columns), "rows": rows, "words": _WORDS}


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"
    return str(value)
