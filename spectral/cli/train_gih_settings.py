"""From the command line of `spectral train-gih` to the settings: presets, files, flags, and mistakes in one line."""

import argparse
import dataclasses
import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectral.cli.parsing import flag_names, parse_or_raise, with_underscores
from spectral.errors import ConfigError

TRAIN_GIH_FLAGS = {
    "preset": "start from a preset: gih_three_stage, gih_three_stage_sharp, gih_joint, gih_full",
    "config": "YAML or JSON file with settings, for example runs/<run>/config.json to repeat a run",
    "run_name": "name of the run folder; default gih_run_<timestamp>",
    "runs_dir": "where run folders go",
    "overwrite": "replace an earlier run of the same name",
    "resume": "continue the run in this folder from its newest checkpoint, bit for bit",
    "resume_anyway": "resume although the library versions or the threads differ from those of the checkpoint",
    "dry_run": "print the resolved settings, the stages and a time estimate, then stop",
    "quiet": "no progress output",
}


def parse_train_gih(arguments: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the command's own options, and the settings that preset, file and flags give (the later ones win)."""
    from spectral.gih.config import GIHConfig

    parser, words = _parser(), with_underscores(arguments)
    _reject_unknown(words)
    chosen = vars(parse_or_raise(parser, words))
    for name in ("preset", "config", "resume"):
        if chosen[name] == "":
            raise ConfigError([f"--{name} is empty; give a value or leave the flag out"])
    names = [field.name for field in dataclasses.fields(GIHConfig)]
    flags = {name: chosen[name] for name in names if chosen[name] is not None}
    return {name: chosen[name] for name in TRAIN_GIH_FLAGS}, _layers(chosen, parser, names) | flags


def _layers(chosen: dict[str, Any], parser: argparse.ArgumentParser, names: list[str]) -> dict[str, Any]:
    """Return the settings of preset and file, the file's over the preset's, checked as flags are."""
    from spectral.gih.config import load_gih_preset, read_gih_settings

    found: dict[str, Any] = {}
    if chosen["preset"] is not None:
        found |= load_gih_preset(chosen["preset"])
    if chosen["config"] is not None:
        found |= read_gih_settings(Path(chosen["config"]))
    words: list[str] = []
    for name, value in found.items():
        if isinstance(value, list | tuple):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    parsed = vars(parse_or_raise(parser, words))
    return {name: parsed[name] for name in names if parsed[name] is not None}


def _parser() -> argparse.ArgumentParser:
    from spectral.gih.config import GIHConfig

    parser = argparse.ArgumentParser(
        prog="spectral train-gih",
        description=(
            "Train the disentangled transformer on Markov chains until it is a generalised induction head, stage by "
            "stage: which past tokens matter (c), where to look (w), how sharply to attend (a). The published schedule "
            "of 57,000 epochs takes a few minutes. Precedence: defaults < --preset < --config < flags."
        ),
        epilog="Example: spectral train-gih --preset gih_three_stage --run_name three_stage",
        allow_abbrev=False,
    )
    command = parser.add_argument_group("the command")
    for name in ("preset", "config", "run_name", "resume"):
        command.add_argument(f"--{name}", default=None, metavar="NAME", help=TRAIN_GIH_FLAGS[name])
    command.add_argument("--runs_dir", default="runs", metavar="DIR", help=TRAIN_GIH_FLAGS["runs_dir"])
    for name in ("overwrite", "resume_anyway", "dry_run", "quiet"):
        command.add_argument(f"--{name}", action="store_true", help=TRAIN_GIH_FLAGS[name])
    settings = parser.add_argument_group("the experiment; lists have one entry per stage, or one for all")
    kinds, texts = typing.get_type_hints(GIHConfig), _help_texts(GIHConfig.__doc__ or "")
    for field in dataclasses.fields(GIHConfig):
        kind: Any = kinds[field.name]
        options: dict[str, Any] = {}
        if typing.get_origin(kind) is tuple:
            kind, options = typing.get_args(kind)[0], {"nargs": "+"}
        if typing.get_origin(kind) is typing.Literal:
            options["choices"] = typing.get_args(kind)
            kind = str
        default = field.default if not isinstance(field.default, tuple) else " ".join(map(str, field.default))
        help_text = f"{texts[field.name]} (default: {default})".replace("%", "%%")
        if "nargs" in options:
            options["action"] = _List
        settings.add_argument(
            f"--{field.name}", type=kind, default=None, metavar=_metavar(kind, options), help=help_text, **options
        )
    return parser


class _List(argparse.Action):
    """Stores a list as the tuple that the settings hold."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def _metavar(kind: Any, options: dict[str, Any]) -> str | None:
    return None if "choices" in options else {int: "N", float: "X"}.get(kind, "NAME")


def _help_texts(docstring: str) -> dict[str, str]:
    """Return what the docstring of the settings says about each of them."""
    from docstring_parser import parse

    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in parse(docstring).params}


def _reject_unknown(arguments: Sequence[str]) -> None:
    """Name an unknown flag together with the known one that looks most like it."""
    from spectral.gih.config import GIHConfig

    known = [*(field.name for field in dataclasses.fields(GIHConfig)), *TRAIN_GIH_FLAGS, "help"]
    for name in flag_names(arguments):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            remedy = f"did you mean --{close[0]}?" if close else "see spectral train-gih --help"
            raise ConfigError([f"unknown flag --{name}; {remedy}"])
