"""`python train.py`: train, measure, store, detect."""

import datetime
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectral.cli.live import live_page_beside
from spectral.cli.outcome import EXIT_INTERRUPTED, guarded
from spectral.cli.settings import parse_train
from spectral.cli.verdict import describe_verdict
from spectral.config import RunConfig
from spectral.errors import ConfigError


def train(argv: Sequence[str] | None = None) -> int:
    """Train, measure, store, detect: the command behind `train.py`. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _train(arguments))


def _train(arguments: list[str]) -> int:
    command, config, given = parse_train(arguments)
    if command["resume"] is not None:
        return _resume(command, config, given)
    if command["dry_run"]:
        return _dry_run(config)
    from spectral.storage import RunDirectory
    from spectral.training.setup import check_runnable
    from spectral.training.tensorboard import require_tensorboard

    path = _run_path(command)
    check_runnable(config)  # before anything is written or, with --overwrite, deleted
    if command["log_to"]:
        require_tensorboard()
    with (
        live_page_beside(command) as show,
        RunDirectory.create(path, config.to_dict(), overwrite=command["overwrite"]) as directory,
    ):
        show(path)
        return _run(config, directory, command, resume=False)


def _resume(command: dict[str, Any], config: RunConfig, given: dict[str, Any]) -> int:
    from spectral.storage import RunDirectory

    path = Path(command["resume"])
    for name in ("run_name", "overwrite", "dry_run"):
        if command[name]:
            raise ConfigError([f"--{name} has no meaning together with --resume; drop one of them"])
    with live_page_beside(command) as show, RunDirectory.open(path, for_writing=True) as directory:
        stored = RunConfig.from_dict(directory.config)
        _require_device(stored, path)
        wanted = config.to_dict()
        kept = stored.to_dict()
        changed = [name for name in given if wanted[name] != kept[name]]
        if changed:
            name = changed[0]
            raise ConfigError(
                [
                    f"--{name} {wanted[name]} differs from the {kept[name]} of {path}; a resumed run keeps "
                    "its settings: drop the flag, or start a new run with --config"
                ]
            )
        show(path)
        return _run(stored, directory, command, resume=True)


def _require_device(stored: RunConfig, path: Path) -> None:
    from spectral.training.setup import select_device

    try:
        select_device(stored.device)
    except ConfigError:
        raise ConfigError(
            [
                f"--resume {path}: the run needs --device {stored.device}, which this machine does not have; go on "
                f"where there is one, or repeat the run here with --config {path}/config.json --device cpu"
            ]
        ) from None


def _run(config: RunConfig, directory: Any, command: dict[str, Any], *, resume: bool) -> int:
    from spectral.training import Progress, Trainer
    from spectral.training.memory import keep_freed_memory

    keep_freed_memory()
    progress = None if command["quiet"] else Progress(config.num_steps)
    trainer = Trainer(
        config,
        directory,
        resume=resume,
        resume_anyway=command["resume_anyway"],
        progress=progress,
        tensorboard=_wants_tensorboard(command, directory.path, progress),
    )
    if progress is not None:
        progress.start(trainer.completed)
        progress.message(_opening_line(trainer))
        if resume and trainer.finished:
            progress.message(f"{directory.path} is finished already; only its verdict is computed again")
    try:
        outcome = trainer.run()
    finally:
        if progress is not None:
            progress.close()
    path = directory.path
    if not outcome.finished:
        print(f"interrupted at step {outcome.step}; go on with: python train.py --resume {path}", file=sys.stderr)
        return EXIT_INTERRUPTED
    share = outcome.measuring_seconds / outcome.seconds if outcome.seconds > 0 else 0.0
    print(f"{path}: {outcome.step} steps in {outcome.seconds:.0f} s, {share:.0%} of it measuring")
    if outcome.verdict is not None:
        from spectral.storage import open_run

        with open_run(path) as run:
            print(describe_verdict(run.transitions))
    print(f"figures: python visualize_results.py {path}")
    return 0


def _wants_tensorboard(command: dict[str, Any], run: Path, progress: Any) -> bool:
    """Tell whether to keep a log for TensorBoard: when asked, and when a resumed run has one."""
    from spectral.training.tensorboard import FOLDER, require_tensorboard

    if command["log_to"] or not (run / FOLDER).exists():
        if command["log_to"]:
            require_tensorboard()
        return bool(command["log_to"])
    try:
        require_tensorboard()
    except ConfigError as error:
        if progress is not None:
            progress.message(f"{run / FOLDER} is not continued: {error}")
        return False
    return True


def _opening_line(trainer: Any) -> str:
    config = trainer.config
    n = sum(parameter.numel() for parameter in trainer.model.parameters())
    snapshots = len(config.snapshot_steps())
    start = f", from step {trainer.completed}" if trainer.completed else ""
    return (
        f"{trainer.directory.path}: {config.data} data, {config.n_layers} layers x {config.n_heads} heads, "
        f"{n:,} parameters, {config.num_steps} steps, {snapshots} snapshots, on {trainer.device}{start}"
    )


def _dry_run(config: RunConfig) -> int:
    import yaml

    from spectral.training.estimate import estimate
    from spectral.training.memory import keep_freed_memory

    keep_freed_memory()
    print(yaml.safe_dump(config.to_dict(), sort_keys=False).rstrip())
    print()
    print(estimate(config).describe())
    return 0


def _run_path(command: dict[str, Any]) -> Path:
    name = command["run_name"]
    if name is None:
        name = stem = f"induction_run_{datetime.datetime.now():%Y%m%d_%H%M%S}"
        n = 1
        while Path(str(command["runs_dir"]), name).exists():  # two runs started within one second
            n += 1
            name = f"{stem}_{n}"
    if not re.fullmatch(r"[\w.+=-][\w.+= -]*", name) or name in (".", ".."):
        raise ConfigError([f"--run_name {name!r} cannot name a folder; use letters, digits, '-', '_' and '.'"])
    return Path(str(command["runs_dir"]), str(name))
