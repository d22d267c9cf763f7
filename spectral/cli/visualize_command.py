"""`python visualize_results.py RUN`: figures and report of a run, a comparison of several, a movie, a live page."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spectral.cli import views
from spectral.cli.live import LIVE_FLAGS, add_live_flags, check_live_flags, serve_live
from spectral.cli.outcome import guarded
from spectral.cli.parsing import parse_or_raise, with_underscores
from spectral.errors import ConfigError

VISUALIZE_FLAGS = {
    "output": "folder for figures and report (default the run's own, or for several runs `comparison` beside them); "
    "with --animate the file, .gif or .mp4",
    "formats": "comma-separated: png, pdf, svg",
    "dpi": "resolution of PNG files and movies",
    "figures": "draw these figures alone, for example eigenvalues head_scores",
    "no_report": "figures only, no report.html",
    "report_only": "report.html only, no figures",
    "style": "matplotlib style file on top of the suite's own, or a name: paper",
    "plain": "no title and no notes above the panels, for figures with a caption of their own",
    "align": "curves of several runs at their detected midpoint or by step; the midpoint if every run has one",
    "animate": "write a movie instead: attention (heads forming) or spectrum (eigenvalues moving)",
    "live": "serve the report on this machine while the run goes on",
    **LIVE_FLAGS,
}

_OF_ONE_RUN = ("animate", "figures", "no_report", "report_only", "live")
_OF_ORDINARY_RUNS = ("animate", "figures", "report_only", "live")


def visualize(argv: Sequence[str] | None = None) -> int:
    """Show runs: the command behind `visualize_results.py`. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _visualize(arguments))


def _visualize(arguments: list[str]) -> int:
    chosen = parse_or_raise(_parser(), with_underscores(arguments))
    check_live_flags(chosen)
    files = views.Files(
        output=chosen.output, formats=_formats(chosen.formats), dpi=chosen.dpi, only=tuple(chosen.figures)
    )
    if not 30 <= chosen.dpi <= 1200:
        raise ConfigError([f"--dpi {chosen.dpi}; give a resolution between 30 and 1200"])
    if chosen.report_only and (chosen.no_report or chosen.figures):
        other = "no_report" if chosen.no_report else "figures"
        raise ConfigError([f"--{other} and --report_only leave nothing to do; drop one of them"])
    from spectral.gih import is_gih_run
    from spectral.plots.compare.runs import is_run_folder
    from spectral.plots.style import figure_options

    paths = [Path(run) for run in chosen.run]
    path = paths[0]
    is_gih = len(paths) == 1 and is_gih_run(path)
    folder_of_runs = path.is_dir() and not is_gih and not is_run_folder(path)
    several = len(paths) > 1 or (folder_of_runs and not chosen.live)
    _refuse(chosen, () if several else ("align",), "one run")
    _refuse(chosen, _OF_ONE_RUN if several else (), "several runs")
    _refuse(chosen, _OF_ORDINARY_RUNS if is_gih else (), "a run of train-gih")
    if chosen.live:
        return serve_live(path, host=chosen.host, port=chosen.port, open_browser=chosen.open)
    with figure_options(style=chosen.style, plain=chosen.plain):
        if several:
            return views.show_comparison(paths, files, align=chosen.align)
        if is_gih:
            return views.show_gih_run(path, files)
        if chosen.animate:
            return views.show_movie(path, files, what=chosen.animate)
        report = not chosen.no_report and not chosen.figures
        return views.show_run(path, files, figures=not chosen.report_only, report=report)


def _refuse(chosen: argparse.Namespace, names: Sequence[str], what: str) -> None:
    """Raise a `ConfigError` for the first of the flags that was given."""
    for name in names:
        if getattr(chosen, name):
            raise ConfigError([f"--{name} has no meaning for {what}; leave it out"])


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    if set(formats) - {"png", "pdf", "svg"} or not formats:
        raise ConfigError([f"--formats {text!r}; use a comma-separated list of png, pdf and svg"])
    return formats


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="visualize_results.py",
        description="Draw the figures of a run and write its report.html. Of several runs, or of a folder of them, "
        "draw a comparison with median and quartiles over seeds. Works on finished, running and crashed runs.",
    )
    add, told = parser.add_argument, VISUALIZE_FLAGS
    add("run", nargs="+", help="run folder, for example runs/demo; several, or a folder of them, are compared")
    add("--output", default=None, metavar="PLACE", help=told["output"])
    add("--formats", default="png,pdf", help=f"{told['formats']} (default: png,pdf)")
    add("--dpi", type=int, default=150, help=f"{told['dpi']} (default: 150)")
    add("--figures", nargs="+", default=[], metavar="NAME", help=told["figures"])
    for name in ("no_report", "report_only"):
        add(f"--{name}", action="store_true", help=told[name])
    add("--style", default=None, metavar="FILE", help=told["style"])
    add("--plain", action="store_true", help=told["plain"])
    add("--align", choices=("midpoint", "step"), default=None, help=told["align"])
    add("--animate", choices=("attention", "spectrum"), default=None, help=told["animate"])
    add("--live", action="store_true", help=told["live"])
    add_live_flags(parser)
    return parser
