"""One run of a study in a process of its own: `python -m spectral.studies.worker MODEL PATH SETTINGS`.

What happens goes to standard output, one JSON object a line. SIGTERM ends the run with a checkpoint, and so does a
reader that has gone away: nobody would know of a run that went on alone.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from spectral.errors import UserError
from spectral.studies.plan import Job
from spectral.studies.training import train_run
from spectral.training.memory import keep_freed_memory


def main() -> int:
    """Train one run; return 0 when it is finished or saved, 1 when it was refused or failed."""
    parser = argparse.ArgumentParser(prog="spectral.studies.worker")
    parser.add_argument("model")
    parser.add_argument("path", type=Path)
    parser.add_argument("settings", type=json.loads, help="JSON")
    parser.add_argument("--resume_anyway", action="store_true")
    chosen = parser.parse_args()
    keep_freed_memory()
    try:
        job = Job(model=chosen.model, seed=chosen.settings["seed"], settings=chosen.settings, path=chosen.path)
        train_run(job, tell=tell, resume_anyway=chosen.resume_anyway)
    except UserError as error:
        tell({"event": "error", "text": str(error)})
        return 1
    except KeyboardInterrupt:
        return 1
    return 0


def tell(event: dict[str, Any]) -> None:
    """Write one event; where nobody reads any more, ask the run to save itself and stop."""
    try:
        print(json.dumps(event), flush=True)
    except BrokenPipeError:
        # What is still in the buffer would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
