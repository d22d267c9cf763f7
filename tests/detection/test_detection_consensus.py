"""From signals to a run: two families, Holm, agreement in time, lead and lag."""

import json

import numpy as np
import pytest

FAMILIES = {
    "accuracy": "behaviour",
    "loss": "behaviour",
    "induction": "circuits",
    "lambda_1": "spectrum",
}
STEPS = np.linspace(0, 1000, 51)
FEW = {"n_surrogates": 499}


def step_at(m, seed=0, sd=0.03):
    from spectral.detection.statistic import sigmoid

    return sigmoid(STEPS / 1000, m, 0.05) + sd * np.random.default_rng(seed).standard_normal(len(STEPS))


def noise(seed):
    return np.random.default_rng(seed).standard_normal(len(STEPS))


@pytest.fixture
def judge():
    from spectral.detection import detect_run

    def call(signals, **options):
        return detect_run(STEPS, signals, FAMILIES, **(FEW | options))

    return call


def test_two_agreeing_families_make_a_transition(judge):
    verdict = judge({"accuracy": step_at(0.5), "induction": step_at(0.48, 1), "lambda_1": noise(2)})
    assert verdict.detected
    assert verdict.verdict == "abrupt"
    assert verdict.agreeing_signals == {"behaviour": ["accuracy"], "circuits": ["induction"]}
    assert verdict.interval[0] < verdict.midpoint < verdict.interval[1]
    assert 470 <= verdict.midpoint <= 510
    assert verdict.onset < verdict.midpoint < verdict.end
    assert verdict.p_value <= 0.01


def test_two_signals_of_one_family_count_once(judge):
    verdict = judge({"accuracy": step_at(0.5), "loss": -step_at(0.5, 1), "lambda_1": noise(2)})
    assert (verdict.detected, verdict.verdict, verdict.reason) == (False, "inconclusive", "one_family")
    assert verdict.midpoint is None


def test_distant_midpoints_do_not_agree(judge):
    verdict = judge({"accuracy": step_at(0.3), "induction": step_at(0.6, 1)})
    assert (verdict.verdict, verdict.reason) == ("inconclusive", "families_disagree")


def test_noise_has_no_transition(judge):
    verdict = judge({"accuracy": noise(1), "induction": noise(2), "lambda_1": noise(3)})
    assert (verdict.verdict, verdict.reason) == ("none", "not_significant")


def test_smooth_signals_make_a_gradual_run(judge):
    smooth = 1 - np.exp(-STEPS / 200)
    verdict = judge({name: smooth + 0.03 * noise(i) for i, name in enumerate(FAMILIES)})
    assert (verdict.detected, verdict.verdict) == (False, "gradual")


def test_lead_and_lag_carry_the_sign_of_the_shift(judge):
    verdict = judge({"accuracy": step_at(0.5), "lambda_1": np.exp(step_at(0.42, 1))}, log_signals={"lambda_1"})
    (pair,) = verdict.lead_lag
    assert (pair.first, pair.second) == ("lambda_1", "accuracy")
    assert pair.difference == pytest.approx(-80, abs=20)
    assert pair.interval[0] <= -80 <= pair.interval[1]
    assert pair.resolved


def test_the_file_layout_is_plain_json(judge):
    verdict = judge({"accuracy": step_at(0.5), "induction": step_at(0.5, 1), "lambda_1": np.full(51, np.nan)})
    document = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert document["schema_version"] == "1.0"
    assert document["consensus"]["agreeing_signals"]["circuits"] == ["induction"]
    assert document["signals"]["lambda_1"]["reason"] == "non_finite"
    assert document["signals"]["accuracy"]["family"] == "behaviour"
    assert document["lead_lag"][0]["first"] == "induction"
    wanted = {"detected", "onset", "midpoint", "end", "interval", "p_value", "abruptness", "reason", "verdict"}
    assert wanted <= set(document["consensus"])
    assert wanted <= set(document["signals"]["accuracy"])


def test_same_seed_same_verdict(judge):
    signals = {"accuracy": step_at(0.5), "induction": step_at(0.48, 1)}
    assert judge(signals, seed=3).to_dict() == judge(signals, seed=3).to_dict()


def test_holm_matches_its_hand_case():
    from spectral.detection.consensus import holm

    # 3 x 0.01, then max(0.03, 2 x 0.02), then max(0.04, 0.03).
    assert holm({"b": 0.02, "a": 0.01, "c": 0.03}) == pytest.approx({"b": 0.04, "a": 0.03, "c": 0.04})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_weighted_median_matches_its_hand_cases():
    from spectral.detection.consensus import weighted_median

    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.ones(3)) == 2
    assert weighted_median(np.array([1.0, 2.0]), np.ones(2)) == 1.5
    assert weighted_median(np.array([1.0, 2.0, 9.0]), np.array([1.0, 1.0, 5.0])) == 9


def test_bad_input_is_named_with_its_remedy():
    from spectral.detection import detect_run

    with pytest.raises(ValueError, match="no family given for"):
        detect_run(STEPS, {"a": noise(0)}, {})
    with pytest.raises(ValueError, match="log_signals names"):
        detect_run(STEPS, {"a": noise(0)}, {"a": "behaviour"}, log_signals={"b"})


def test_a_run_without_signals_says_so():
    from spectral.detection import detect_run

    verdict = detect_run(STEPS, {}, {})
    assert (verdict.verdict, verdict.reason) == ("inconclusive", "no_signals")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["random_walk", "persistent_noise", "spikes", "transient_bump"])
def test_unrelated_null_signals_make_no_run_transition(judge, family):
    from spectral.detection.curves.families import NULL

    alarms = 0
    for i in range(30):
        rng = np.random.default_rng([11, i])
        signals = {name: NULL[family](STEPS / 1000, rng)[0] for name in FAMILIES}
        alarms += judge(signals, seed=i).detected
    assert alarms == 0
