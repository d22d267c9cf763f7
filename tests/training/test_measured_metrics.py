"""When circuits, behaviour and causes are measured in runs, and what each kind of data has."""

import math

import numpy as np
import pytest
import torch
from training_runs import differences, forget_after, resume_here, train_here


def _open(folder):
    from spectral.storage import open_run

    return open_run(folder)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ((), [0, 4, 8, 12]),
        (("--checkpoint_interval", "5"), [0, 5, 10, 12]),
        (("--checkpoint_interval", "0"), [0, 12]),
        (("--checkpoint_interval", "0", "--causal", "snapshots"), [0, 4, 8, 12]),
        (("--causal", "never"), []),
        (("--eigen_interval", "0"), []),
    ],
)
def test_causes_have_steps_of_their_own(tmp_path, flags, steps):
    run = _open(train_here(tmp_path / "run", *flags))
    assert run.steps_of("causal").tolist() == steps
    stored = any(name.startswith("causal/remove_one") for name in run.datasets())
    assert stored == bool(steps)
    if steps:
        effects = run.to_xarray("causal")["remove_one_induction_loss"]
        assert effects.dims == ("step", "mode", "layer", "head")
        assert effects.sel(step=12, mode="mean").shape == (2, 2)
        assert np.isfinite(effects).all()


def test_a_long_run_measures_causes_at_its_checkpoints():
    from spectral.config import RunConfig

    config = RunConfig(num_steps=2000, checkpoint_interval=1000, eigen_interval=100)
    assert config.causal_steps() == [0, 1000, 2000]
    assert RunConfig(num_steps=2500, checkpoint_interval=1000).causal_steps() == [0, 1000, 2000, 2500]
    assert RunConfig(num_steps=300, eigen_interval=200, causal="snapshots").causal_steps() == [0, 200, 300]


@pytest.mark.parametrize("step", [0, 6])
def test_causes_at_snapshots_are_dropped_and_repeated_by_a_resume(tmp_path, step):
    import shutil

    flags = ("--causal", "snapshots", "--eigen_interval", "2", "--checkpoint_interval", "6")
    whole = train_here(tmp_path / "whole", *flags)
    copy = forget_after(shutil.copytree(whole, tmp_path / "copy"), step)
    resume_here(copy)
    assert differences(whole, copy) == []
    assert _open(copy).steps_of("causal").tolist() == [0, 2, 4, 6, 8, 10, 12]


def test_causes_are_measured_where_a_transition_keeps_a_checkpoint(tmp_path, monkeypatch):
    from spectral.detection import OnlineDetector, OnlineEvent

    found = dict.fromkeys(("signal", "family", "statistic"))
    event = OnlineEvent(step=7.0, kind="transition_confirmed", midpoint=5.0, threshold=1.0, signals=("a",), **found)
    events = {7: [event]}
    monkeypatch.setattr(OnlineDetector, "update", lambda self, step, values: events.get(step, []))
    folder = train_here(tmp_path / "run", "--eigen_interval", "1", "--checkpoint_interval", "5")
    assert _open(folder).steps_of("causal").tolist() == [0, 5, 7, 10, 12]


def test_chains_are_compared_with_their_observers(tmp_path):
    from spectral.behaviour import ngram_references, reference_distances
    from spectral.config import RunConfig
    from spectral.data import DataSource, chain_probe
    from spectral.models import Transformer
    from spectral.training.measure import ProbeMeter

    folder = train_here(tmp_path / "run", "--data", "ngram", "--vocab_size", "5", "--ngram_parents", "2")
    run = _open(folder)
    names = ("uniform", "unigram", "bigram", "bayes", "oracle")
    assert run.layout.references == names
    assert "repeat_ood" not in run.layout.probe_kinds  # chains have no periods to be outside of
    behaviour = run.to_xarray("behaviour")
    assert behaviour["excess_loss"].dims == ("step", "reference")
    assert behaviour["reference_kl"].dims == ("step", "reference", "position")
    assert behaviour["reference_kl"].sizes["position"] == 23
    assert (behaviour["reference_kl"] >= 0).all()

    config = RunConfig.from_dict(run.config)
    chains = chain_probe(config, 16)
    references = ngram_references(chains.tokens, n_states=5, alpha=0.1, parents=(2,), tables=chains.tables)
    model = Transformer.from_config(config)
    with torch.no_grad():
        found = reference_distances(model.eval()(chains.tokens), chains.tokens, references)
        np.testing.assert_allclose(
            run.read("behaviour/excess_loss")[0], [float(d.excess_loss.mean()) for d in found.values()], rtol=1e-5
        )
        # With uniform logits the distances are the chance levels.
        model.W_U.zero_()
        row = ProbeMeter(config, DataSource(config, "cpu")).measure(model)
    attributes = run.attributes("behaviour/excess_loss")
    np.testing.assert_allclose(row["behaviour/excess_loss"], attributes["chance"], atol=1e-9)
    uniform = math.log(5)
    np.testing.assert_allclose(uniform - np.array(attributes["chance"]), attributes["reference_loss"])
    chance = run.attributes("behaviour/reference_kl")["chance"]
    np.testing.assert_allclose(row["behaviour/reference_kl"].mean(1), chance, atol=1e-9)
    assert chance[0] == pytest.approx(0, abs=1e-12)
    assert chance[4] > chance[3] > chance[1]


