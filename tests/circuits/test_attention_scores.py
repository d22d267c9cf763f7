import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral import circuits
from spectral.errors import NonFiniteError

ALL = (
    "induction_score", "previous_token_score", "duplicate_token_score",
    "first_token_score", "current_token_score", "attention_entropy",
)  # fmt: skip


def one_hot_pattern(keys, *, batch=1):
    """Return [batch, query, key] attending from query q to keys[q] only."""
    return torch.nn.functional.one_hot(torch.as_tensor(keys), len(keys)).double().expand(batch, -1, -1)


def uniform_pattern(n, *, batch=1):
    visible = torch.ones(batch, n, n, dtype=torch.float64).tril()
    return visible / visible.sum(-1, keepdim=True)


def random_pattern(*shape, seed=0, dtype=torch.float64):
    scores = 2 * torch.randn(*shape, shape[-1], generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return scores.masked_fill(torch.ones(shape[-1], shape[-1]).triu(1).bool(), -torch.inf).softmax(-1)


def two_copies(period, *, batch=1):
    return torch.arange(period).repeat(2).expand(batch, -1)


def direct_induction(pattern, tokens):
    """Return (value, corrected, chance, n) by loops over the definition, one head [batch, query, key]."""
    raw, corrected, chances = [], [], []
    for b, sequence in enumerate(tokens.tolist()):
        for q in range(len(sequence)):
            targets = [k for k in range(1, q + 1) if sequence[k - 1] == sequence[q]]
            if targets:
                mass, chance = sum(float(pattern[b, q, k]) for k in targets), len(targets) / (q + 1)
                raw.append(mass)
                corrected.append((mass - chance) / (1 - chance))
                chances.append(chance)
    return np.mean(raw), np.mean(corrected), np.mean(chances), len(raw)


@pytest.mark.parametrize("vocab", [2, 5, 40])
def test_induction_score_follows_its_definition_token_by_token(vocab):
    tokens = torch.randint(0, vocab, (3, 17), generator=torch.Generator().manual_seed(1))
    pattern = random_pattern(3, 2, 4, 17)  # [batch, layer, head, query, key]
    result = circuits.induction_score(pattern, tokens)
    for layer in range(2):
        for head in range(4):
            value, corrected, chance, n_pairs = direct_induction(pattern[:, layer, head], tokens)
            assert float(result.value[layer, head]) == pytest.approx(value, abs=1e-12)
            assert float(result.corrected[layer, head]) == pytest.approx(corrected, abs=1e-12)
    assert result.chance == pytest.approx(chance)
    assert result.n_pairs == n_pairs


@pytest.mark.parametrize(("period", "chance"), [(8, 0.0829), (20, 0.0340), (50, 0.0138), (100, 0.0069)])
def test_chance_of_induction_on_two_copies(period, chance):
    result = circuits.induction_score(uniform_pattern(2 * period), two_copies(period))
    assert result.chance == pytest.approx(chance, abs=5e-5)
    assert float(result) == pytest.approx(result.chance)


@pytest.mark.parametrize(("length", "chance"), [(16, 0.159), (40, 0.084), (100, 0.042)])
def test_chance_of_the_previous_token(length, chance):
    assert circuits.previous_token_score(uniform_pattern(length)).chance == pytest.approx(chance, abs=5e-4)


def test_uniform_attention_is_chance_everywhere():
    tokens = torch.randint(0, 6, (4, 20), generator=torch.Generator().manual_seed(0))
    scores = circuits.attention_scores(uniform_pattern(20, batch=4), tokens)
    for name in ALL:
        assert float(scores[name]) == pytest.approx(scores[name].chance), name
        assert float(scores[name].corrected) == pytest.approx(0, abs=1e-12), name
    assert float(scores["attention_entropy"]) == pytest.approx(1)


def test_identity_attention_is_a_current_token_head():
    scores = circuits.attention_scores(one_hot_pattern(range(16)), two_copies(8))
    expected = dict.fromkeys(ALL, 0.0) | {"current_token_score": 1.0}
    assert {name: float(scores[name]) for name in ALL} == expected
    assert float(scores["attention_entropy"].corrected) == 1


def test_adjacent_equal_tokens_make_the_own_position_an_induction_target():
    result = circuits.induction_score(one_hot_pattern([0, 1]), torch.tensor([[3, 3]]))
    assert float(result) == 1


@pytest.mark.parametrize("period", [8, 20])
def test_a_head_resting_on_token_0_is_a_sink_and_no_induction_head(period):
    scores = circuits.attention_scores(one_hot_pattern([0] * 2 * period), two_copies(period))
    assert float(scores["induction_score"]) == 0  # a full diagonal stripe would give 1 / (period + 1)
    assert float(scores["first_token_score"]) == 1


@pytest.mark.parametrize("offset", [7, 8, 9])
def test_the_induction_offset_is_period_minus_1_and_the_duplicate_offset_the_period(offset):
    pattern = one_hot_pattern([max(q - offset, 0) for q in range(24)])
    tokens = torch.arange(8).repeat(3)[None]
    # Queries of the third copy have targets in both earlier copies; one of them suffices for the whole mass.
    assert float(circuits.induction_score(pattern, tokens)) == (1 if offset == 7 else 0)
    duplicate = circuits.duplicate_token_score(pattern, tokens)
    assert float(duplicate) == pytest.approx(1 if offset == 8 else 1 / 16 if offset == 9 else 0)


def test_a_positional_head_loses_its_score_on_random_gaps():
    period, offset = 8, 7
    repeat = circuits.induction_score(one_hot_pattern([max(q - offset, 0) for q in range(16)]), two_copies(period))
    assert float(repeat) == 1
    rows = [[*range(8), *range(20, 20 + gap), *range(8), *range(40, 50 - gap)] for gap in (2, 3, 5)]
    gap = circuits.induction_score(
        one_hot_pattern([max(q - offset, 0) for q in range(26)], batch=3), torch.tensor(rows)
    )
    assert float(gap) == 0
    assert -0.2 < float(gap.corrected) < 0
    assert float(circuits.content_match_fraction(gap.corrected, repeat.corrected)) == 0


def test_content_match_fraction_clips_and_refuses_small_denominators():
    gap = torch.tensor([0.5, 0.9, -0.1, 0.1, float("nan"), 0.5], dtype=torch.float64)
    repeat = torch.tensor([1.0, 0.6, 0.9, 0.19, 0.9, float("nan")], dtype=torch.float64)
    fraction = circuits.content_match_fraction(gap, repeat)
    expected = [0.5, 1.0, 0.0, math.nan, math.nan, math.nan]
    np.testing.assert_allclose(fraction.numpy(), expected)


def test_tokens_without_a_target_give_nan_and_no_pairs():
    tokens = torch.arange(10).expand(3, -1)
    for score in (circuits.induction_score, circuits.duplicate_token_score):
        result = score(random_pattern(3, 2, 10), tokens)
        assert result.value.isnan().all()
        assert result.corrected.isnan().all()
        assert math.isnan(result.chance)
        assert result.n_pairs == 0


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (0, 3, 5, 5)])
def test_one_position_or_no_sequence_gives_nan(shape):
    pattern, tokens = torch.ones(shape, dtype=torch.float64), torch.zeros(shape[0], shape[-1], dtype=torch.int64)
    for name, result in circuits.attention_scores(pattern, tokens).items():
        assert result.value.shape == (3,), name
        assert result.value.isnan().all(), name
        assert result.corrected.isnan().all(), name
        assert result.n_pairs == 0, name


