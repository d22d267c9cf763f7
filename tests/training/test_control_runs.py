"""A run on control data: its Hessian is that of the loss it trains on, its probes still repeat blocks."""

import h5py
import numpy as np
import pytest
import torch
from training_runs import SMALLEST, Dense, checkpoint, resume_here, same_weights, train_here

from spectral import open_run


@pytest.mark.parametrize("control", ["no_repeats", "shuffled_targets"])
@pytest.mark.parametrize("pieces", ["", "--eigen_microbatch_size 5"])
def test_eigenvalues_are_those_of_the_control_loss(tmp_path, control, pieces):
    run = train_here(tmp_path / "run", *f"{SMALLEST} --control {control} {pieces}".split())
    dense = Dense(run, 12)
    with h5py.File(run / "results.h5") as file:
        assert ("curvature_targets" in file["probes"]) == (control == "shuffled_targets")
        given = file["probes/curvature_targets"][()] if control == "shuffled_targets" else dense.tokens[:, 1:].numpy()
    targets = torch.from_numpy(given).long().reshape(-1)
    H = torch.autograd.functional.hessian(
        lambda vector: torch.nn.functional.cross_entropy(dense.logits(vector), targets), dense.weights
    )
    exact = torch.linalg.eigvalsh((H + H.T) / 2).flip(0).numpy()[:4]
    stored = open_run(run)
    values, bounds = stored.read("hessian/eigenvalues")[-1], stored.read("hessian/error_bounds")[-1]
    assert (np.abs(values - exact) <= bounds + 1e-6 * exact[0]).all()
    assert stored.read("behaviour/induction_loss").shape == (3,)


def test_a_control_run_resumes_bit_for_bit(tmp_path):
    flags = ["--control", "shuffled_targets", "--eigen_interval", "0"]
    whole = train_here(tmp_path / "whole", *flags)
    part = train_here(tmp_path / "part", *flags)
    (part / "model_final.pt").unlink()
    checkpoint(part, 12).unlink()
    resume_here(part)
    assert same_weights(whole, part)
