"""The evidence of runs whose final model is known by construction."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from constructed_models import measured


@pytest.fixture(scope="session")
def evidence_of():
    """Return a maker of the evidence of a run that ends as `model`, with curves that are made up."""
    from spectral.studies.repeated.measurements import CURVES, Evidence

    def make(model, preset, *, step=20_000, earlier=(), previous_token=None, seed=0):
        final = dataclasses.replace(measured(model, preset, step), seed=seed)
        n_layers = final.maps.shape[1]
        steps = np.linspace(0, step, 41).astype(np.int64)
        rise = np.clip(np.linspace(-1, 2, 41), 0, 1)
        heads = rise[:, None, None] * np.linspace(0.2, 0.9, 2 * n_layers).reshape(1, n_layers, 2)
        curves = {name: heads.copy() for name in CURVES}
        curves["behaviour/induction_accuracy_period"] = rise[:, None] * np.linspace(1, 0.5, 7)
        if previous_token is not None:
            curves["circuits/previous_token_score_corrected"][:, 0] = previous_token
        return Evidence(
            path=Path(f"runs/{preset}_seed{seed}"),
            final=final,
            earlier=tuple(earlier),
            steps=steps,
            curves=curves,
            probe_periods=(10, 15, 20, 25, 29, 33, 39),
        )

    return make
