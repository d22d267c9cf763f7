"""From the command line of `train.py` to a `RunConfig`: presets, files, flags, and what is said about mistakes."""

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from spectral.cli.live import LIVE_FLAGS, add_live_flags
from spectral.cli.parsing import flag_names, parse_known_or_raise, with_underscores
from spectral.config import (
    FIELD_NAMES,
    PRESET_FOLDER,
    TEXT_VOCAB_SIZE,
    RunConfig,
    load_preset,
    preset_names,
    read_settings,
)
from spectral.errors import ConfigError

COMMAND_FLAGS = {
    "preset": "start from a preset: " + ", ".join(preset_names()),
    "config": "YAML or JSON file with settings, for example runs/<run>/config.json to repeat a run",
    "run_name": "name of the run folder; default induction_run_<timestamp>",
    "runs_dir": "where run folders go",
    "overwrite": "replace an earlier run of the same name",
    "resume": "continue the run in this folder from its newest checkpoint, bit for bit",
    "resume_anyway": "resume although the machine or the library versions differ from those of the checkpoint",
    "dry_run": "print the resolved settings, the schedule, the parameter count and a time estimate, then stop",
    "log_to": "tensorboard: keep a copy of the scalars in the run folder, for `tensorboard --logdir runs`; a "
    "resumed run goes on with it by itself",
    "quiet": "no progress output",
    "live": "serve the run's page on this machine while it trains, from a process of its own",
    **LIVE_FLAGS,
}

_SWITCHES = {field.name for field in dataclasses.fields(RunConfig) if isinstance(field.default, bool)}
_LISTS = {field.name for field in dataclasses.fields(RunConfig) if isinstance(field.default, tuple)}


class _Parser(ArgumentParser):
    """A parser whose mistakes end in one line and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Turn a parser's message into one line that names the flag and, where one is close, the right spelling."""
        raise ConfigError([_one_line(message)])


def parse_train(arguments: list[str]) -> tuple[dict[str, Any], RunConfig, dict[str, Any]]:
    """Return the command's own options, the resolved config, and the settings that were given explicitly."""
    if "-h" in arguments or "--help" in arguments:
        _config_parser(with_command_flags=True).print_help()
        raise SystemExit(0)
    options, rest = parse_known_or_raise(_command_parser(), with_underscores(arguments))
    command = vars(options)
    for name in ("preset", "config", "resume"):
        if command[name] == "":
            raise ConfigError([f"--{name} is empty; give a value or leave the flag out"])
    _reject_unknown(rest)
    rest = _with_values(rest)
    layers: list[str] = []
    given: dict[str, Any] = {}
    chosen = set(flag_names(rest))  # by flag or file, not by a preset
    # Precedence is defaults < preset < file < flags; jsonargparse applies sources in order of appearance.
    if command["resume"] is not None:
        layers += _stored_layer(Path(command["resume"]))
    if command["preset"] is not None:
        given |= load_preset(command["preset"])
        layers += ["--config", str(PRESET_FOLDER / f"{command['preset']}.yaml")]
    if command["config"] is not None:
        found = read_settings(Path(command["config"]))
        given |= found
        chosen |= set(found)
        # As text and not as a path: YAML reads `compile: on` as a truth value, `read_settings` as the word.
        layers += ["--config", json.dumps(found, default=str)] if found else []
    parser = _config_parser()
    values = parser.parse_args([*layers, *rest]).as_dict()
    given |= dict.fromkeys(flag_names(rest))
    if values["data"] == "text" and "vocab_size" not in chosen and command["resume"] is None:
        values["vocab_size"] = TEXT_VOCAB_SIZE  # those of the defaults and presets are for synthetic tokens
    return command, RunConfig(**{name: values[name] for name in FIELD_NAMES}), given


