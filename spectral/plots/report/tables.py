"""Tables of the page: the detector's verdict per signal, leads and lags, settings, and how to repeat the run."""

import dataclasses
import shlex
from typing import Any

from spectral.config import RunConfig
from spectral.errors import UserError
from spectral.plots.verdict import REASONS
from spectral.storage import Run


def signal_rows(run: Run) -> list[list[str]]:
    """Return one row per judged signal: signal, family, verdict, onset, midpoint with interval, end, corrected p."""
    rows = []
    for name, signal in (run.transitions.get("signals") or {}).items():
        if not isinstance(signal, dict):
            continue
        why = REASONS.get(str(signal.get("reason")), "")
        word = _words(signal.get("verdict", "?"))
        rows.append(
            [
                _words(name),
                str(signal.get("family", "")),
                f"{word}: {why}" if why else word,
                _step(signal.get("onset")),
                _step(signal.get("midpoint")) + _interval(signal.get("interval")),
                _step(signal.get("end")),
                _number(signal.get("holm_p", signal.get("p_value")), ".2g"),
            ]
        )
    return rows


def lead_lag_rows(run: Run) -> list[list[str]]:
    """Return one row per pair of signals: both, steps between them, 90 % interval, corrected p, what it means."""
    rows = []
    for pair in run.transitions.get("lead_lag") or []:
        if not isinstance(pair, dict):
            continue
        first, second = _words(pair.get("first")), _words(pair.get("second"))
        lag = pair.get("difference")
        early, late = (first, second) if isinstance(lag, int | float) and lag < 0 else (second, first)
        meaning = f"{early} before {late}" if pair.get("resolved") else "order not certain"
        rows.append(
            [
                first,
                second,
                _number(lag, "+,.0f"),
                _interval(pair.get("interval"), sign="+").strip(),
                _number(pair.get("holm_p", pair.get("p_value")), ".2g"),
                meaning,
            ]
        )
    return rows


def config_rows(run: Run) -> list[tuple[str, str, bool]]:
    """Return (setting, value, whether it differs from the default), settings of the suite first."""
    defaults = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    rows = []
    for name, value in run.config.items():
        default = defaults.get(name)
        same = name in defaults and _listed(value) == _listed(default)
        rows.append((name, _shown(value), not same))
    return rows


def commands(run: Run) -> list[tuple[str, str]]:
    """Return (what it does, command line) to repeat and to look at the run; empty for runs of other programs."""
    found: list[tuple[str, str]] = []
    flags = repeat_flags(run)
    if flags is not None:
        folder = shlex.quote(str(run.path))
        found.append(("Repeat the run from its folder", f"python train.py --config {folder}/config.json"))
        found.append(("Repeat it from this page alone", " ".join(["python train.py", *map(shlex.quote, flags)])))
    return found


def repeat_flags(run: Run) -> list[str] | None:
    """Return the flags of `train.py` that resolve to the run's settings, None where they are not the suite's."""
    try:
        config = RunConfig.from_dict(run.config)
    except (UserError, TypeError, KeyError):
        return None
    flags: list[str] = []
    for field in dataclasses.fields(RunConfig):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        if isinstance(value, tuple):
            flags += [f"--{field.name}", *map(str, value)] if value else []
        else:
            flags += [f"--{field.name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return flags


def facts(run: Run) -> list[tuple[str, str]]:
    """Return where the run came from: versions, device, revision, sizes."""
    root = run.root_attributes
    wanted = {
        "created_utc": "started (UTC)", "n_parameters": "parameters", "device": "device", "n_threads": "threads",
        "torch_version": "torch", "package_version": "spectral-transitions", "git_revision": "revision",
        "schema_version": "schema of results.h5",
    }  # fmt: skip
    return [(label, _shown(root[name])) for name, label in wanted.items() if root.get(name) not in (None, "")]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "–"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def _number(value: Any, form: str) -> str:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return format(value, form) if known else "–"


def _step(value: Any) -> str:
    return _number(value, ",.0f")


def _interval(bounds: Any, sign: str = "") -> str:
    if not isinstance(bounds, list) or len(bounds) != 2 or not all(isinstance(bound, int | float) for bound in bounds):
        return ""
    low, high = (format(float(bound), f"{sign},.0f") for bound in sorted(bounds))
    return f" [{low}, {high}]"


def _words(name: object) -> str:
    return str(name).replace("_", " ")
