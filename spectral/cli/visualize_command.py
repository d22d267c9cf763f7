"""`python visualize_results.py RUN`: draw a run's figures."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectral.cli.outcome import guarded
from spectral.cli.parsing import parse_or_raise, with_underscores
from spectral.cli.verdict import describe_verdict
from spectral.errors import ConfigError


def visualize(argv: Sequence[str] | None = None) -> int:
    """Draw a run's figures: the command behind `visualize_results.py`. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _visualize(arguments))


def _visualize(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="visualize_results.py",
        description="Draw the figures of a run. Works on finished, running and crashed runs.",
    )
    parser.add_argument("run", help="run folder, for example runs/demo")
    parser.add_argument("--output", default=None, help="folder for the figures; default <run>/figures")
    parser.add_argument("--formats", default="png,pdf", help="comma-separated: png, pdf, svg (default: png,pdf)")
    parser.add_argument("--dpi", type=int, default=150, help="resolution of PNG files (default: 150)")
    chosen = parse_or_raise(parser, with_underscores(arguments))
    formats = tuple(part.strip().lower() for part in chosen.formats.split(",") if part.strip())
    unknown = sorted(set(formats) - {"png", "pdf", "svg"})
    if unknown or not formats:
        raise ConfigError([f"--formats {chosen.formats!r}; use a comma-separated list of png, pdf and svg"])
    if not 30 <= chosen.dpi <= 1200:
        raise ConfigError([f"--dpi {chosen.dpi}; give a resolution between 30 and 1200"])
    from spectral.gih import is_gih_run

    path = Path(chosen.run)
    if is_gih_run(path):
        return _visualize_gih(path, output=chosen.output, formats=formats, dpi=chosen.dpi)
    from spectral.plots.command import draw_run

    written = draw_run(path, output=chosen.output, formats=formats, dpi=chosen.dpi, progress=print)
    from spectral.storage import open_run

    with open_run(path) as run:
        if run.layout.references:  # Markov chains
            written += _draw_acquisition(run, output=chosen.output, formats=formats, dpi=chosen.dpi)
        print(describe_verdict(run.transitions) if run.transitions else f"no verdict yet: the run is {run.status}")
    print(f"{len(written)} files in {written[0].parent if written else chosen.output or path / 'figures'}")
    return 0


def _draw_acquisition(run: Any, *, output: str | None, formats: tuple[str, ...], dpi: int) -> list[Path]:
    """Draw from which observer of Markov chains to which the model passed, and say when."""
    from spectral.plots.gih_acquisition import draw_acquisition

    folder = run.path / "figures" if output is None else Path(output)
    written, passages = draw_acquisition(run, folder, formats=formats, dpi=dpi)
    print(f"staged_acquisition written: {', '.join(file.name for file in written)}\n{passages}")
    return written


def _visualize_gih(path: Path, *, output: str | None, formats: tuple[str, ...], dpi: int) -> int:
    """Draw a run of `spectral train-gih`."""
    from spectral.gih import GIHResults
    from spectral.gih.summary import describe
    from spectral.plots.gih import draw_gih_run

    written = draw_gih_run(path, output=output, formats=formats, dpi=dpi, progress=print)
    print(describe(GIHResults(path)))
    print(f"{len(written)} files in {written[0].parent}")
    return 0
