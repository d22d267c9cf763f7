"""The hand-built induction circuit: every score of patterns, weights and outputs has its known value."""

import pytest
import torch

from spectral import behaviour, circuits

VOCAB, N_CTX = 14, 48


def head_score(result, layer):
    return float(result.value[layer, 0])


@pytest.mark.parametrize("period", range(5, VOCAB + 1))
@pytest.mark.parametrize("rotate", [None, 1])
def test_scores_and_accuracy_are_exactly_1_for_every_period(induction_circuit, forward, repeated, period, rotate):
    tokens, predictable, _ = repeated(VOCAB, period, 3)
    logits, pattern = forward(induction_circuit(VOCAB, N_CTX, rotate=rotate), tokens)
    scores = circuits.attention_scores(pattern, tokens)
    assert head_score(scores["induction_score"], 1) == pytest.approx(1, abs=1e-9)
    assert float(scores["induction_score"].corrected[1, 0]) == pytest.approx(1, abs=1e-9)
    assert head_score(scores["previous_token_score"], 0) == pytest.approx(1, abs=1e-9)
    assert scores["induction_score"].n_pairs == 8 * 2 * period
    accuracy = behaviour.induction_accuracy(logits, tokens, predictable)
    assert float(accuracy) == 1
    assert accuracy.n_pairs == 8 * (2 * period - 1)


def test_the_boundary_is_guessed_like_any_context_token(induction_circuit, forward, repeated):
    tokens, _, boundary = repeated(VOCAB, 9, 3)
    logits, _ = forward(induction_circuit(VOCAB, N_CTX), tokens)
    # The end of a block matches nothing before, so the head attends everywhere: 9 tokens and BOS tie.
    assert float(behaviour.boundary_accuracy(logits, tokens, boundary)) == pytest.approx(1 / 10)


@pytest.mark.parametrize("period", [5, 9])
def test_without_bos_the_first_key_is_its_own_previous_token(induction_circuit, forward, repeated, period):
    tokens, predictable, _ = repeated(VOCAB, period, 2, bos=False)
    logits, pattern = forward(induction_circuit(VOCAB, N_CTX), tokens)
    induction = circuits.induction_score(pattern, tokens)
    assert head_score(induction, 1) == pytest.approx(1 - 0.5 / period, abs=1e-9)
    first = torch.zeros_like(predictable)
    first[:, period] = True
    assert float(behaviour.induction_accuracy(logits, tokens, first)) == pytest.approx(0.5)
    assert float(behaviour.induction_accuracy(logits, tokens, predictable & ~first)) == 1


def test_content_is_matched_across_a_random_gap(induction_circuit, forward):
    vocab, period, rng = 30, 6, torch.Generator().manual_seed(0)
    rows, masks = [], []
    for gap in range(2, 10):
        order = torch.randperm(vocab, generator=rng)
        lead, block, filler, tail = order[:3], order[3:9], order[9 : 9 + gap], order[20 : 30 - gap]
        rows.append(torch.cat([torch.tensor([vocab]), lead, block, filler, block, tail]))
        start = 1 + 3 + period + gap  # index of the first token of the second copy
        position = torch.arange(len(rows[-1]) - 1)
        masks.append((position >= start) & (position < start + period - 1))
    tokens, predictable = torch.stack(rows), torch.stack(masks)
    logits, pattern = forward(induction_circuit(vocab, N_CTX), tokens)
    assert float(behaviour.induction_accuracy(logits, tokens, predictable)) == 1
    assert head_score(circuits.induction_score(pattern, tokens), 1) == pytest.approx(1, abs=1e-9)


def test_content_is_matched_inside_shuffled_segments(induction_circuit, forward):
    block = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))[:12]
    segments = block.reshape(4, 3)
    tokens = torch.cat([torch.tensor([VOCAB]), block, segments[[1, 2, 3, 0]].flatten()])[None]
    position = torch.arange(24)[None]
    predictable = (position >= 13) & ((position - 13) % 3 < 2)  # not the last token of a segment
    logits, pattern = forward(induction_circuit(VOCAB, N_CTX), tokens)
    assert float(behaviour.induction_accuracy(logits, tokens, predictable)) == 1
    assert head_score(circuits.induction_score(pattern, tokens), 1) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("rotate", [None, 1, 2])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_weight_scores_name_the_circuit(induction_circuit, rotate, sign):
    weights = induction_circuit(VOCAB, N_CTX, ov_sign=sign, rotate=rotate)
    W = {name: weight for name, weight in weights.items() if name != "W_pos"}
    scores = circuits.weight_scores(**W)
    assert float(scores["ov_copying_score"][1, 0]) == pytest.approx(sign, abs=1e-10)
    assert float(scores["k_composition_matching"][0, 0, 1, 0]) == pytest.approx(1, abs=1e-10)
    assert float(scores["k_composition"][0, 0, 1, 0]) == pytest.approx((VOCAB + 1) ** -0.5, abs=1e-10)
    assert float(scores["q_composition"][0, 0, 1, 0]) == pytest.approx(0, abs=1e-10)
    assert float(scores["v_composition"][0, 0, 1, 0]) == pytest.approx(0, abs=1e-10)
    # Circuits that are zero have no direction to score, in any basis: L0H0 writes nothing that W_U reads, and neither
    # head compares tokens directly.
    assert bool(scores["ov_copying_score"][0, 0].isnan())
    assert bool(scores["qk_matching_score"].isnan().all())
    top1 = circuits.ov_top1_copying(W["W_E"], W["W_V"][1, 0], W["W_O"][1, 0], W["W_U"])
    assert float(top1) == (1 if sign > 0 else 0)


def test_a_sign_flip_in_the_output_ruins_the_accuracy(induction_circuit, forward, repeated):
    tokens, predictable, _ = repeated(VOCAB, 9, 3)
    logits, _ = forward(induction_circuit(VOCAB, N_CTX, ov_sign=-1.0), tokens)
    assert float(behaviour.induction_accuracy(logits, tokens, predictable)) == 0


@pytest.mark.parametrize("layer", [0, 1])
def test_the_circuit_needs_both_heads(induction_circuit, forward, repeated, layer):
    tokens, predictable, _ = repeated(VOCAB, 9, 3)
    weights = induction_circuit(VOCAB, N_CTX)
    weights["W_O"][layer] = 0
    logits, _ = forward(weights, tokens)
    assert float(behaviour.induction_accuracy(logits, tokens, predictable)) < 0.3


def test_a_rotation_of_the_residual_stream_is_invisible(induction_circuit, forward, repeated):
    tokens, predictable, boundary = repeated(VOCAB, 9, 3, bos=False)
    options = {"t1": 4, "t2": tokens.shape[1] - 2, "boundary_mask": boundary}
    results = []
    for rotate in (None, 3):
        logits, pattern = forward(induction_circuit(VOCAB, N_CTX, rotate=rotate), tokens)
        outputs = behaviour.behaviour_scores(logits, tokens, predictable, **options)
        results.append((logits, circuits.attention_scores(pattern, tokens), outputs))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-9)
    for name, score in results[0][1].items():
        torch.testing.assert_close(results[1][1][name].value, score.value, rtol=0, atol=1e-9)
    for name in ("induction_loss", "in_context_probability", "icl_score", "loss_by_position"):  # the others meet ties
        torch.testing.assert_close(results[1][2][name].value, results[0][2][name].value, rtol=0, atol=1e-9)
