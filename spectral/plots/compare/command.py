"""Comparing runs from the command line: figures, tables and a page in one folder."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from spectral.errors import ConfigError, RunDirectoryError
from spectral.plots.command import DPI, render
from spectral.plots.compare.figures import overlay, spectra, transition_times
from spectral.plots.compare.page import render_page, summary_lines
from spectral.plots.compare.runs import Comparison, read_comparison
from spectral.plots.compare.series import Alignment
from spectral.plots.compare.tables import group_table, run_table, spectrum_table
from spectral.storage import write_bytes_atomic, write_text_atomic

PAGE = "compare.html"
FOLDER = "comparison"
_PAGE_DPI = 110


def compare_runs(
    paths: Sequence[str | os.PathLike[str]],
    *,
    align: Alignment | None = None,
    output: str | os.PathLike[str] | None = None,
    formats: Sequence[str] = ("png", "pdf"),
    dpi: int = DPI,
    say: Callable[[str], None] = print,
) -> Path:
    """Compare runs, or all runs of a folder; those that differ in the seed alone are one group.

    Args:
        paths: run folders, or folders of them.
        align: curves at the detected midpoint or by step; None takes the midpoint when every run has one.
        output: folder to write; None takes `comparison` in the folder that holds all of the runs.
        formats: of the figures: png, pdf, svg.
        dpi: of PNG files.
        say: receives one line per finding.

    Returns:
        The page.

    Raises:
        ConfigError: nothing to compare, or `midpoint` where no run has a dated transition.
        RunDirectoryError: no run there, or the folder cannot be written.
    """
    comparison = read_comparison(paths)
    n, dated = len(comparison.members), len(comparison.dated)
    if align == "midpoint" and not dated:
        raise ConfigError([f"--align midpoint: none of the {n} runs has a dated transition; use --align step"])
    chosen: Alignment = align or ("midpoint" if dated == n else "step")
    for name, reason in comparison.left_out.items():
        say(f"{name} left out: {reason}")
    if align is None and 0 < dated < n:
        say(f"aligned by step: {n - dated} of {n} runs have no dated transition (--align midpoint leaves them out)")
    folder = Path(output) if output is not None else _home(comparison) / FOLDER
    drawn = {
        "overlay": overlay(comparison, align=chosen),
        "transitions": transition_times(comparison),
        "spectra": spectra(comparison),
    }
    titles = {"overlay": "Curves", "transitions": "When the transition happened", "spectra": "Spectra"}
    tables = {
        "runs.csv": run_table(comparison),
        "groups.csv": group_table(comparison),
        "spectra.csv": spectrum_table(comparison),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            for form in formats if figure is not None else ():
                write_bytes_atomic(folder / f"{name}.{form}", render(figure, form, dpi=dpi))  # type: ignore[arg-type]
        for name, table in tables.items():
            write_text_atomic(folder / name, table.to_csv(index=False, lineterminator="\n"))
        images = {
            titles[name]: render(figure, "png", dpi=_PAGE_DPI) for name, figure in drawn.items() if figure is not None
        }
        write_text_atomic(folder / PAGE, render_page(comparison, images, list(tables)))
    except OSError as error:
        msg = f"{folder} cannot be written ({error.strerror}); choose another folder with --output"
        raise RunDirectoryError(msg) from error
    for line in summary_lines(comparison):
        say(line)
    return folder / PAGE


def _home(comparison: Comparison) -> Path:
    """Return the innermost folder that holds all runs, as a path from here where it lies below."""
    common = Path(os.path.commonpath([member.run.path.resolve().parent for member in comparison.members]))
    return common.relative_to(Path.cwd()) if common.is_relative_to(Path.cwd()) else common
