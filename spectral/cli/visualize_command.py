"""`python visualize_results.py RUN`: draw a run's figures, compare several runs, or animate one."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spectral.cli.outcome import guarded
from spectral.cli.parsing import parse_or_raise, with_underscores
from spectral.cli.verdict import describe_verdict
from spectral.errors import ConfigError

VISUALIZE_FLAGS = {
    "output": "folder for the figures (default <run>/figures, or for several runs `comparison` beside them); with "
    "--animate the file, .gif or .mp4",
    "formats": "comma-separated: png, pdf, svg",
    "dpi": "resolution of PNG files and movies",
    "figures": "draw these figures alone, for example eigenvalues head_scores",
    "style": "matplotlib style file on top of the suite's own, or a name: paper",
    "plain": "no title and no notes above the panels, for figures with a caption of their own",
    "align": "curves of several runs at their detected midpoint or by step; the midpoint if every run has one",
    "animate": "write a movie instead: attention (heads forming) or spectrum (eigenvalues moving)",
}


def visualize(argv: Sequence[str] | None = None) -> int:
    """Draw runs: the command behind `visualize_results.py`. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _visualize(arguments))


def _visualize(arguments: list[str]) -> int:
    chosen = parse_or_raise(_parser(), with_underscores(arguments))
    chosen.formats = _formats(chosen.formats)
    if not 30 <= chosen.dpi <= 1200:
        raise ConfigError([f"--dpi {chosen.dpi}; give a resolution between 30 and 1200"])
    from spectral.plots.compare.runs import is_run_folder
    from spectral.plots.style import figure_options

    paths = [Path(run) for run in chosen.run]
    several = len(paths) > 1 or (paths[0].is_dir() and not is_run_folder(paths[0]))
    for name, given in (("align", not several and chosen.align), ("animate", several and chosen.animate),
                        ("figures", several and chosen.figures)):  # fmt: skip
        if given:
            what = "one run" if not several else "several runs"
            raise ConfigError([f"--{name} has no meaning for {what}; leave it out"])
    with figure_options(style=chosen.style, plain=chosen.plain):
        if chosen.animate:
            return _animate(paths[0], chosen)
        return _compare(paths, chosen) if several else _draw(paths[0], chosen)


def _draw(path: Path, chosen: argparse.Namespace) -> int:
    from spectral.plots.command import draw_run
    from spectral.storage import open_run

    written = draw_run(
        path, output=chosen.output, formats=chosen.formats, dpi=chosen.dpi, only=chosen.figures, progress=print
    )
    with open_run(path) as run:
        print(describe_verdict(run.transitions) if run.transitions else f"no verdict yet: the run is {run.status}")
    print(f"{len(written)} files in {written[0].parent if written else chosen.output or path / 'figures'}")
    return 0


def _compare(paths: Sequence[Path], chosen: argparse.Namespace) -> int:
    from spectral.plots.compare import compare_runs

    page = compare_runs(
        paths, align=chosen.align, output=chosen.output, formats=chosen.formats, dpi=chosen.dpi, say=print
    )
    print(page)
    return 0


def _animate(path: Path, chosen: argparse.Namespace) -> int:
    from spectral.plots.movie import write_movie

    print(write_movie(path, chosen.animate, output=chosen.output, dpi=chosen.dpi, stream=sys.stderr))
    return 0


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    if set(formats) - {"png", "pdf", "svg"} or not formats:
        raise ConfigError([f"--formats {text!r}; use a comma-separated list of png, pdf and svg"])
    return formats


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="visualize_results.py",
        description="Draw the figures of a run. Of several runs, or of a folder of them, draw a comparison with median "
        "and quartiles over seeds. Works on finished, running and crashed runs.",
    )
    add, told = parser.add_argument, VISUALIZE_FLAGS
    add("run", nargs="+", help="run folder, for example runs/demo; several, or a folder of them, are compared")
    add("--output", default=None, metavar="PLACE", help=told["output"])
    add("--formats", default="png,pdf", help=f"{told['formats']} (default: png,pdf)")
    add("--dpi", type=int, default=150, help=f"{told['dpi']} (default: 150)")
    add("--figures", nargs="+", default=[], metavar="NAME", help=told["figures"])
    add("--style", default=None, metavar="FILE", help=told["style"])
    add("--plain", action="store_true", help=told["plain"])
    add("--align", choices=("midpoint", "step"), default=None, help=told["align"])
    add("--animate", choices=("attention", "spectrum"), default=None, help=told["animate"])
    return parser
