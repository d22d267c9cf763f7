"""Known models through the real path: probes of a run, the meters, results.h5 and the reader."""

import math

import numpy as np
import pytest
import torch

from spectral import behaviour, circuits
from spectral.config import RunConfig
from spectral.data import DataSource
from spectral.models import next_token_loss

VOCAB, N_CTX = 15, 48
KINDS = ("repeat", "repeat_ood", "random_gap", "shuffled_segments", "repeated_tokens", "no_repeat")


def config(**changes):
    sizes = {
        "vocab_size": VOCAB, "seq_length": N_CTX, "n_layers": 2, "n_heads": 1, "d_model": 3 * VOCAB + N_CTX,
        "positions": "learned", "layer_norm": False, "min_period": 5, "max_period": 12, "max_prefix": 0,
        "behaviour_probe_size": 24, "eigen_probe_size": 2, "attention_positions": 8, "device": "cpu",
    }  # fmt: skip
    return RunConfig(**(sizes | changes))


def stored(folder, model, settings):
    """Measure one model once and return the opened results file."""
    from spectral.storage import open_run
    from spectral.training.curvature_row import CurvatureMeter
    from spectral.training.measure import CausalMeter, ProbeMeter
    from spectral.training.results_file import create_results
    from spectral.training.spectrum import CurvatureSettings, Subject

    source = DataSource(settings, "cpu")
    curvature = CurvatureMeter(
        Subject(model=model, loss_fn=next_token_loss, batch=source.curvature_probe.tokens),
        CurvatureSettings(k=1, k_negative=0),
    )
    probes = ProbeMeter(settings, source)
    causes = CausalMeter(probes.plan, model)
    with create_results(folder / "results.h5", settings, source, curvature, probes, causes) as writer:
        writer.append_snapshot({"step": 0, **probes.measure(model)})
        writer.append_causal({"step": 0, **causes.measure(model)})
    return open_run(folder / "results.h5")


@pytest.fixture
def circuit(induction_circuit):
    """The hand-built circuit for sequences without BOS: L1H0 keeps off key 0, which is its own previous token."""
    weights = induction_circuit(VOCAB - 1, N_CTX)
    d_head = weights["W_Q"].shape[-1]
    slot = torch.eye(d_head, dtype=torch.float64)[-1]
    weights["W_Q"][1, 0] += 60 * d_head**0.5 * torch.outer(weights["W_E"].sum(0), slot)  # every token asks for it
    weights["W_K"][1, 0] -= torch.outer(weights["W_pos"][0], slot)
    return weights


@pytest.fixture
def run(circuit, as_transformer, tmp_path):
    return stored(tmp_path, as_transformer(circuit), config())


def last(run, name):
    return run.read(name)[-1]


def test_the_circuit_scores_1_on_every_kind_of_probe(run):
    assert run.layout.probe_kinds == KINDS
    for name in ("probe_induction_score", "probe_induction_score_corrected"):
        np.testing.assert_allclose(last(run, f"circuits/{name}")[:, 1, 0], 1, atol=1e-9)
    np.testing.assert_allclose(last(run, "circuits/probe_previous_token_score")[:, 0, 0], 1, atol=1e-9)
    assert last(run, "circuits/induction_score")[1, 0] == last(run, "circuits/probe_induction_score")[0, 1, 0]
    content = last(run, "circuits/content_match_fraction")
    assert content[1, 0] == pytest.approx(1, abs=1e-9)
    assert math.isnan(content[0, 0])  # no induction head: the ratio would mean nothing
    split = last(run, "circuits/right_successor_attention") + last(run, "circuits/competing_successor_attention")
    assert split[1, 0] == pytest.approx(1, abs=1e-9)


def test_its_outputs_reach_every_ceiling(run):
    accuracy = dict(zip(KINDS, last(run, "behaviour/induction_accuracy_probe"), strict=True))
    ceiling = dict(zip(KINDS, run.attributes("behaviour/induction_accuracy_probe")["ceiling"], strict=True))
    for kind in ("repeat", "repeat_ood", "random_gap", "shuffled_segments"):
        assert accuracy[kind] == ceiling[kind] == 1, kind
    assert accuracy["repeated_tokens"] == pytest.approx(ceiling["repeated_tokens"], abs=0.02)
    assert ceiling["repeated_tokens"] < 0.95
    assert math.isnan(accuracy["no_repeat"])
    assert last(run, "behaviour/content_match_accuracy") == 1
    assert last(run, "behaviour/accuracy_by_copy").tolist() == [1] * (run.layout.n_copies - 1)
    assert last(run, "behaviour/unambiguous_accuracy") == 1
    assert last(run, "behaviour/ambiguous_accuracy") == pytest.approx(0.25, abs=0.15)
    aligned = run.to_xarray("behaviour")["aligned_loss"][-1]
    # A certain output raises one logit by 1 among 15.
    certain = math.log(math.e + VOCAB - 1) - 1
    np.testing.assert_allclose(aligned.sel(aligned_position=slice(0, None)), certain, atol=1e-9)
    assert float(aligned.sel(aligned_position=-1)) > certain + 0.5
    assert last(run, "behaviour/icl_slope") < -0.1


