"""Control data: the token frequencies of the task, and nothing in the context that tells what comes next."""

import dataclasses

import pytest
import torch

from spectral.config import RunConfig
from spectral.data import DataSource
from spectral.errors import ConfigError
from spectral.models import Transformer, next_token_loss

CONFIG = RunConfig(
    vocab_size=8, seq_length=32, min_period=4, max_period=8, batch_size=64, max_prefix=0, n_heads=2, d_model=8
)


def source_of(control):
    return DataSource(dataclasses.replace(CONFIG, control=control), "cpu")


def repeat_share(batch, targets):
    """Return how often the target is what followed the last occurrence one period ago."""
    at = torch.arange(16, 31)
    rows = torch.arange(len(batch))[:, None]
    back = at[None, :] + 1 - source_of("none").batch(0).period[:, None]
    return float((targets[:, at] == batch.tokens[rows, back]).double().mean())


@pytest.mark.parametrize(
    ("control", "low", "high"), [("none", 1, 1), ("no_repeats", 0.05, 0.2), ("shuffled_targets", 0.05, 0.2)]
)
def test_only_the_task_can_be_looked_up(control, low, high):
    batch = source_of(control).batch(0)
    targets = batch.tokens[:, 1:] if batch.targets is None else batch.targets
    assert low <= repeat_share(batch, targets) <= high  # chance is 1/8
    assert bool(batch.predictable.any()) == (control == "none")


def test_shuffling_keeps_tokens_and_the_multiset_of_targets():
    plain, shuffled = source_of("none").batch(5), source_of("shuffled_targets").batch(5)
    assert torch.equal(plain.tokens, shuffled.tokens)
    assert torch.equal(plain.tokens[:, 1:].flatten().sort().values, shuffled.targets.flatten().sort().values)
    own = (shuffled.targets == plain.tokens[:, 1:]).double().mean()
    assert 0.05 < own < 0.2


def test_a_token_of_the_same_sequence_is_no_likelier_a_target_than_any_other():
    batch = source_of("shuffled_targets").batch(2)
    present = (batch.targets[:, :, None] == batch.tokens[:, None, :]).any(2).double().mean()
    other = (batch.targets[:, :, None] == batch.tokens.roll(1, 0)[:, None, :]).any(2).double().mean()
    assert abs(present - other) < 0.04


@pytest.mark.parametrize("control", ["no_repeats", "shuffled_targets"])
def test_control_draws_are_pure_and_leave_the_other_probes_alone(control):
    one, other = source_of(control), source_of(control)
    assert [one.batch(step).sha256() for step in (0, 1)] == [other.batch(step).sha256() for step in (0, 1)]
    assert one.batch(0).sha256() != one.batch(1).sha256()
    plain = source_of("none")
    for name in ("behaviour_probe", "repeat_probe", "attention_probe"):
        assert getattr(one, name).sha256() == getattr(plain, name).sha256()
    assert one.curvature_probe.sha256() != plain.curvature_probe.sha256()
    assert bool(one.behaviour_probe.predictable.any())


def test_the_hash_tells_other_targets_apart():
    batch = source_of("shuffled_targets").batch(0)
    assert batch.sha256() != dataclasses.replace(batch, targets=batch.targets.roll(1)).sha256()


def test_the_loss_is_that_of_the_targets_given():
    model, batch = Transformer.from_config(CONFIG).eval(), source_of("shuffled_targets").batch(0)
    log_p = model(batch.tokens)[:, :-1].log_softmax(-1)
    by_hand = -log_p.gather(-1, batch.targets[..., None]).mean()
    torch.testing.assert_close(next_token_loss(model, batch.loss_input), by_hand)
    following = (batch.tokens, batch.tokens[:, 1:])
    assert torch.equal(next_token_loss(model, following), next_token_loss(model, batch.tokens))


def test_controls_belong_to_repeated_data():
    with pytest.raises(ConfigError, match="--control shuffled_targets needs --data repeated"):
        RunConfig(data="patterns", control="shuffled_targets")
