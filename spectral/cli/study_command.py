"""`spectral study`: whole experiments, from training to the page that compares their models."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectral.cli.outcome import EXIT_INTERRUPTED, EXIT_USER_ERROR, guarded, report
from spectral.cli.parsing import parse_or_raise, with_underscores
from spectral.errors import ConfigError

if TYPE_CHECKING:
    from spectral.studies.plan import Plan
    from spectral.studies.result import StudyResult

STUDY_FLAGS = {
    "models": "which models to train",
    "seeds": "how many seeds of each: 0, 1, ...",
    "scale": "factor on all numbers of steps, from 0.001 to 1; 0.1 takes a few minutes",
    "jobs": "how many models to train at a time, one thread each; 0 = one per CPU",
    "output": "folder of the study",
    "page_only": "train nothing; write the page over the finished runs of the folder",
    "resume_anyway": "go on with interrupted runs although the machine or the library versions differ",
    "dry_run": "print what would be trained and how long it takes, then stop",
    "quiet": "no progress output",
}

_KEPT = (
    "Finished runs are kept and interrupted ones go on bit for bit, so the command can be stopped at any time and "
    "given again; the page covers every finished run of the folder."
)
STUDIES = {
    "repeated": "The repeated-sequence experiment: trains five attention-only models on repeated blocks, of one length "
    "or of lengths that change from batch to batch, and writes a page that says of every claim of the reference "
    "experiment whether it holds here, from measurements.",
    "controls": "Controls of the transition detector: trains the demo where induction heads form, where none can (one "
    "layer, no repeats, shuffled targets), and where heads that look back a fixed way solve the task, and writes a "
    "page with false alarms, detections, midpoint errors and leads.",
}
_EXAMPLES = {"repeated": "--scale 0.1", "controls": "--models matched no_repeats --seeds 2"}


def study(argv: Sequence[str] | None = None) -> int:
    """Run an experiment: `spectral study repeated`. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        helps = "\n".join(f"spectral study {name} --help" for name in STUDIES)
        print(f"usage: spectral study {{{','.join(STUDIES)}}} ...\n\n{helps}")
        return 0 if arguments else EXIT_USER_ERROR
    if arguments[0] not in STUDIES:
        return report(ConfigError([f"unknown study {arguments[0]!r}; use one of {', '.join(STUDIES)}"]))
    return guarded(lambda: _study(arguments[0], arguments[1:]))


def _study(name: str, arguments: list[str]) -> int:
    plan_of, write_page = _load(name)
    chosen = parse_or_raise(_parser(name, plan_of), with_underscores(arguments))
    if chosen.jobs < 0:
        raise ConfigError([f"--jobs is {chosen.jobs}; give a number of processes, or 0 for one per CPU"])
    if chosen.page_only and chosen.dry_run:
        raise ConfigError(["--dry_run has no meaning together with --page_only; drop one of them"])
    from spectral.studies.progress import StudyProgress, human
    from spectral.studies.result import run_study
    from spectral.studies.training import check_folders, expected_seconds, is_finished
    from spectral.training.memory import keep_freed_memory

    keep_freed_memory()
    plan = plan_of(output=Path(chosen.output), models=tuple(chosen.models), n_seeds=chosen.seeds, scale=chosen.scale)
    jobs = [] if chosen.page_only else plan.jobs()
    check_folders(plan, jobs)
    pending = [job for job in jobs if not is_finished(job)]
    n_parallel = max(1, min(chosen.jobs or _n_cpus(), len(pending)))
    if pending and not (chosen.quiet and not chosen.dry_run):
        seconds = expected_seconds(pending, n_parallel)
        kept = len(jobs) - len(pending)
        print(
            f"{plan.output}: {len(pending)} runs to train{f', {kept} finished already' if kept else ''}; about "
            f"{human(seconds)}, {n_parallel} at a time",
            flush=True,
        )
    if chosen.dry_run:
        for job in jobs:
            state = "to train" if job in pending else "finished"
            print(f"{job.name}: {job.config.num_steps:,} steps, {state}")
        return 0
    progress = None if chosen.quiet else StudyProgress(sum(job.config.num_steps for job in pending))
    tell, say = (progress.tell, progress.say) if progress else (lambda event: None, lambda text: None)
    try:
        if chosen.page_only:
            result = write_page(plan, say)
        else:
            done = run_study(
                plan, write_page, n_parallel=n_parallel, tell=tell, say=say, resume_anyway=chosen.resume_anyway
            )
            if done is None:
                print("interrupted; every running model was saved, give the command again to go on", file=sys.stderr)
                return EXIT_INTERRUPTED
            result = done
    finally:
        if progress is not None:
            progress.close()
    print(result.text)
    print(f"{result.n_runs} runs: {result.page}")
    return 0


def _load(name: str) -> "tuple[type[Plan], Callable[[Any, Callable[[str], None]], StudyResult]]":
    """Return the plan of a study and what writes its page; imported late, as the libraries behind them are large."""
    if name == "repeated":
        from spectral.studies.repeated.plan import StudyPlan
        from spectral.studies.repeated.study import write_page

        return StudyPlan, write_page
    from spectral.studies.controls import study as controls
    from spectral.studies.controls.plan import ControlsPlan

    return ControlsPlan, controls.write_page


def _n_cpus() -> int:
    """Return how many CPUs this process may use; some systems tell only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parser(name: str, plan_of: "type[Plan]") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"spectral study {name}",
        description=f"{STUDIES[name]} {_KEPT}",
        epilog=f"Example: spectral study {name} {_EXAMPLES[name]}",
        allow_abbrev=False,
    )
    defaults = {field: plan_of.__dataclass_fields__[field].default for field in ("output", "n_seeds")}
    add, told = parser.add_argument, STUDY_FLAGS
    listed = ", ".join(plan_of.MODELS)
    add("--models", nargs="+", default=plan_of.MODELS, metavar="NAME", help=f"{told['models']} (default: {listed})")
    add("--seeds", type=int, default=defaults["n_seeds"], metavar="N", help=f"{told['seeds']} (default: %(default)s)")
    add("--scale", type=float, default=1.0, metavar="F", help=f"{told['scale']} (default: 1)")
    add("--jobs", type=int, default=0, metavar="N", help=f"{told['jobs']} (default: 0)")
    add("--output", default=str(defaults["output"]), metavar="DIR", help=f"{told['output']} (default: %(default)s)")
    for flag in ("page_only", "resume_anyway", "dry_run", "quiet"):
        add(f"--{flag}", action="store_true", help=told[flag])
    return parser