def test_its_weights_name_it(run):
    assert last(run, "circuits/ov_copying_score")[1, 0] == pytest.approx(1, abs=1e-9)
    assert last(run, "circuits/ov_top1_copying")[:, 0].tolist() == pytest.approx([1 / VOCAB, 1])
    assert last(run, "circuits/qk_positional_previous")[0, 0] == 1
    assert last(run, "circuits/k_composition_matching")[0, 0, 1, 0] > 0.9
    raw, null = last(run, "circuits/k_composition")[0, 0, 1, 0], run.attributes("circuits/k_composition")
    assert null["baseline"] == null["chance"] == pytest.approx((3 * VOCAB + N_CTX) ** -0.5)
    z = last(run, "circuits/k_composition_z")[0, 0, 1, 0]
    assert z == pytest.approx((raw - null["null_mean"]) / null["null_sd"])
    assert z > run.attributes("circuits/k_composition_z")["max_null_q95"] > 0
    assert last(run, "circuits/q_composition")[0, 0, 1, 0] == pytest.approx(0, abs=1e-9)
    assert null["ln_treatment"] == "none"
    assert null["definition"] == "k_composition/frobenius_ratio/v1"


def test_its_causes_are_both_heads_and_keys_are_no_values(run):
    modes = list(run.layout.ablation_modes)
    removed = dict(zip(modes, last(run, "causal/remove_one_induction_accuracy")[..., 0], strict=True))
    assert last(run, "causal/clean_induction_accuracy") == 1
    for mode in ("zero", "mean"):
        assert (removed[mode] < -0.7).all(), mode
    assert removed["pattern_preserving"][0] == 0  # the previous-token head acts through keys
    assert removed["pattern_preserving"][1] < -0.7
    np.testing.assert_array_equal(last(run, "causal/keep_only_induction_accuracy"), 0)  # one head per layer
    redundancy = last(run, "causal/redundancy_induction_loss")
    assert redundancy[modes.index("zero")].tolist() == pytest.approx([1, 1])
    assert math.isnan(redundancy[modes.index("pattern_preserving"), 0])
    attribution = run.to_xarray("causal")["logit_attribution"][-1]
    assert float(attribution.sel(component="L1H0")) == pytest.approx(1 - 1 / VOCAB, abs=1e-9)
    assert float(attribution.drop_sel(component="L1H0").sum()) == pytest.approx(0, abs=1e-9)
    # On tokens of which only some recur: where nothing matches, the head writes a mixture of all it sees.
    assert last(run, "causal/head_logit_copying")[1, 0] > 0.4
    assert math.isnan(last(run, "causal/head_logit_copying")[0, 0])  # writes nothing to the logits
    assert last(run, "causal/induction_argmax")[1, 0] == 1
    assert last(run, "causal/previous_token_argmax")[0, 0] == 1
    null, sd = (last(run, f"causal/induction_mismatch_null{end}")[1, 0] for end in ("", "_sd"))
    assert 0 < null < 0.4  # blocks of other lengths lie elsewhere
    assert null + 4 * sd < 1


def test_a_positional_head_passes_blocks_of_its_length_and_nothing_else(circuit, as_transformer, tmp_path):
    period, position = 9, circuit["W_pos"]
    slots = torch.eye(N_CTX, circuit["W_Q"].shape[-1], dtype=torch.float64)
    circuit["W_Q"][1, 0] = 60 * circuit["W_Q"].shape[-1] ** 0.5 * position.T @ slots
    back = period - 1
    circuit["W_K"][1, 0] = position[:-back].T @ slots[back:]
    model, settings = as_transformer(circuit), config(min_period=period, max_period=period)
    run = stored(tmp_path, model, settings)
    score = dict(zip(run.layout.probe_kinds, last(run, "circuits/probe_induction_score")[:, 1, 0], strict=True))
    assert score["repeat"] == pytest.approx(1, abs=1e-9)
    assert score["random_gap"] == pytest.approx(0, abs=1e-9)
    probe = DataSource(settings, "cpu").repeat_probe
    _, pattern = model.forward_with_patterns(probe.tokens)
    stripe = circuits.induction_stripe(pattern, probe.offset, probe.start, length=period)
    assert float(stripe.value[1, 0]) == pytest.approx(1, abs=1e-9)
    assert last(run, "circuits/content_match_fraction")[1, 0] == 0
    accuracy = dict(zip(run.layout.probe_kinds, last(run, "behaviour/induction_accuracy_probe"), strict=True))
    assert accuracy["repeat"] == 1
    assert accuracy["random_gap"] < 0.3
    assert last(run, "behaviour/content_match_accuracy") < 0.3
    assert last(run, "causal/induction_mismatch_null")[1, 0] == pytest.approx(1, abs=1e-9)  # so are foreign targets


