"""Runs made in this process or in one of their own, and how two of them are compared."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import torch

ROOT = Path(__file__).parents[2]
SMALL = [
    "--preset",
    "tiny",
    "--n_threads",
    "1",
    "--num_steps",
    "12",
    "--eigen_interval",
    "4",
    "--log_interval",
    "2",
    "--checkpoint_interval",
    "4",
    "--keep_checkpoints",
    "0",
    "--track_top_k_eigenvalues",
    "2",
    "--track_negative_eigenvalues",
    "1",
    "--probe_periods",
    "4",
    "6",
]


def train_here(folder, *flags, expect=0):
    """Train in this process into `folder`."""
    from spectral.cli import train

    place = ["--runs_dir", str(folder.parent), "--run_name", folder.name]
    assert train([*SMALL, *place, "--quiet", *flags]) == expect
    return folder


def resume_here(folder, *flags, expect=0):
    from spectral.cli import train

    assert train(["--resume", str(folder), "--quiet", *flags]) == expect
    return folder


def start(*flags, **options):
    """Start `python train.py` in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the awaited moment never came"
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        time.sleep(0.005)


def kill(process, number=signal.SIGKILL):
    """Send a signal and return exit code, standard output and standard error."""
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def events(folder, kind=None):
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if kind is None or line["kind"] == kind]


def checkpoint(folder, step):
    return folder / "checkpoints" / f"step_{step:09d}.pt"


def stored(folder):
    """Every dataset of a closed results file as bytes, without those that hold wall-clock times."""
    found = {}

    def visit(name, node):
        if isinstance(node, h5py.Dataset) and not node.attrs.get("wall_clock"):
            found[name] = (node.shape, node[()].tobytes())

    with h5py.File(folder / "results.h5") as file:
        file.visititems(visit)
        for group in ("train", "behaviour", "hessian", "circuits", "detector"):
            steps = file[group]["step"][()]
            assert (steps[1:] > steps[:-1]).all()
    return found


def differences(one, other):
    """What differs between two finished runs: names of datasets and files."""
    first, second = stored(one), stored(other)
    found = sorted(set(first) ^ set(second)) + sorted(n for n in set(first) & set(second) if first[n] != second[n])
    if not same_weights(one, other):
        found.append("model_final.pt")
    verdicts = [folder / "transitions.json" for folder in (one, other)]
    if len({path.read_text() if path.exists() else None for path in verdicts}) > 1:
        found.append("transitions.json")
    return found


def same_weights(one, other):
    a, b = (torch.load(folder / "model_final.pt", weights_only=True) for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rewrite_checkpoint(folder, step, change):
    """Change the state of a checkpoint and seal it again."""
    from spectral.storage import load_checkpoint, save_checkpoint

    state = load_checkpoint(checkpoint(folder, step))
    change(state)
    save_checkpoint(checkpoint(folder, step), state)


def forget_after(folder, step):
    """Leave a run as a kill between `step` and the next checkpoint would: newer checkpoints and results vanish."""
    for path in (folder / "checkpoints").iterdir():
        if int(path.name[5:14]) > step:
            path.unlink()
    for name in ("model_final.pt", "model_final.pt.sha256", "transitions.json"):
        (folder / name).unlink(missing_ok=True)
    return folder
