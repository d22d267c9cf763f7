"""Which runs are compared, and which of them are repetitions of one experiment."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral.errors import ConfigError, RunDirectoryError, UserError
from spectral.plots.verdict import Verdict, read_verdict
from spectral.storage import Run, open_run
from spectral.storage.run_directory import CONFIG_NAME, RESULTS_NAME

REPETITION = frozenset({"seed", "device", "n_threads", "compile"})
"""Settings in which runs of one group may differ: the seed, and where and how fast a run was made."""

_SHAPE = ("n_layers", "n_heads", "d_head", "vocab_size", "seq_length")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a comparison.

    Attributes:
        name: of its folder, with so many parents as it takes to be unique.
        run: the run.
        verdict: the detector's.
    """

    name: str
    run: Run
    verdict: Verdict

    @property
    def midpoint(self) -> float | None:
        """Step of the detected midpoint; None where no transition was dated."""
        return self.verdict.midpoint


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in the seed alone.

    Attributes:
        label: the settings in which it differs from the other groups; "all runs" when it is the only one.
        members: its runs.
    """

    label: str
    members: tuple[Member, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared.

    Attributes:
        groups: in the order of their first run.
        left_out: name of a run that could not be read, or holds no row yet -> why.
    """

    groups: tuple[Group, ...]
    left_out: dict[str, str]

    @property
    def members(self) -> list[Member]:
        """All runs, group by group."""
        return [member for group in self.groups for member in group.members]

    @property
    def dated(self) -> list[Member]:
        """The runs with a dated transition."""
        return [member for member in self.members if member.midpoint is not None]


def is_run_folder(path: Path) -> bool:
    """Tell whether a path is a run folder or a results file."""
    return path.is_file() or (path / CONFIG_NAME).exists() or (path / RESULTS_NAME).exists()


def read_comparison(paths: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Open runs and group them.

    Args:
        paths: run folders, or folders of run folders.

    Raises:
        RunDirectoryError: a path without runs.
        ConfigError: none of the runs holds anything to compare.
    """
    places = _places([Path(path) for path in paths])
    names = _names(places)
    members: list[Member] = []
    left_out: dict[str, str] = {}
    for name, place in zip(names, places, strict=True):
        try:
            run = open_run(place)
        except UserError as error:
            left_out[name] = str(error)
            continue
        if len(run.steps) == 0:
            left_out[name] = "no snapshot was committed yet"
            continue
        members.append(Member(name=name, run=run, verdict=read_verdict(run)))
    if not members:
        first = next(iter(left_out.items()))
        raise ConfigError([f"none of {len(places)} runs can be compared; {first[0]}: {first[1]}"])
    return Comparison(groups=_groups(members), left_out=left_out)


def _places(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            msg = f"{path} does not exist; check the path"
            raise RunDirectoryError(msg)
        inside = [path] if is_run_folder(path) else sorted(p for p in path.iterdir() if p.is_dir() and is_run_folder(p))
        if not inside:
            msg = f"{path} is no run and holds none; give run folders, or a folder of them"
            raise RunDirectoryError(msg)
        found += inside
    return list({place.resolve(): place for place in found}.values())


def _names(places: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    parts = [place.resolve().parts for place in places]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-n:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _groups(members: Sequence[Member]) -> tuple[Group, ...]:
    facts = [_facts(member.run) for member in members]
    # A setting that one of the runs does not know, being of another version, tells nothing apart.
    shared = [name for name in facts[0] if all(name in other for other in facts)]
    keys = [tuple((name, _plain(fact[name])) for name in shared) for fact in facts]
    by_key: dict[tuple[Any, ...], list[Member]] = {}
    for key, member in zip(keys, members, strict=True):
        by_key.setdefault(key, []).append(member)
    differing = [name for i, name in enumerate(shared) if len({key[i] for key in keys}) > 1]
    if any(name in member.run.config for member in members for name in differing):
        differing = [name for name in differing if name in members[0].run.config]  # sizes follow from settings
    telling = _telling([dict(key) for key in by_key], differing)
    labels = [_label(dict(key), telling, len(differing) - len(telling)) for key in by_key]
    return tuple(Group(label=label, members=tuple(mine)) for label, mine in zip(labels, by_key.values(), strict=True))


def _telling(keys: Sequence[dict[str, Any]], differing: Sequence[str]) -> list[str]:
    """Return few settings that tell all groups apart, chosen one by one: the one that splits them furthest."""

    def parts(names: Sequence[str]) -> int:
        return len({tuple(key[name] for name in names) for key in keys})

    chosen: list[str] = []
    while parts(chosen) < len(keys):
        chosen.append(max(differing, key=lambda name: parts([*chosen, name])))
    return chosen


def _facts(run: Run) -> dict[str, Any]:
    settings = {name: value for name, value in run.config.items() if name not in REPETITION}
    return settings | {f"layout {name}": getattr(run.layout, name) for name in _SHAPE}


def _label(key: dict[str, Any], telling: Sequence[str], n_others: int) -> str:
    if not telling:
        return "all runs"
    also = f" ({n_others} other settings differ too)" if n_others else ""
    return ", ".join(f"{name} {key[name]}" for name in telling) + also


def _plain(value: Any) -> Any:
    """Return a setting in a form that can be compared and hashed."""
    return tuple(map(_plain, value)) if isinstance(value, list) else str(value) if isinstance(value, dict) else value
