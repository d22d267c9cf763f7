"""A small layout, and files filled with values that follow from the step."""

import pytest


@pytest.fixture
def layout():
    from spectral.storage import RunLayout

    return RunLayout(
        n_layers=2,
        n_heads=2,
        d_head=3,
        n_top=4,
        n_negative=2,
        seq_length=9,
        vocab_size=16,
        probe_periods=(3, 5),
        block_names=("embed", "L0.W_Q"),
        signals=("induction_accuracy", "top_eigenvalue"),
        attention_positions=4,
        probe_kinds=("repeat", "random_gap", "repeated_tokens"),
        n_copies=3,
        aligned_before=1,
        aligned_after=2,
        references=("uniform", "bayes"),
        learned_positions=9,
        ln_treatment="folded",
        ablation_modes=("zero", "mean"),
        components=("embedding", "L0H0"),
    )


@pytest.fixture
def finished(tmp_path, layout):
    """A closed, finished file of 5 snapshots (0, 10, ... 40), 50 training rows and 3 causal rows (0, 20, 40)."""
    import numpy as np
    from storage_processes import append_until

    from spectral.storage import ResultsWriter

    path = tmp_path / "results.h5"
    probes = {"tokens": np.arange(12).reshape(3, 4), "predictable": np.eye(3, 4, dtype=bool)}
    attributes = {"seed": 3, "config_json": '{"seed": 3}', "device": "cpu"}
    with ResultsWriter.create(path, layout, attributes=attributes, probes=probes) as writer:
        append_until(writer, 49)
        writer.set_status("finished")
    return path
