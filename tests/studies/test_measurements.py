"""Models that are known by construction measure as what they are."""

import numpy as np
import pytest
from constructed_models import INDUCTION, KNOWING, POSITIONAL, SPREAD, measured


def test_an_induction_circuit_scores_as_one():
    found = measured(INDUCTION, "2L_varied_20000")
    assert found.periods.tolist() == list(range(10, 40))
    np.testing.assert_allclose(found.accuracy_distinct, 1.0)
    np.testing.assert_allclose(found.scores["induction_score"][1, 0], 1.0, atol=1e-6)
    np.testing.assert_allclose(found.induction_random_gap[1, 0], 1.0, atol=1e-6)
    np.testing.assert_allclose(found.induction_shuffled[1, 0], 1.0, atol=1e-6)
    np.testing.assert_allclose(found.content_match[1, 0], 1.0, atol=1e-6)
    np.testing.assert_allclose(found.scores["previous_token_score"][0, 0], 1.0, atol=1e-6)
    np.testing.assert_allclose(found.scores["current_token_score"][0, 1], 1.0, atol=1e-6)
    assert np.isnan(found.content_match[0]).all()
    assert found.boundary_accuracy < 0.2


def test_one_token_matching_reaches_its_ceiling_on_independent_tokens():
    from spectral.behaviour import equal_count_ceiling

    found = measured(INDUCTION, "2L_varied_20000")
    wanted = [equal_count_ceiling(256, period) for period in range(10, 40)]
    # 16 sequences of about 50 predictions that come in whole blocks.
    np.testing.assert_allclose(found.accuracy, wanted, atol=0.1)
    assert abs(np.mean(found.accuracy - wanted)) < 0.02
    assert found.mean_accuracy(range(10, 20)) == pytest.approx(found.accuracy[:10].mean())
    assert np.isnan(found.mean_accuracy([]))


def test_one_token_matching_is_right_on_a_quarter_of_the_ambiguous_places():
    found = measured(INDUCTION, "2L_varied_20000")
    for where in ("inside", "longer"):
        assert found.doubled[where].other == 1.0
        assert found.doubled[where].ambiguous == pytest.approx(0.25, abs=0.12)
    knowing = measured(KNOWING, "2L_varied_20000")
    assert knowing.doubled["inside"].ambiguous == knowing.doubled["longer"].ambiguous == 1.0


def test_a_positional_model_is_right_at_its_period_alone():
    found = measured(POSITIONAL, "1L_fixed")
    right = dict(zip(found.periods.tolist(), found.accuracy, strict=True))
    assert right[20] == 1.0
    assert right[10] == pytest.approx(
        60 / 69, abs=0.01
    )  # 20 is a multiple of 10, but out of reach of the first 9 of them
    assert max(value for period, value in right.items() if period not in (10, 20)) < 0.02
    assert found.induction_random_gap.max() < 0.2
    assert found.attention_at([19])[:, 0, 0] == pytest.approx(1.0)
    assert (found.attention_at([20]) < 0).all()


def test_profiles_and_maps_show_what_the_heads_do():
    found = measured(SPREAD, "1L_varied")
    assert found.offset_profile.shape == (3, 1, 2, 60)
    np.testing.assert_allclose(found.offset_profile[:, 0, 0, 19:29], 0.1, atol=1e-6)
    np.testing.assert_allclose(found.offset_profile[:, 0, 1, 0], 1.0)
    assert found.offset_chance == pytest.approx(np.mean([1 / (q + 1) for q in range(60, 80)]))
    assert found.maps.shape == (6, 1, 2, 80, 80)
    np.testing.assert_allclose(found.maps.sum(-1), 1.0, atol=1e-5)


def test_the_marked_places_hold_the_doubled_token():
    places = np.array(measured(INDUCTION, "2L_varied_20000").doubled_places)
    first, second = places[:2]
    assert first < second < 25
    assert set(places) == {place for place in range(80) if place % 25 in (first, second)}


def test_measuring_is_a_function_of_the_seed_and_leaves_the_mode():
    import dataclasses

    from spectral.models import Transformer
    from spectral.studies.repeated.measurements import measure_model
    from spectral.studies.repeated.plan import StudyPlan

    config = StudyPlan().job("1L_fixed", 3).config
    model = Transformer.from_config(config).train()
    one, other = (measure_model(model, config, name="1L_fixed", step=0, n_sequences=8) for _ in range(2))
    assert model.training
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
    assert one.seed == 3
    assert one.accuracy.max() < 0.1
