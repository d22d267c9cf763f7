"""Measuring never changes training: the final weights are the same bits with any measurement, or none."""

import pytest
from training_runs import EVERYTHING, same_weights, train_here

VARIANTS = {
    "adamw": (),
    "dropout": ("--dropout", "0.2"),
    "schedule": ("--use_lr_schedule", "--warmup_steps", "3"),
    "sgd": ("--optimizer", "sgd", "--lr", "0.1"),
    "mlp and fixed data": ("--d_ff", "16", "--n_sequences", "24", "--period_per", "batch"),
}


def _weights(tmp_path, name, *flags):
    return train_here(tmp_path / name, *flags, "--num_steps", "11")


@pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS.keys())
def test_weights_do_not_depend_on_the_interval_of_measuring(tmp_path, flags):
    never = _weights(tmp_path, "never", *flags, "--eigen_interval", "0")
    often = _weights(tmp_path, "often", *flags, "--eigen_interval", "5")
    assert same_weights(never, often)


@pytest.mark.parametrize(
    "flags",
    [
        ("--detect", "false"),
        ("--eigen_interval", "3", "--hessian_dtype", "float64"),
        ("--track_top_k_eigenvalues", "5", "--eigen_microbatch_size", "3", "--attention_positions", "0"),
        ("--log_interval", "1", "--checkpoint_interval", "0", "--behaviour_probe_size", "4"),
        EVERYTHING.split(),
        ("--causal", "snapshots", "--eigen_interval", "1"),
        ("--causal", "never", "--checkpoint_interval", "3"),
        ("--eigen_backend", "scipy"),
        ("--eigen_backend", "pyhessian"),
    ],
)
def test_weights_do_not_depend_on_what_is_measured_logged_or_saved(tmp_path, flags):
    never = _weights(tmp_path, "never", "--dropout", "0.1", "--eigen_interval", "0")
    assert same_weights(never, _weights(tmp_path, "measured", "--dropout", "0.1", *flags))


def test_dropout_and_seed_do_change_the_weights(tmp_path):
    plain = _weights(tmp_path, "plain", "--eigen_interval", "0")
    for name, flags in {"dropout": VARIANTS["dropout"], "seed": ("--seed", "1")}.items():
        assert not same_weights(plain, _weights(tmp_path, name, *flags, "--eigen_interval", "0"))
