"""Settings from files: presets, and YAML or JSON of the user's own."""

from pathlib import Path
from typing import Any

import yaml

from spectral.config.run_config import FIELD_NAMES
from spectral.errors import ConfigError

PRESET_FOLDER = Path(__file__).parent.parent / "presets"


def preset_names() -> list[str]:
    """Return the names that `--preset` accepts."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """Return the settings of one preset; an unknown name raises `ConfigError` that lists the known ones."""
    if name not in preset_names():
        raise ConfigError([f"--preset {name!r} is unknown; use one of {', '.join(preset_names())}"])
    return read_settings(PRESET_FOLDER / f"{name}.yaml")


def read_settings(path: Path) -> dict[str, Any]:
    """Read settings from a YAML or JSON file.

    Raises:
        ConfigError: the file is missing, is no mapping, or holds a name that is no setting.
    """
    values = read_mapping(path)
    unknown = sorted(str(name) for name in values if name not in FIELD_NAMES)
    if unknown:
        raise ConfigError([f"--config {path} holds the unknown setting {name!r}; remove it" for name in unknown])
    empty = [name for name, value in values.items() if value is None and name != "text_path"]
    if empty:
        raise ConfigError([f"--{name} has no value in --config {path}; give one or remove it" for name in empty])
    if isinstance(values.get("compile"), bool):  # YAML 1.1 takes the words on and off for truth values
        values["compile"] = "on" if values["compile"] else "off"
    return values


def read_mapping(path: Path) -> dict[str, Any]:
    """Read names and values from a YAML or JSON file; an empty file holds none.

    Raises:
        ConfigError: the file is missing, cannot be parsed, or is no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"--config {path} cannot be read ({error}); give a YAML or JSON file"]) from None
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise ConfigError([f"--config {path} is not valid YAML or JSON ({where}); correct it"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"--config {path} must map setting names to values, not hold a {type(values).__name__}"])
    return values
