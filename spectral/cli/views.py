"""What `visualize_results.py` shows of one run or of several, and what it prints about that."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spectral.cli.verdict import describe_verdict
from spectral.storage import Run


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where pictures go, and as what.

    Attributes:
        output: folder; None = beside the run.
        formats: of `png`, `pdf`, `svg`.
        dpi: resolution of PNG files and movies.
        only: names of the figures wanted; empty = all.
    """

    output: str | None
    formats: tuple[str, ...]
    dpi: int
    only: Sequence[str] = ()

    def folder(self, path: Path) -> Path:
        """Return the folder of a run's figures."""
        return path / "figures" if self.output is None else Path(self.output)


def show_run(path: Path, files: Files, *, figures: bool, report: bool) -> int:
    """Draw a run's figures, write its report, print its verdict; return the exit code."""
    from spectral.plots.command import draw_run
    from spectral.storage import open_run

    written: list[Path] = []
    if figures:
        written = draw_run(
            path, output=files.output, formats=files.formats, dpi=files.dpi, only=files.only, progress=print
        )
    with open_run(path) as run:
        if figures and not files.only and run.layout.references:  # Markov chains
            written += _show_acquisition(run, files)
        print(describe_verdict(run.transitions) if run.transitions else f"no verdict yet: the run is {run.status}")
    if figures:
        print(f"{len(written)} files in {written[0].parent if written else files.folder(path)}")
    if report:
        from spectral.plots.report import write_report

        print(f"report: {write_report(path, output=files.output)}")
    return 0


def show_gih_run(path: Path, files: Files) -> int:
    """Draw a run of `spectral train-gih` and print what it found; return the exit code."""
    from spectral.gih import GIHResults
    from spectral.gih.summary import describe
    from spectral.plots.gih import draw_gih_run

    written = draw_gih_run(path, output=files.output, formats=files.formats, dpi=files.dpi, progress=print)
    print(describe(GIHResults(path)))
    print(f"{len(written)} files in {written[0].parent}")
    return 0


def show_comparison(paths: Sequence[Path], files: Files, *, align: Literal["midpoint", "step"] | None) -> int:
    """Draw several runs together, print the path of the page; return the exit code."""
    from spectral.plots.compare import compare_runs

    page = compare_runs(paths, align=align, output=files.output, formats=files.formats, dpi=files.dpi, say=print)
    print(page)
    return 0


def show_movie(path: Path, files: Files, *, what: str) -> int:
    """Write a movie of a run, print its path; return the exit code."""
    from spectral.plots.movie import write_movie

    print(write_movie(path, what, output=files.output, dpi=files.dpi, stream=sys.stderr))
    return 0


def _show_acquisition(run: Run, files: Files) -> list[Path]:
    """Draw from which observer of Markov chains to which the model passed, and say when."""
    from spectral.plots.gih.acquisition import draw_acquisition

    written, passages = draw_acquisition(run, files.folder(run.path), formats=files.formats, dpi=files.dpi)
    print(passages)
    return written
