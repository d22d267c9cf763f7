"""`spectral export RUN --format ...`: what a run measured, for other programs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spectral.cli.outcome import guarded
from spectral.cli.parsing import parse_or_raise, with_underscores

EXPORT_FLAGS = {
    "format": "csv or parquet: a folder of tidy tables; netcdf or pkl: one file",
    "output": "folder (csv, parquet) or file (netcdf, pkl) to write; if not given, in the run's folder export/",
    "groups": "these groups or datasets alone, for example hessian circuits/induction_score",
    "overwrite": "replace an earlier export",
}


def export(argv: Sequence[str] | None = None) -> int:
    """Write a run in another format: `spectral export`. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _export(arguments))


def _export(arguments: list[str]) -> int:
    chosen = parse_or_raise(_parser(), with_underscores(arguments))
    from spectral.storage.export import export_run

    select = [word for part in chosen.groups for word in part.split(",") if word]
    target = export_run(
        chosen.run, chosen.format.lower(), output=chosen.output, select=select, overwrite=chosen.overwrite
    )
    files = sorted(target.iterdir()) if target.is_dir() else [target]
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    what = f"{len(files)} files, " if target.is_dir() else ""
    print(f"{Path(chosen.run)}: {what}{megabytes:.1f} MB")
    print(target)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spectral export",
        description="Write everything a run measured in a format of other programs. Works on finished, running and "
        "crashed runs; nothing of the run is changed.",
        epilog="Example: spectral export runs/demo --format csv --groups hessian",
        allow_abbrev=False,
    )
    parser.add_argument("run", help="run folder, for example runs/demo")
    parser.add_argument("--format", required=True, metavar="csv|parquet|netcdf|pkl", help=EXPORT_FLAGS["format"])
    parser.add_argument("--output", default=None, metavar="PLACE", help=EXPORT_FLAGS["output"])
    parser.add_argument("--groups", nargs="+", default=[], metavar="NAME", help=EXPORT_FLAGS["groups"])
    parser.add_argument("--overwrite", action="store_true", help=EXPORT_FLAGS["overwrite"])
    return parser
