"""`spectral train-gih`: train the disentangled transformer on Markov chains, stage by stage."""

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectral.cli.outcome import EXIT_INTERRUPTED, guarded
from spectral.cli.train_gih_settings import parse_train_gih
from spectral.errors import ConfigError


def train_gih(argv: Sequence[str] | None = None) -> int:
    """Train the disentangled transformer: `spectral train-gih`. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _train_gih(arguments))


def _train_gih(arguments: list[str]) -> int:
    chosen, settings = parse_train_gih(arguments)
    if chosen["resume"] is not None:
        return _resume(chosen, settings)
    from spectral.gih.config import GIHConfig

    config = GIHConfig(**settings)
    if chosen["dry_run"]:
        return _dry_run(config)
    from spectral.storage import RunDirectory

    path = _run_path(chosen)
    with RunDirectory.create(path, config.to_dict(), overwrite=chosen["overwrite"]) as directory:
        return _run(config, directory, chosen, resume=False)


def _resume(chosen: dict[str, Any], settings: dict[str, Any]) -> int:
    from spectral.gih.config import GIHConfig
    from spectral.gih.results import GIHResults, is_gih_run
    from spectral.storage import RunDirectory

    path = Path(chosen["resume"])
    for name in ("run_name", "overwrite", "dry_run"):
        if chosen[name]:
            raise ConfigError([f"--{name} has no meaning together with --resume; drop one of them"])
    with RunDirectory.open(path, for_writing=True) as directory:
        if not is_gih_run(path):
            raise ConfigError([f"--resume {path} is no run of train-gih; go on with python train.py --resume {path}"])
        config = GIHConfig.from_dict(directory.config)
        for name, value in settings.items():
            if value != getattr(config, name):
                raise ConfigError(
                    [
                        f"--{name} {value} differs from the {getattr(config, name)} of {path}; a resumed run keeps its "
                        "settings: drop the flag, or start a new run with --config"
                    ]
                )
        if directory.results_path.exists() and GIHResults(path).status == "finished":
            print(f"{path} is finished already")
            print(_summary(path))
            return 0
        return _run(config, directory, chosen, resume=True)


def _run(config: Any, directory: Any, chosen: dict[str, Any], *, resume: bool) -> int:
    from spectral.gih.session import GIHSession

    display = None if chosen["quiet"] else _Display(config)
    session = GIHSession(
        config,
        directory,
        resume=resume,
        resume_anyway=chosen["resume_anyway"],
        show=display.show if display else None,
        say=display.say if display else None,
    )
    if display:
        display.start(session, directory.path)
    started = time.process_time()
    try:
        outcome = session.train()
    finally:
        if display:
            display.close()
    path = directory.path
    if not outcome.finished:
        print(f"interrupted; go on with: spectral train-gih --resume {path}", file=sys.stderr)
        return EXIT_INTERRUPTED
    cpu = time.process_time() - started
    print(f"{path}: {outcome.n_rows} rows in {outcome.seconds:.0f} s ({cpu:.0f} s of processor time)")
    print(_summary(path))
    print(f"figures: python visualize_results.py {path}")
    return 0


def _summary(path: Path) -> str:
    from spectral.gih.results import GIHResults
    from spectral.gih.summary import describe

    return describe(GIHResults(path))


class _Display:
    """The progress bar of an experiment, in epochs of all stages; a stage that follows a flow counts as one."""

    def __init__(self, config: Any) -> None:
        from spectral.training.progress import Progress

        self._stages = config.stages()
        self._sizes = [1 if stage.flow_time else stage.epochs for stage in self._stages]
        self._loss = f"train_{config.loss}"
        self._bar, self._shown = Progress(sum(self._sizes)), 0.0
        self._stage = -1
        self._started = False

    def start(self, session: Any, path: Path) -> None:
        rows, config = session.rows, session.config
        done = self._done(rows[-1].stage, rows[-1].time) if rows else 0
        self._stage = rows[-1].stage if rows else -1
        self._bar.start(done)
        self._started = True
        found = session.extras.information
        best = f", information set {list(found.information_set)}" if found is not None else ""
        self.say(
            f"{path}: {config.n_sample:,} chains of {config.seq_length} tokens, parents {list(config.lags)}, "
            f"{config.n_heads} heads{best}{f', from row {len(rows)}' if rows else ''}"
        )

    def show(self, progress: Any, row: Any) -> None:
        now = time.monotonic()
        if progress.stage != self._stage:
            self._stage = progress.stage
            stage = self._stages[self._stage]
            self.say(f"stage {self._stage + 1} of {len(self._stages)}: {'+'.join(stage.train)}, {stage.length}")
        if row is None and now - self._shown < 0.1:
            return
        self._shown = now
        facts = {} if row is None else {"loss": getattr(row, self._loss), "p": row.shares.max().item(), "a": row.a}
        self._bar.update(self._done(progress.stage, progress.time), **facts)

    def say(self, text: str) -> None:
        self._bar.message(text)

    def close(self) -> None:
        self._bar.close()

    def _done(self, stage: int, time_in_stage: float) -> int:
        flow = self._stages[stage].flow_time
        inside = int(time_in_stage >= flow) if flow else int(time_in_stage)
        return sum(self._sizes[:stage]) + inside


def _dry_run(config: Any) -> int:
    import yaml

    from spectral.gih.estimate import describe_estimate

    print(yaml.safe_dump(config.to_dict(), sort_keys=False).rstrip())
    print()
    print(describe_estimate(config))
    return 0


def _run_path(chosen: dict[str, Any]) -> Path:
    folder, name = Path(chosen["runs_dir"]), chosen["run_name"]
    if name is None:
        name = stem = f"gih_run_{time.strftime('%Y%m%d_%H%M%S')}"
        n = 1
        while (folder / name).exists():  # two runs started within one second
            n += 1
            name = f"{stem}_{n}"
    if not re.fullmatch(r"[\w.+=-][\w.+= -]*", name) or name in (".", ".."):
        raise ConfigError([f"--run_name {name!r} cannot name a folder; use letters, digits, '-', '_' and '.'"])
    return folder / str(name)