def test_chance_attributes_are_the_scores_of_uniform_attention_and_uniform_logits(circuit, as_transformer, tmp_path):
    circuit["W_Q"].zero_()
    circuit["W_U"].zero_()
    run = stored(tmp_path, as_transformer(circuit), config())
    ends = ("_score", "entropy", "accuracy", "probability", "attention", "_probe", "_copy", "_period")
    of_weights = ("ov_copying_score", "qk_matching_score", "content_match_accuracy")
    n_checked = 0
    for name in run.datasets():
        group, _, short = name.partition("/")
        attributes = run.attributes(name)
        if group not in ("behaviour", "circuits") or short in of_weights:
            continue
        if "corrected" in short:
            np.testing.assert_allclose(np.nan_to_num(last(run, name)), 0, atol=1e-7, err_msg=name)
        elif short.endswith(ends):
            found, chance = last(run, name), np.asarray(attributes["chance"], dtype=float)
            chance = chance.reshape(chance.shape + (1,) * (found.ndim - chance.ndim)) if chance.ndim else chance
            np.testing.assert_allclose(found, np.where(np.isnan(found), np.nan, chance), atol=1e-7, err_msg=name)
            assert np.isnan(found).any() <= ("nan_where" in attributes), name
            n_checked += 1
    assert n_checked > 25
    assert last(run, "behaviour/induction_loss") == pytest.approx(math.log(VOCAB))
    assert last(run, "behaviour/icl_slope") == pytest.approx(0, abs=1e-9)
    assert np.isnan(last(run, "circuits/content_match_fraction")).all()
    for name in ("induction_argmax", "previous_token_argmax", "duplicate_token_argmax"):
        chance = run.attributes(f"causal/{name}")["chance"]
        np.testing.assert_allclose(last(run, f"causal/{name}"), chance, atol=1e-7)


def test_definitions_in_the_file_are_those_of_the_functions_and_values_keep_their_range(run):
    from spectral.storage import dataset_table

    with_variant = {"behaviour/icl_score", "behaviour/aligned_loss"}  # the function adds where it looked
    for spec in dataset_table(run.layout):
        found = run.attributes(spec.path).get("definition")
        if spec.path in with_variant:
            assert found.startswith(spec.definition.removesuffix("/v1")), spec.path
        else:
            assert found == spec.definition, spec.path
        if spec.range is not None and spec.dtype == "float64":
            low, high = run.attributes(spec.path)["range"]
            values = run.read(spec.path)
            values = values[np.isfinite(values)]
            assert (values >= low - 1e-9).all(), spec.path
            assert (values <= high + 1e-9).all(), spec.path
        scores = spec.group in ("behaviour", "circuits", "causal") and spec.definition
        assert spec.range is not None or not scores or "eigenvalues" in spec.name, spec.path
    direct = circuits.induction_score(
        torch.ones(1, 2, 2).tril() / torch.tensor([[1.0], [2.0]]), torch.zeros(1, 2).long()
    )
    assert run.attributes("circuits/induction_score")["definition"] == direct.definition


def test_reference_levels_stand_beside_the_loss(run):
    settings = config()
    periods = range(settings.min_period, settings.max_period + 1)
    levels = behaviour.reference_losses(vocab_size=VOCAB, seq_length=N_CTX, periods=list(periods))
    attributes = run.attributes("behaviour/loss")
    assert {name: attributes[f"reference_{name}"] for name in levels} == pytest.approx(levels)
    mean = np.mean([behaviour.equal_count_ceiling(VOCAB, period) for period in periods])
    assert run.attributes("behaviour/induction_accuracy")["equal_count_ceiling"] == pytest.approx(mean)


def test_every_probe_is_stored_with_its_masks_and_hashes(run):
    drawn = DataSource(config(), "cpu").circuit_probes
    for kind, probe in drawn.items():
        tokens = run.probe(f"{kind}_tokens")
        attributes = run.attributes(f"probes/{kind}_tokens")
        np.testing.assert_array_equal(tokens, probe.tokens[: len(tokens)].numpy())
        np.testing.assert_array_equal(run.probe(f"{kind}_predictable"), probe.predictable[: len(tokens)].numpy())
        assert attributes["probe_sha256"] == probe.first(len(tokens)).sha256()
        assert attributes["n_scored"] == (24 if kind == "repeat" else 16)
        assert attributes["sha256"]
    ambiguous = run.probe("repeated_tokens_ambiguous")
    np.testing.assert_array_equal(ambiguous, drawn["repeated_tokens"].ambiguous[:16].numpy())
    assert len(run.probe("no_repeat_tokens")) == 24  # over all of them the mean of a removed head is taken
    np.testing.assert_array_equal(run.probe("repeat_offset"), drawn["repeat"].offset.numpy())