def _stored_layer(path: Path) -> list[str]:
    """Return the settings of a run as the lowest layer, so that repeating its own flags is no change."""
    from spectral.storage.run_directory import CONFIG_NAME, read_json, require_run_folder

    require_run_folder(path)
    return ["--config", str(path / CONFIG_NAME)] if set(read_json(path / CONFIG_NAME)) & set(FIELD_NAMES) else []


def _command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train.py", add_help=False, allow_abbrev=False)
    _add_command_flags(parser)
    return parser


def _add_command_flags(parser: Any) -> None:
    for name in ("preset", "config", "run_name", "resume"):
        parser.add_argument(f"--{name}", default=None, help=COMMAND_FLAGS[name])
    parser.add_argument("--log_to", choices=("tensorboard",), default=None, help=COMMAND_FLAGS["log_to"])
    parser.add_argument("--runs_dir", default="runs", help=COMMAND_FLAGS["runs_dir"])
    for name in ("overwrite", "resume_anyway", "dry_run", "quiet", "live"):
        parser.add_argument(f"--{name}", action="store_true", help=COMMAND_FLAGS[name])
    add_live_flags(parser)


def _config_parser(*, with_command_flags: bool = False) -> ArgumentParser:
    parser = _Parser(
        prog="train.py",
        description=(
            "Train a small transformer until induction heads form, and measure its Hessian spectrum, gradient and "
            "attention circuits on the way. Precedence: defaults < --preset < --config < flags."
        ),
        exit_on_error=False,
    )
    if with_command_flags:
        _add_command_flags(parser.add_argument_group("the command"))
    else:
        parser.add_argument("--config", action="config", help=argparse.SUPPRESS)
    parser.add_class_arguments(RunConfig, fail_untyped=True)
    return parser


def _with_values(arguments: Sequence[str]) -> list[str]:
    """Let a switch stand alone (`--use_lr_schedule`) and a list be written as words (`--probe_periods 8 16`)."""
    result: list[str] = []
    i = 0
    while i < len(arguments):
        argument = arguments[i]
        i += 1
        name, equals, value = argument[2:].partition("=") if argument.startswith("--") else ("", "", "")
        values = []
        if equals and name not in _LISTS:
            result.append(argument)
            continue
        if equals:
            argument, values = f"--{name}", [value]
        while name and i < len(arguments) and not arguments[i].startswith("--"):
            values.append(arguments[i])
            i += 1
        if name in _SWITCHES and not values:
            values = ["true"]
        elif name in _LISTS and values and not values[0].startswith("["):
            values = [f"[{','.join(part for value in values for part in value.split(',') if part)}]"]
        result += [argument, *values]
    return result


def _reject_unknown(arguments: Sequence[str]) -> None:
    """Name an unknown flag together with the known one that looks most like it."""
    known = [*FIELD_NAMES, *COMMAND_FLAGS]
    for name in flag_names(arguments):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            remedy = f"did you mean --{close[0]}?" if close else "see python train.py --help"
            raise ConfigError([f"unknown flag --{name}; {remedy}"])


def _one_line(message: str) -> str:
    """Return jsonargparse's message as one line that names the flag and what it wants."""
    text = " ".join(message.split())
    match = re.search(r'[Kk]ey "?([\w.]+)"?', text) or re.search(r"--(\w+)", text)
    flag = f"--{match[1]}" if match and match[1] in FIELD_NAMES else ""
    wanted = re.search(r"Expected an? (.+?)\. Got value: (.+)$", text)
    if flag and wanted:
        kind = re.sub(r"<class '(\w+)'>", r"\1", wanted[1]).replace("typing.", "")
        kind = {"float": "a number", "int": "a whole number", "bool": "true or false"}.get(kind, kind)
        choices = re.fullmatch(r"Literal\[(.+)\]", kind)
        if choices:
            kind = "one of " + choices[1].replace("'", "")
        return f"{flag} is {wanted[2]!r}; give {kind}"
    if flag and "expected one argument" in text:
        return f"{flag} has no value; give one"
    return f"{text}; see python train.py --help"