def test_batch_value_is_the_pair_weighted_mean_of_single_sequences():
    tokens = torch.randint(0, 12, (6, 15), generator=torch.Generator().manual_seed(3))
    pattern = random_pattern(6, 3, 15)
    whole = circuits.attention_scores(pattern, tokens)
    for name in ALL:
        singles = [circuits.attention_scores(pattern[i : i + 1], tokens[i : i + 1])[name] for i in range(6)]
        n_pairs = torch.tensor([single.n_pairs for single in singles], dtype=torch.float64)
        for field in ("value", "corrected"):
            parts = torch.stack([getattr(single, field) for single in singles]).nan_to_num()
            mean = (parts * n_pairs[:, None]).sum(0) / n_pairs.sum()
            torch.testing.assert_close(getattr(whole[name], field), mean, rtol=0, atol=1e-12)


def test_single_functions_agree_with_the_combined_call_and_leave_inputs_alone():
    tokens = torch.randint(0, 12, (4, 15), generator=torch.Generator().manual_seed(3))
    pattern = random_pattern(4, 3, 15).requires_grad_()
    copies = pattern.detach().clone(), tokens.clone()
    scores = circuits.attention_scores(pattern, tokens)
    assert tuple(scores) == ALL
    for name in ALL:
        alone = getattr(circuits, name)(pattern, tokens)
        assert torch.equal(alone.value, scores[name].value)
        assert alone.definition == scores[name].definition
        assert not alone.value.requires_grad
    assert torch.equal(pattern, copies[0])
    assert torch.equal(tokens, copies[1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
def test_low_precision_patterns_are_scored_to_their_own_precision(dtype, tolerance):
    tokens = torch.randint(0, 12, (4, 30), generator=torch.Generator().manual_seed(3))
    pattern = random_pattern(4, 3, 30)
    low = circuits.attention_scores(pattern.to(dtype), tokens)
    for name, exact in circuits.attention_scores(pattern, tokens).items():
        assert low[name].value.dtype == torch.float64
        torch.testing.assert_close(low[name].value, exact.value, rtol=0, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(
    vocab=st.integers(1, 30),
    length=st.integers(1, 24),
    sharpness=st.floats(0, 100),
    seed=st.integers(0, 10**6),
    float32=st.booleans(),
)
def test_scores_stay_in_their_range(vocab, length, sharpness, seed, float32):
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab, (2, length), generator=rng)
    scores = sharpness * torch.randn(2, 2, length, length, generator=rng, dtype=torch.float64)
    pattern = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)
    for name, result in circuits.attention_scores(pattern.float() if float32 else pattern, tokens).items():
        if result.n_pairs == 0:
            assert result.value.isnan().all(), name
        else:
            assert bool(((result.value >= 0) & (result.value <= 1)).all()), name
            assert bool((result.corrected <= 1).all()), name
            assert 0 < result.chance <= 1, name


def test_patterns_that_are_no_causal_softmax_are_refused():
    tokens = torch.zeros(1, 6, dtype=torch.int64)
    full = torch.full((1, 6, 6), 1 / 6, dtype=torch.float64)  # looks into the future
    with pytest.raises(ValueError, match="visible keys"):
        circuits.induction_score(full, tokens)
    dropped = uniform_pattern(6) * torch.tensor([1.0, 0, 1, 1, 1, 1], dtype=torch.float64) / 0.9
    with pytest.raises(ValueError, match="dropout"):
        circuits.previous_token_score(dropped)
    broken = uniform_pattern(6).clone()
    broken[0, 3, 2] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN"):
        circuits.attention_entropy(broken)


def test_wrong_shapes_and_missing_tokens_are_refused():
    with pytest.raises((ValueError, TypeError)):
        circuits.previous_token_score(torch.ones(2, 3, 4, 5))
    with pytest.raises((ValueError, TypeError)):
        circuits.induction_score(uniform_pattern(6), torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises((ValueError, TypeError)):
        circuits.duplicate_token_score(uniform_pattern(6), None)


def test_a_result_reads_as_number_and_array():
    one, many = circuits.first_token_score(uniform_pattern(6)), circuits.first_token_score(random_pattern(2, 3, 6))
    assert float(one) == float(one.value)
    assert np.asarray(many).shape == (3,)
    assert np.asarray(many).dtype == np.float64
    copied = np.array(many)
    copied[:] = 7  # a copy: the stored tensor must not follow
    assert float(many.value.max()) <= 1
    with pytest.raises(TypeError, match="not one number"):
        float(many)
