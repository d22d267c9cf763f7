"""Drawing all figures of a run into its folder: what stands behind `python visualize_results.py RUN`."""

import os
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from spectral.errors import ConfigError, RunDirectoryError
from spectral.plots.figures import FIGURES
from spectral.plots.source import MissingDataError
from spectral.plots.style import house_style
from spectral.storage import open_run, write_bytes_atomic

FORMATS = ("png", "pdf", "svg")
DPI = 160


def draw_run(
    run_path: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    formats: Sequence[str] = ("png", "pdf"),
    dpi: int = DPI,
    only: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> list[Path]:
    """Draw every figure that the run has data for.

    Args:
        run_path: a run folder, or its results file; live and crashed runs are drawn as far as they got.
        output: folder for the files; None takes `figures` in the run folder. It is made when missing.
        formats: of the files: png, pdf, svg.
        dpi: dots per inch of PNG files and of heat maps inside PDF files.
        only: draw these figures of `FIGURES`; empty = all of them.
        progress: receives one line per figure: the files written, or why it was left out.

    Returns:
        The files written, in the order of `FIGURES`. Each appears whole or not at all.

    Raises:
        RunDirectoryError: no run there, or the output folder cannot be written.
        ResultsFileError: a damaged results file. MissingDataError: the run holds nothing to draw yet.
        ConfigError: an unknown figure. ValueError: an unknown format or a dpi below 1.
    """
    unknown = [form for form in formats if form not in FORMATS]
    if unknown or not formats:
        msg = f"formats={list(formats)} cannot be drawn; use some of {', '.join(FORMATS)}"
        raise ValueError(msg)
    if dpi < 1:
        msg = f"dpi={dpi} is not positive; 160 suits a page"
        raise ValueError(msg)
    strange = [name for name in only if name not in FIGURES]
    if strange:
        raise ConfigError([f"--figures {strange[0]!r} is unknown; use some of {', '.join(FIGURES)}"])
    say = progress or (lambda line: None)
    run = open_run(run_path)
    folder = run.path / "figures" if output is None else Path(output)
    written: list[Path] = []
    left_out: list[MissingDataError] = []
    for name, draw in FIGURES.items():
        if only and name not in only:
            continue
        try:
            figure = draw(run)
        except MissingDataError as error:
            left_out.append(error)
            say(f"{name} left out: no {error.dataset} ({error.reason})")
            continue
        written += write_figure(figure, name, folder, formats=formats, dpi=dpi, say=say)
    if not written:
        raise left_out[0]
    return written


def write_figure(
    figure: Figure, name: str, folder: Path, *, formats: Sequence[str], dpi: int, say: Callable[[str], None]
) -> list[Path]:
    """Write one figure in every format into a folder, which is made when missing; say so and return the files.

    Raises:
        RunDirectoryError: the folder cannot be written.
    """
    files = [folder / f"{name}.{form}" for form in formats]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, form in zip(files, formats, strict=True):
            write_bytes_atomic(file, render(figure, form, dpi=dpi))
    except OSError as error:
        msg = f"{folder} cannot be written ({error.strerror}); choose another folder or free some space"
        raise RunDirectoryError(msg) from error
    say(f"{name} written: {', '.join(file.name for file in files)}")
    return files


def render(figure: Figure, form: str, *, dpi: int = DPI) -> bytes:
    """Return a figure as the bytes of a file; equal figures give equal bytes.

    Args:
        figure: any of the suite's figures.
        form: png, pdf or svg.
        dpi: dots per inch of pixels.
    """
    # Files with the time of drawing inside would differ from one call to the next.
    metadata = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[form]
    buffer = BytesIO()
    with house_style():
        figure.savefig(buffer, format=form, dpi=dpi, metadata=metadata)
    return buffer.getvalue()
