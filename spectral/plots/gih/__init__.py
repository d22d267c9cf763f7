"""All figures of an experiment on generalised induction heads, and drawing them into its folder."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from spectral.gih import GIHResults
from spectral.plots.command import write_figure
from spectral.plots.gih.generalisation import generalisation
from spectral.plots.gih.losses import hessian_eigenvalues, losses
from spectral.plots.gih.source import MissingPartError
from spectral.plots.gih.stages import stages
from spectral.plots.gih.weights import relative_positions

GIH_FIGURES: dict[str, Callable[[GIHResults], Figure]] = {
    "stages": stages,
    "relative_positions": relative_positions,
    "losses": losses,
    "hessian_eigenvalues": hessian_eigenvalues,
    "generalisation": generalisation,
}
"""Name, which is also the file name -> function from a run to a figure."""


def draw_gih_run(
    run_path: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    formats: Sequence[str] = ("png", "pdf"),
    dpi: int = 160,
    progress: Callable[[str], None] | None = None,
) -> list[Path]:
    """Draw every figure that an experiment has data for; return the files written.

    Args:
        run_path: a run folder of `spectral train-gih`; live and dead runs are drawn as far as they got.
        output: folder for the files; None takes `figures` in the run folder.
        formats: png, pdf, svg.
        dpi: of PNG files.
        progress: receives one line per figure.

    Raises:
        RunDirectoryError: no run there, or the output folder cannot be written. ResultsFileError: a damaged file.
    """
    say = progress or (lambda line: None)
    run = GIHResults(run_path)
    folder = run.path / "figures" if output is None else Path(output)
    written: list[Path] = []
    for name, draw in GIH_FIGURES.items():
        try:
            figure = draw(run)
        except MissingPartError as error:
            say(f"{name} left out: {error}")
            continue
        written += write_figure(figure, name, folder, formats=formats, dpi=dpi, say=say)
    return written
