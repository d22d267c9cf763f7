"""Stages and runs: against a plain loop over the dense model, resumed bit by bit, and what they refuse."""

import dataclasses
import itertools

import pytest
import torch

from spectral.errors import ConfigError, NonFiniteError
from spectral.gih import CompressedChains, GIHConfig, GIHRun, Stage, StageTrainer, compress, draw_chains
from spectral.models import DisentangledTransformer, last_token_criterion, last_token_loss

SMALL = {"n_sample": 120, "n_validation": 20, "seq_length": 30, "hessian_points": 2}


def same(one, other):
    """Return whether two rows are equal in every bit."""
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            assert torch.equal(a.nan_to_num(), b.nan_to_num()), field.name
        else:
            assert a == b, field.name


@pytest.mark.parametrize("train", ["c", "w", "a", "c+w+a", "w+a"])
def test_a_stage_is_plain_gradient_descent_on_the_dense_model(train):
    config = GIHConfig(**SMALL, train=(train,), n_epochs=(12,), lr=(2.0,))
    run = GIHRun(config)
    rows = list(run.measurements())
    tokens = draw_chains(config).tokens
    model = config.build_model()
    moved = [parameter for name, parameter in model.named_parameters() if name in train.split("+")]
    optimizer = torch.optim.SGD(moved, lr=2.0)
    for row in rows:
        loss = last_token_loss(model, tokens[:100])
        assert row.train_double_softmax == pytest.approx(loss.item(), rel=1e-12)
        torch.testing.assert_close(row.w, model.w.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(row.c, model.c.detach(), rtol=1e-8, atol=1e-14)
        assert row.a == pytest.approx(model.a.item(), rel=1e-9)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [row.time for row in rows] == list(range(13))


def test_a_row_tells_both_losses_and_the_accuracy_of_held_out_chains():
    config = GIHConfig(**SMALL, train=("a",), n_epochs=(1,))
    run = GIHRun(config)
    row = run.measure()
    held_out = draw_chains(config).tokens[100:]
    y = run.model(held_out[:, :-1])
    assert row.validation_double_softmax == pytest.approx(last_token_criterion(y, held_out[:, -1]).item())
    assert row.validation_nll == pytest.approx(last_token_criterion(y, held_out[:, -1], loss="nll").item())
    assert row.accuracy == pytest.approx((y.argmax(1) == held_out[:, -1]).double().mean().item())
    assert row.eigenvalues is None
    assert row.own_offset.tolist() == pytest.approx([0.9009] * 3, abs=1e-4)


def test_the_exact_spectrum_holds_the_flat_directions():
    run = GIHRun(GIHConfig(**SMALL))
    eigenvalues = run.hessian_eigenvalues()
    assert eigenvalues.shape == (17,)
    assert bool((eigenvalues.diff() <= 0).all())
    # one shift of the weights per head leaves the loss as it is
    assert int((eigenvalues.abs() < 1e-12 * eigenvalues.abs().max()).sum()) >= 3


@pytest.mark.parametrize(
    "options",
    [
        {"train": ("c", "w", "a"), "n_epochs": (5, 4, 3)},
        {"train": ("c", "w"), "n_epochs": (4, 0), "flow_time": (0.0, 1e6)},
        {"train": ("c+w", "a"), "n_epochs": (4, 3), "optim": "adam", "lr": (0.01,)},
        {"train": ("c", "w"), "n_epochs": (3, 3), "batch_size": 30},
        {"model": "full", "train": ("all",), "n_epochs": (4,), "lr": (0.01,), "loss": "nll"},
    ],
)
def test_a_run_resumed_anywhere_repeats_every_bit(options):
    config = GIHConfig(**SMALL, **options)
    states, rows = [], []
    whole = GIHRun(config)
    states.append(whole.state_dict())
    for row in whole.measurements():
        rows.append(row)
        states.append(whole.state_dict())
    assert whole.finished
    places = range(len(rows) + 1) if len(rows) < 20 else (0, 1, 5, 6, 7, len(rows) // 2, len(rows) - 1, len(rows))
    for place in places:
        resumed = GIHRun(config)
        resumed.load_state_dict(states[place])
        rest = list(resumed.measurements()) if place > len(rows) - 20 else [next(resumed.measurements())]
        for one, other in zip(rest, rows[place:], strict=place > len(rows) - 20):
            same(one, other)


def test_a_state_survives_a_file(tmp_path):
    config = GIHConfig(**SMALL, train=("c+w", "a"), n_epochs=(3, 2), optim="adam")
    run = GIHRun(config)
    iterator = run.measurements()
    for _ in range(3):
        next(iterator)
    torch.save(run.state_dict(), tmp_path / "state.pt")
    expected = list(iterator)
    resumed = GIHRun(config)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for one, other in zip(resumed.measurements(), expected, strict=True):
        same(one, other)


def test_a_state_of_other_settings_is_refused():
    state = GIHRun(GIHConfig(**SMALL)).state_dict()
    with pytest.raises(ValueError, match="alpha"):
        GIHRun(GIHConfig(**SMALL, alpha=0.2)).load_state_dict(state)


def test_progress_counts_to_the_end_of_every_stage():
    told = []

    def watch(progress):
        told.append(progress)
        return True

    run = GIHRun(GIHConfig(**SMALL, train=("c", "a"), n_epochs=(3, 2)), watch=watch)
    assert len(list(run.measurements())) == 7
    assert len(told) == 5
    assert [(p.stage, p.time, p.total) for p in told if p.time == p.total] == [(0, 3.0, 3.0), (1, 2.0, 2.0)]
    assert told[0].n_stages == 2


def test_measuring_does_not_change_training():
    options = {"train": ("c+w+a",), "n_epochs": (6,)}
    quiet = GIHRun(GIHConfig(**(SMALL | {"hessian_points": 0}), **options))
    measured = GIHRun(GIHConfig(**(SMALL | {"hessian_points": 100}), **options))
    last = [list(run.measurements())[-1] for run in (quiet, measured)]
    assert torch.equal(last[0].w, last[1].w)
    assert torch.equal(last[0].c, last[1].c)


def test_times_of_a_stage_are_dense_at_first_and_end_at_its_end():
    times = Stage(train=("c",), epochs=2000).measured_times()
    assert times[:101] == list(range(101))
    assert times[-1] == 2000
    assert len(times) < 300
    for flow_time in (0.5, 1.0, 5e8):
        times = Stage(train=("w",), flow_time=flow_time).measured_times()
        assert times[0] == 0
        assert times[-1] == flow_time
        assert all(later > earlier for earlier, later in itertools.pairwise(times))


def test_the_flow_is_the_limit_of_small_steps():
    config = GIHConfig(**SMALL, train=("c",), n_epochs=(0,), flow_time=(5.0,))
    flow = list(GIHRun(config).measurements())[-1]
    errors = []
    for lr in (0.02, 0.01):
        steps = dataclasses.replace(config, n_epochs=(round(5 / lr),), lr=(lr,), flow_time=(0.0,))
        errors.append(float((list(GIHRun(steps).measurements())[-1].shares - flow.shares).abs().max()))
    assert errors[1] < 0.6 * errors[0]
    assert errors[1] < 5e-3
    assert flow.sum_squares == pytest.approx(7e-4, rel=1e-6)


def test_diverging_training_is_told():
    config = GIHConfig(**SMALL, train=("a",), n_epochs=(50,), lr=(1e308,))
    with pytest.raises(NonFiniteError, match="reduce lr"):
        list(GIHRun(config).measurements())


def test_stages_that_cannot_train_are_refused():
    model = DisentangledTransformer(vocab_size=3)
    chains: CompressedChains = compress(draw_chains(GIHConfig(**SMALL)).tokens, model)
    for stage, text in (
        (Stage(train=(), epochs=1), "trains nothing"),
        (Stage(train=("W_Q",), epochs=1), "the model lacks"),
        (Stage(train=("c",)), "exactly one of them"),
        (Stage(train=("c",), epochs=-1), "negative"),
        (Stage(train=("c",), epochs=1, batch_size=-1), "batch_size=-1"),
        (Stage(train=("c",), epochs=1, batch_size=500), "exceeds the 120 sequences"),
    ):
        with pytest.raises(ConfigError, match=text):
            StageTrainer(model, chains, stage)
