"""`spectral detect RUN`: the detector over a stored run, as a table and as `transitions.json`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectral.cli.outcome import guarded
from spectral.cli.parsing import parse_or_raise, with_underscores
from spectral.cli.verdict import describe_verdict
from spectral.errors import ConfigError, RunDirectoryError

DETECT_FLAGS = {
    "signals": "judge these alone: families (behaviour, circuits, spectrum or hessian) or names of signals. A single "
    "family decides by a single signal, with the false-alarm rate of one",
    "significance": "level of the corrected p-values; the run's own if not given",
    "output": "JSON file to write; if not given, transitions.json in the run folder, or with a choice of signals "
    "transitions_<choice>.json there, and transitions_so_far.json for a run that has not finished",
}
_ALIASES = {"hessian": "spectrum"}
_FAMILIES = ("behaviour", "circuits", "spectrum")


def detect(argv: Sequence[str] | None = None) -> int:
    """Judge a stored run: `spectral detect`. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _detect(arguments))


def _detect(arguments: list[str]) -> int:
    chosen = parse_or_raise(_parser(), with_underscores(arguments))
    if chosen.significance is not None and not 0 < chosen.significance < 1:
        raise ConfigError([f"--significance {chosen.significance}; give a level between 0 and 1, for example 0.01"])
    words = [word for part in chosen.signals for word in part.split(",") if word]
    select = _choice(words)
    from spectral.storage import open_run, write_text_atomic
    from spectral.storage.run_directory import plain_json
    from spectral.training import judge_run, verdict_document

    path = Path(chosen.run)
    with open_run(path) as run:
        level = chosen.significance or float(run.config.get("significance", 0.01))
        try:
            verdict = judge_run(run, significance=level, select=select)
        except ValueError as error:
            raise ConfigError([f"--signals {' '.join(words)}: {error}"]) from error
        if verdict is None:
            msg = f"{run.path} holds no snapshot yet; wait for the first one, or train with --eigen_interval"
            raise RunDirectoryError(msg)
        document = verdict_document(run, verdict)
        # A run that goes on writes its own verdict when it ends.
        part = "_".join(words) or ("" if run.status == "finished" else "so_far")
        name = f"transitions_{part}.json" if part else "transitions.json"
        target = Path(chosen.output) if chosen.output else run.path / name
    try:
        write_text_atomic(target, json.dumps(plain_json(document), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        msg = f"{target} could not be written ({error.strerror}); choose another place with --output"
        raise RunDirectoryError(msg) from error
    _print_tables(document)
    print(describe_verdict(document))
    print(target)
    return 0


def _choice(words: Sequence[str]) -> list[str]:
    """Return families and names of signals as the detector calls them."""
    from spectral.detection.signals import FAMILY_OF

    asked = [_ALIASES.get(word, word) for word in words]
    known = [*_FAMILIES, *FAMILY_OF]
    for word in asked:
        if word not in known:
            raise ConfigError([f"--signals {word!r} is unknown; use some of hessian, {', '.join(known)}"])
    return asked


def _print_tables(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 130)
    table = Table(title="signals", title_justify="left")
    for heading in ("signal", "family", "verdict", "onset", "midpoint (90 %)", "end", "abruptness", "p", "Holm p"):
        table.add_column(heading, justify="left" if heading in ("signal", "family", "verdict") else "right")
    for name, found in document["signals"].items():
        reason = f" ({found['reason'].replace('_', ' ')})" if found["reason"] else ""
        table.add_row(
            name,
            found["family"],
            found["verdict"] + reason,
            _step(found["onset"]),
            _step(found["midpoint"]) + _interval(found["interval"]),
            _step(found["end"]),
            "" if found["abruptness"] is None else f"{found['abruptness']:.1f}",
            _p(found["p_value"]),
            _p(found["holm_p"]),
        )
    console.print(table)
    if document["lead_lag"]:
        pairs = Table(title="which moved first (steps; negative: the first one)", title_justify="left")
        for heading in ("first", "second", "difference (90 %)", "Holm p", "certain"):
            pairs.add_column(heading, justify="right" if heading in ("difference (90 %)", "Holm p") else "left")
        for pair in document["lead_lag"]:
            low, high = pair["interval"]
            pairs.add_row(
                f"{pair['first']} ({pair['first_family']})",
                f"{pair['second']} ({pair['second_family']})",
                f"{pair['difference']:+.0f} ({low:+.0f} to {high:+.0f})",
                _p(pair["holm_p"]),
                "yes" if pair["resolved"] else "no",
            )
        console.print(pairs)
    for name, bumps in document["bumps"].items():
        places = ", ".join(f"{bump['peak']:.0f}" for bump in bumps)
        print(f"bump in {name} at step {places}: rises and comes back, so no transition")
    for name, (here, there) in document["log_axis_changes"].items():
        print(f"{name} is {here}, but {there} on a logarithmic step axis")


def _step(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _interval(value: Sequence[float] | None) -> str:
    return "" if value is None else f" ({value[0]:.0f} to {value[1]:.0f})"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spectral detect",
        description="Look for abrupt transitions in a finished, running or crashed run: per signal with intervals and "
        "p-values, over the families of signals, and which moved first. Prints tables and writes JSON.",
    )
    parser.add_argument("run", help="run folder, for example runs/demo")
    parser.add_argument("--signals", nargs="+", default=[], metavar="NAME", help=DETECT_FLAGS["signals"])
    parser.add_argument("--significance", type=float, default=None, help=DETECT_FLAGS["significance"])
    parser.add_argument("--output", default=None, help=DETECT_FLAGS["output"])
    return parser