def test_layer_norm_is_folded_into_the_weights_that_are_scored(random_transformer, tmp_path):
    sizes = {"vocab_size": 19, "seq_length": 16, "n_layers": 2, "n_heads": 3, "d_model": 24}
    model = random_transformer(**sizes)
    run = stored(tmp_path, model, config(**sizes, layer_norm=True, min_period=4, max_period=6))
    folded = circuits.fold_model(model)
    scores = circuits.weight_scores(**folded.circuit_weights())
    for name in ("ov_copying_score", "qk_matching_score", "k_composition", "k_composition_matching"):
        np.testing.assert_array_equal(last(run, f"circuits/{name}"), scores[name].numpy())
        attributes = run.attributes(f"circuits/{name}")
        assert attributes["ln_treatment"] == "folded"
        assert attributes["definition"].endswith(",ln=folded/v2")
        assert attributes["max_null_q99"] > attributes["max_null_q95"] > attributes["null_mean"]
    raw = circuits.weight_scores(
        model.W_E, **{name: model.head_weights()[name] for name in ("W_Q", "W_K", "W_V", "W_O")}, W_U=model.W_U
    )
    assert not np.allclose(last(run, "circuits/ov_copying_score"), raw["ov_copying_score"].numpy(), atol=1e-3)
    null = circuits.weight_score_null(24, 8, vocab_size=19, n_draws=100, seed=0, ln_treatment="folded")
    assert run.attributes("circuits/k_composition")["null_sd"] == null["k_composition"].sd
    assert run.attributes("circuits/k_composition")["baseline"] == pytest.approx(23**-0.5)
    assert run.attributes("circuits/q_subspace_overlap")["chance"] == pytest.approx(8 / 23)
    overlap = circuits.subspace_overlap(folded.W_O, folded.W_Q)
    np.testing.assert_array_equal(last(run, "circuits/q_subspace_overlap"), overlap.numpy())


def test_models_without_learned_positions_have_no_positional_score(random_transformer, tmp_path):
    sizes = {"vocab_size": 19, "seq_length": 16, "n_layers": 1, "n_heads": 2, "d_model": 24, "positions": "rotary"}
    run = stored(tmp_path, random_transformer(**sizes), config(**sizes, layer_norm=True, min_period=4, max_period=6))
    assert "circuits/qk_positional_previous" not in run.datasets()
    assert "circuits/ov_top1_copying" in run.datasets()
    assert np.isnan(last(run, "circuits/k_composition_z")).all()  # one layer has no pairs


def test_removed_heads_are_replaced_by_their_mean_over_sequences_without_repeats(random_transformer, tmp_path):
    sizes = {"vocab_size": 19, "seq_length": 16, "n_layers": 2, "n_heads": 3, "d_model": 24}
    model, settings = random_transformer(**sizes), config(**sizes, layer_norm=True, min_period=4, max_period=6)
    run = stored(tmp_path, model, settings)
    probes = DataSource(settings, "cpu").circuit_probes
    repeat = probes["repeat"]
    effects = circuits.ablation_effects(
        model,
        repeat.tokens,
        {"loss": lambda logits: behaviour.induction_loss(logits, repeat.tokens, repeat.predictable)},
        means=circuits.mean_head_values(model, probes["no_repeat"].tokens),
    )
    assert run.layout.ablation_modes == effects.modes
    assert last(run, "causal/clean_induction_loss") == effects.clean["loss"]
    np.testing.assert_array_equal(last(run, "causal/remove_one_induction_loss"), effects.remove_one["loss"].numpy())
    np.testing.assert_array_equal(last(run, "causal/keep_only_induction_loss"), effects.keep_only["loss"].numpy())
    np.testing.assert_array_equal(last(run, "causal/remove_layer_induction_loss"), effects.remove_layer["loss"].numpy())
    np.testing.assert_array_equal(last(run, "causal/redundancy_induction_loss"), effects.redundancy()["loss"].numpy())
    attribution = circuits.direct_logit_attribution(model, repeat.tokens)
    assert run.layout.components == attribution.components
    np.testing.assert_array_equal(last(run, "causal/logit_attribution"), attribution.mean(repeat.predictable).numpy())
    np.testing.assert_array_equal(
        last(run, "causal/head_logit_copying"), circuits.head_logit_copying(model, probes["no_repeat"].tokens).value
    )
