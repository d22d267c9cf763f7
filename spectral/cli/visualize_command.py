"""`python visualize_results.py RUN`: draw a run's figures and write its report; with `--live`, serve it as it grows."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spectral.cli.live import LIVE_FLAGS, add_live_flags, check_live_flags, serve_live
from spectral.cli.outcome import guarded
from spectral.cli.parsing import parse_or_raise, with_underscores
from spectral.cli.verdict import describe_verdict
from spectral.errors import ConfigError

VISUALIZE_FLAGS = ("output", "formats", "dpi", "no_report", "report_only", "live", *LIVE_FLAGS)


def visualize(argv: Sequence[str] | None = None) -> int:
    """Draw a run's figures and its report: the command behind `visualize_results.py`. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _visualize(arguments))


def _visualize(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="visualize_results.py",
        description="Draw the figures of a run and write its report.html. Works on finished, running and crashed runs.",
    )
    parser.add_argument("run", help="run folder, for example runs/demo")
    parser.add_argument("--output", default=None, help="folder for figures and report; default: the run's")
    parser.add_argument("--formats", default="png,pdf", help="comma-separated: png, pdf, svg (default: png,pdf)")
    parser.add_argument("--dpi", type=int, default=150, help="resolution of PNG files (default: 150)")
    parser.add_argument("--no_report", action="store_true", help="figures only, no report.html")
    parser.add_argument("--report_only", action="store_true", help="report.html only, no figures")
    parser.add_argument("--live", action="store_true", help="serve the report on this machine while the run goes on")
    add_live_flags(parser)
    chosen = parse_or_raise(parser, with_underscores(arguments))
    check_live_flags(chosen)
    if chosen.no_report and chosen.report_only:
        raise ConfigError(["--no_report and --report_only leave nothing to do; drop one of them"])
    if chosen.live:
        return serve_live(Path(chosen.run), host=chosen.host, port=chosen.port, open_browser=chosen.open)
    formats = tuple(part.strip().lower() for part in chosen.formats.split(",") if part.strip())
    unknown = sorted(set(formats) - {"png", "pdf", "svg"})
    if unknown or not formats:
        raise ConfigError([f"--formats {chosen.formats!r}; use a comma-separated list of png, pdf and svg"])
    if not 30 <= chosen.dpi <= 1200:
        raise ConfigError([f"--dpi {chosen.dpi}; give a resolution between 30 and 1200"])
    path = Path(chosen.run)
    written: list[Path] = []
    if not chosen.report_only:
        from spectral.plots.command import draw_run

        written = draw_run(path, output=chosen.output, formats=formats, dpi=chosen.dpi, progress=print)
    from spectral.storage import open_run

    with open_run(path) as run:
        print(describe_verdict(run.transitions) if run.transitions else f"no verdict yet: the run is {run.status}")
    if written:
        print(f"{len(written)} files in {written[0].parent}")
    if not chosen.no_report:
        from spectral.plots.report import write_report

        print(f"report: {write_report(path, output=chosen.output)}")
    return 0
