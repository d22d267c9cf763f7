"""What the parsers of all commands share: flags in both spellings, and mistakes that end in one line."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from spectral.errors import ConfigError


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """Accept `--eigen-interval 5` for `--eigen_interval 5`."""
    result = []
    for argument in arguments:
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            argument = "--" + flag[2:].replace("-", "_") + equals + value
        result.append(argument)
    return result


def flag_names(arguments: Sequence[str]) -> list[str]:
    """Return the names of the flags, without dashes and values."""
    return [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")]


def parse_or_raise(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse; a mistake raises `ConfigError` instead of printing the usage."""
    parser.error = _raise_config_error  # type: ignore[method-assign]
    return parser.parse_args(arguments)


def parse_known_or_raise(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse what the parser knows and return the rest; a mistake raises `ConfigError`."""
    parser.error = _raise_config_error  # type: ignore[method-assign]
    return parser.parse_known_args(arguments)


def _raise_config_error(message: str) -> NoReturn:
    raise ConfigError([f"{' '.join(message.split())}; see --help"])