@pytest.mark.parametrize("data", ["repeated", "patterns", "ngram", "text"])
def test_nothing_is_missing_without_a_stated_reason(tmp_path, data):
    text = tmp_path / "text"
    text.write_bytes(bytes(np.random.default_rng(0).integers(0, 30, 4000, dtype=np.uint8)))
    flags = {
        "repeated": (),
        "patterns": ("--data", "patterns", "--n_patterns", "2", "--max_pattern_length", "5"),
        "ngram": ("--data", "ngram", "--vocab_size", "6"),
        "text": ("--data", "text", "--text_path", str(text), "--vocab_size", "256"),
    }[data]
    run = _open(train_here(tmp_path / "run", "--num_steps", "4", *flags))
    for name in run.datasets():
        group = name.split("/")[0]
        if group not in ("behaviour", "circuits", "causal"):
            continue
        values = run.read(name)
        if values.dtype.kind == "f" and np.isnan(values).any():
            assert run.attributes(name)["nan_where"], name
    assert {"repeat", "no_repeat", "repeated_tokens"} <= set(run.layout.probe_kinds)
    assert ("behaviour/excess_loss" in run.datasets()) == (data == "ngram")
    assert ("reference_bayes" in run.attributes("behaviour/loss")) == (data == "repeated")


def test_an_axis_lacks_the_kinds_for_which_there_is_no_room(tmp_path):
    flags = "--seq_length 4 --min_period 2 --max_period 2 --vocab_size 3 --probe_periods=[] --num_steps 2"
    run = _open(train_here(tmp_path / "run", *flags.split(), "--eigen_interval", "2"))
    assert run.layout.probe_kinds == ("repeat", "no_repeat")
    assert run.read("circuits/probe_induction_score").shape[1] == 2
    absent = ("circuits/content_match_fraction", "behaviour/content_match_accuracy", "behaviour/ambiguous_accuracy")
    assert not set(absent) & set(run.datasets())


def test_measuring_leaves_model_and_random_state_alone():
    from spectral.config import RunConfig, load_preset
    from spectral.data import DataSource
    from spectral.models import Transformer
    from spectral.training.measure import CausalMeter, ProbeMeter

    config = RunConfig(**(load_preset("tiny") | {"dropout": 0.3, "device": "cpu"}))
    model = Transformer.from_config(config).train()
    meter = ProbeMeter(config, DataSource(config, "cpu"))
    causes = CausalMeter(meter.plan, model)
    before, state = {name: p.clone() for name, p in model.state_dict().items()}, torch.get_rng_state()
    first = {**meter.measure(model), **causes.measure(model)}
    second = {**meter.measure(model), **causes.measure(model)}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name in first.keys() - {"circuits/seconds", "causal/seconds"}:  # without dropout, so both times the same
        np.testing.assert_array_equal(np.asarray(first[name]), np.asarray(second[name]), err_msg=name)


def test_attention_patterns_of_long_sequences_bound_the_number_of_sequences():
    from spectral.config import RunConfig
    from spectral.data import DataSource
    from spectral.training.measure import ProbePlan

    config = RunConfig(seq_length=512, n_heads=8, behaviour_probe_size=64, device="cpu")
    plan = ProbePlan.of(config, DataSource(config, "cpu"))
    per_sequence = 4 * 2 * 8 * 512**2
    assert len(plan.probes["repeat"]) == len(plan.control) == 64 * 2**20 // per_sequence == 4
    assert {len(probe) for probe in plan.probes.values()} == {4}


def test_the_estimate_counts_causes():
    from spectral.config import RunConfig, load_preset
    from spectral.training.estimate import estimate

    settings = load_preset("tiny") | {"device": "cpu", "n_threads": 1}
    found = estimate(RunConfig(**settings))
    assert found.causal_steps == [0, 20, 40, 60]
    assert found.causal_seconds > 0
    assert "causes: 4 times" in found.describe()
    without = estimate(RunConfig(**settings, causal="never"))
    assert without.causal_steps == []
    assert "causes" not in without.describe()
