"""RunConfig: valid or refused with every fault named, frozen, and the same in every process."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def make(**options):
    from spectral.config import RunConfig

    return RunConfig(**options)


@st.composite
def valid_settings(draw):
    d_head, n_heads = draw(st.integers(1, 8)) * 2, draw(st.integers(1, 8))
    seq_length = draw(st.integers(3, 80))
    max_period = draw(st.integers(1, seq_length - 2))
    num_steps = draw(st.integers(1, 500))
    return dict(
        seq_length=seq_length,
        vocab_size=draw(st.integers(2, 300)),
        min_period=draw(st.integers(1, max_period)),
        max_period=max_period,
        max_prefix=draw(st.integers(0, seq_length - 2 - max_period)),
        n_heads=n_heads,
        d_model=n_heads * d_head,
        n_layers=draw(st.integers(1, 4)),
        positions=draw(st.sampled_from(["learned", "rotary", "none"])),
        num_steps=num_steps,
        eigen_interval=draw(st.integers(0, num_steps)),
        lr=draw(st.floats(1e-6, 10)),
        dropout=draw(st.floats(0, 0.99)),
        use_lr_schedule=draw(st.booleans()),
        probe_periods=tuple(draw(st.lists(st.integers(2, max(2, seq_length - 2)), unique=True, max_size=3)))
        if seq_length > 3
        else (),
        seed=draw(st.integers(0, 2**40)),
    )


@settings(max_examples=60, deadline=None)
@given(values=valid_settings())
def test_every_valid_config_survives_a_round_trip_through_json(values):
    from spectral.config import RunConfig

    config = make(**values)
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.digest() == config.digest()


@settings(max_examples=60, deadline=None)
@given(values=valid_settings())
def test_snapshots_are_every_interval_from_zero_and_the_last_step(values):
    config = make(**values)
    steps = config.snapshot_steps()
    if config.eigen_interval == 0:
        assert steps == []
        return
    assert steps[0] == 0
    assert steps[-1] == config.num_steps
    assert steps == sorted(set(steps))
    assert {step for step in range(config.num_steps + 1) if step % config.eigen_interval == 0} <= set(steps)
    assert len(steps) <= config.num_steps // config.eigen_interval + 2


@settings(max_examples=60, deadline=None)
@given(values=valid_settings())
def test_resolved_periods_are_distinct_sorted_and_fit_the_sequence(values):
    config = make(**values)
    periods = config.resolved_probe_periods
    assert periods
    assert len(set(periods)) == len(periods)
    assert all(2 <= period < config.seq_length for period in periods)
    if not config.probe_periods:
        assert list(periods) == sorted(periods)


@settings(max_examples=60, deadline=None)
@given(valid_settings(), st.integers(0, 600), st.sampled_from(["checkpoints", "snapshots", "never"]))
def test_causes_are_measured_at_the_ends_and_at_checkpoints_or_snapshots(values, interval, causal):
    config = make(**values, checkpoint_interval=interval, causal=causal)
    steps = config.causal_steps()
    if causal == "never" or config.eigen_interval == 0:
        assert steps == []
    elif causal == "snapshots":
        assert steps == config.snapshot_steps()
    else:
        assert steps == sorted({0, config.num_steps, *range(0, config.num_steps + 1, interval or config.num_steps)})


def test_an_unknown_moment_for_causes_is_refused():
    from spectral.config.checks import range_faults

    config = make()
    object.__setattr__(config, "causal", "always")
    assert range_faults(config) == ["--causal is 'always'; use one of checkpoints, snapshots, never"]


def test_every_fault_is_reported_at_once():
    from spectral.errors import ConfigError

    with pytest.raises(ConfigError) as caught:
        make(lr=-1.0, vocab_size=1, n_heads=7, eigen_interval=10, num_steps=5, device="tpu", beta1=1.0)
    text = str(caught.value)
    assert len(caught.value.faults) == 6
    for flag in ("--lr", "--vocab_size", "--n_heads", "--eigen_interval", "--device", "--beta1"):
        assert flag in text
    assert "\n" not in text


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().lr = 2.0


def test_digest_tells_every_field_apart():
    base = make()
    changed = [make(seed=1), make(lr=2e-3), make(probe_periods=(8,)), make(use_lr_schedule=True), make(device="cpu")]
    assert len({config.digest() for config in [base, *changed]}) == 6


def test_digest_is_the_same_in_another_process():
    code = "from spectral.config import RunConfig; print(RunConfig(seed=3, lr=0.1, probe_periods=(9, 4)).digest())"
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    config = make(seed=3, lr=0.1, probe_periods=(9, 4))
    assert out.stdout.strip() == config.digest()
    assert config.digest() == hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()


def test_unknown_settings_are_named():
    from spectral.config import RunConfig
    from spectral.errors import ConfigError

    with pytest.raises(ConfigError, match=r"'alpha'.*'omega'"):
        RunConfig.from_dict({"omega": 1, "alpha": 2})


@pytest.mark.parametrize(
    ("name", "value"), [("n_layers", "two"), ("lr", "fast"), ("use_lr_schedule", 1), ("probe_periods", ("x",))]
)
def test_a_value_of_a_wrong_type_is_refused(name, value):
    import jaxtyping

    from spectral.errors import ConfigError

    with pytest.raises((ConfigError, jaxtyping.TypeCheckError)):
        make(**{name: value})


def test_type_faults_name_flag_and_remedy():
    from spectral.config.checks import type_faults

    config = make()
    for name, value in {
        "n_layers": "two",
        "seed": True,
        "device": 3,
        "probe_periods": (1.5,),
        "block_spectra": (1,),
    }.items():
        object.__setattr__(config, name, value)
    assert [fault.split()[0] for fault in type_faults(config)] == [
        "--n_layers",
        "--block_spectra",
        "--probe_periods",
        "--seed",
        "--device",
    ]
    assert type_faults(make()) == []


@pytest.mark.parametrize(("d_model", "n_heads", "remedy"), [(64, 7, 8), (100, 3, 2), (13, 5, 1), (10**9 + 7, 2, 1)])
def test_remedy_for_heads_is_the_nearest_divisor(d_model, n_heads, remedy):
    from spectral.errors import ConfigError

    with pytest.raises(ConfigError, match=f"try --n_heads {remedy}$"):
        make(d_model=d_model, n_heads=n_heads)
