"""`spectral show RUN`: a run in one screen of text, with sparklines."""

import argparse
import io
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spectral.cli.outcome import guarded
from spectral.cli.parsing import parse_or_raise, with_underscores
from spectral.cli.verdict import FORMED
from spectral.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from spectral.plots.overview import FormedHead
    from spectral.plots.verdict import Verdict
    from spectral.storage import Run

SHOW_FLAGS = {
    "width": "characters of a line; if not given, those of the terminal, and 110 where there is none",
}
_NARROWEST, _PLAIN_WIDTH = 60, 110
_STATUS_STYLE = {"finished": "green", "running": "cyan", "interrupted": "yellow", "failed": "red", "died": "red"}
_IN_ASCII = str.maketrans({"λ": "l", "±": "~", "₁": "1"})
_NUMBER_WIDTH, _WIDE = 9, 90
_REMEDY = {
    "died": "its process died; go on with: python train.py --resume",
    "failed": "it ended with an error, the last line of events.jsonl says which; go on with: python train.py --resume",
    "interrupted": "go on with: python train.py --resume",
}


def show(argv: Sequence[str] | None = None) -> int:
    """Print a summary of a run: `spectral show`. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _show(arguments))


def _show(arguments: list[str]) -> int:
    chosen = parse_or_raise(_parser(), with_underscores(arguments))
    if chosen.width is not None and chosen.width < _NARROWEST:
        raise ConfigError([f"--width {chosen.width} is too narrow; give at least {_NARROWEST} characters"])
    from rich.console import Console

    from spectral.storage import open_run

    run = open_run(Path(chosen.run))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a remote shell may know ASCII alone
    console = Console(highlight=False, width=chosen.width or (None if sys.stdout.isatty() else _PLAIN_WIDTH))
    _print_run(console, run, fancy=console.encoding.lower().startswith("utf"))
    return 0


def _print_run(console: "Console", run: "Run", *, fancy: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from spectral.plots.overview import formed_heads, spectrum_lines
    from spectral.plots.summary import how_trained, what_came_first, what_happened
    from spectral.plots.verdict import read_verdict

    last = max([0, *run.steps[-1:].tolist(), *run.train_steps[-1:].tolist()])
    planned = run.config.get("num_steps")
    how_far = f"step {last:,}" + (f" of {planned:,}" if isinstance(planned, int) else "")
    status = run.status
    console.print(
        Text.assemble(
            (run.path.resolve().name, "bold"), "  ", (status, _STATUS_STYLE.get(status, "")), f"  {how_far}, ",
            f"{len(run.steps)} snapshots",
        )
    )  # fmt: skip
    if status in _REMEDY:
        console.print(Text(f"{_REMEDY[status]} {shlex.quote(str(run.path))}", style="yellow"))
    verdict = read_verdict(run)
    sections: dict[str, list[str]] = {"trained": how_trained(run), "transition": [verdict.sentence]}
    if verdict.judged:
        sections["transition"] = what_happened(run, verdict)
    formed = FORMED.get(str(run.transitions.get("mechanism", {}).get("label")), "").strip()
    if formed:
        sections["transition"].append(formed)
    sections["first"] = what_came_first(run)
    heads = formed_heads(run) if len(run.steps) else []
    sections["heads"] = [_head_line(head) for head in heads]
    if len(run.steps):
        sections["heads"] = sections["heads"] or ["no head has a corrected score of 0.3 or more at the last snapshot"]
        sections["spectrum"] = spectrum_lines(run)
    else:
        sections["heads"] = ["no snapshot yet" if run.config.get("eigen_interval") != 0 else "measuring is off"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for name, lines in sections.items():
        for i, line in enumerate(lines):
            grid.add_row(name if i == 0 else "", Text(line if fancy else line.translate(_IN_ASCII)))
    console.print(grid)
    _print_curves(console, run, verdict, fancy=fancy)


def _head_line(head: "FormedHead") -> str:
    matches = "" if head.content_match is None else f", matches content {head.content_match:.2f}"
    return f"{head.name} {head.role} {head.score:.2f}, at 0.3 or more since step {head.since:,}{matches}"


def _print_curves(console: "Console", run: "Run", verdict: "Verdict", *, fancy: bool) -> None:
    import numpy as np
    from rich.table import Table
    from rich.text import Text

    from spectral.plots.overview import curves
    from spectral.plots.sparkline import ASCII, BLOCKS, marker_line, resample, sparkline

    shown = curves(run)
    if not shown:
        console.print("no curve to show: no row was committed yet")
        return
    first = min(float(curve.steps[0]) for curve in shown)
    last = max(float(curve.steps[-1]) for curve in shown)
    names = [curve.name if fancy else curve.name.translate(_IN_ASCII) for curve in shown]
    columns = ("first", "last", "min", "max") if console.width >= _WIDE else ("first", "last")
    n_bins = max(10, min(80, console.width - max(map(len, names)) - len(columns) * (_NUMBER_WIDTH + 2) - 8))
    edges = np.linspace(first, last if last > first else first + 1, n_bins + 1)
    grid = Table.grid(padding=(0, 2))
    for justify in ("left", "left", *["right"] * len(columns), "left"):
        grid.add_column(justify=justify, no_wrap=True)  # type: ignore[arg-type]
    scale = f"{first:,.0f}".ljust(n_bins - len(f"{last:,.0f}")) + f"{last:,.0f}"
    grid.add_row(*(Text(word, style="dim") for word in ("step", scale, *columns)))
    for name, curve in zip(names, shown, strict=True):
        heights = resample(curve.steps, curve.heights, edges)
        line = sparkline(heights, low=curve.low, high=curve.high, levels=BLOCKS if fancy else ASCII)
        known = curve.heights[np.isfinite(curve.heights)]
        facts = {"first": known[0], "last": known[-1], "min": known.min(), "max": known.max()}
        numbers = [_short(float(facts[column])) for column in columns]
        grid.add_row(name, Text(line, style="cyan"), *numbers, curve.units)
    if verdict.onset is not None and verdict.midpoint is not None and verdict.end is not None:
        marks = {} if fancy else {"line": "-", "mark": "^"}
        line = marker_line(edges, verdict.onset, verdict.midpoint, verdict.end, **marks)
        grid.add_row(Text("transition", style="yellow"), Text(line, style="yellow"))
    console.print(grid)


def _short(number: float) -> str:
    return f"{number:.0f}" if 1000 <= abs(number) < 1e6 else f"{number:.3g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spectral show",
        description="Print a run in one screen: when the transition happened, which heads formed, what the spectrum "
        "did, and its curves as sparklines. Works on finished, running and crashed runs.",
        allow_abbrev=False,
    )
    parser.add_argument("run", help="run folder, for example runs/demo")
    parser.add_argument("--width", type=int, default=None, metavar="N", help=SHOW_FLAGS["width"])
    return parser
