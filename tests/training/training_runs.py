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
        for group in ("train", "behaviour", "hessian", "circuits", "detector", "causal"):
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


SMALLEST = (
    "--d_model 4 --n_layers 1 --vocab_size 6 --seq_length 10 --min_period 3 --max_period 4 --lr 0.02 "
    "--eigen_interval 6 --checkpoint_interval 6 --track_top_k_eigenvalues 4 --track_negative_eigenvalues 2"
)
"""A run so small that its Hessian can be written out."""

EVERYTHING = (
    "--track_preconditioned 2 --track_ggn 2 --density_steps 6 --density_probes 2 --trace_products 9 "
    "--block_spectra layers L0H1.QK embedding --block_top_k 2 --audit_interval 2 --causal snapshots"
)
"""Every measurement that a flag adds."""


class Dense:
    """The explicit float64 matrices of a `SMALLEST` run at one checkpoint, on the probe that its file holds."""

    def __init__(self, folder, step):
        from spectral.config import RunConfig
        from spectral.models import Transformer

        self.config = RunConfig.from_dict(json.loads((folder / "config.json").read_text()))
        self.state = torch.load(checkpoint(folder, step), weights_only=True)
        self.model = Transformer.from_config(self.config).double().eval()
        self.model.load_state_dict({name: tensor.double() for name, tensor in self.state["model"].items()})
        with h5py.File(folder / "results.h5") as file:
            self.tokens = torch.from_numpy(file["probes/curvature_tokens"][()]).long()
        self.shapes = {name: parameter.shape for name, parameter in self.model.named_parameters()}
        self.weights = torch.nn.utils.parameters_to_vector(self.model.parameters()).detach()

    def logits(self, vector):
        pieces = torch.split(vector, [shape.numel() for shape in self.shapes.values()])
        weights = {n: piece.view(shape) for (n, shape), piece in zip(self.shapes.items(), pieces, strict=True)}
        found = torch.func.functional_call(self.model, weights, (self.tokens,))[:, :-1]
        return found.reshape(-1, found.shape[-1])

    @property
    def hessian(self):
        targets = self.tokens[:, 1:].reshape(-1)
        H = torch.autograd.functional.hessian(
            lambda vector: torch.nn.functional.cross_entropy(self.logits(vector), targets), self.weights
        )
        return (H + H.T) / 2

    @property
    def gauss_newton(self):
        """sum over positions of J' (diag p - p p') J / N."""
        J = torch.autograd.functional.jacobian(self.logits, self.weights)
        p = self.logits(self.weights).softmax(dim=1).detach()
        return torch.einsum("ova,ov,ovb->ab", J, p, J) / len(p) - torch.einsum("ova,ov,ow,owb->ab", J, p, p, J) / len(p)

    @property
    def adam(self):
        """The diagonal by which Adam divided its last step."""
        state = self.state["optimizer"]["state"]
        group = self.state["optimizer"]["param_groups"][0]
        parts = []
        for i in group["params"]:
            t = float(state[i]["step"])
            v = state[i]["exp_avg_sq"].double().reshape(-1) / (1 - group["betas"][1] ** t)
            parts.append((1 - group["betas"][0] ** t) * (v.sqrt() + group["eps"]))
        return torch.cat(parts)


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
