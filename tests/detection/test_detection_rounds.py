"""Several transitions, bumps, calibrated floors, and input that must never alarm."""

import json

import numpy as np
import pytest

STEPS = np.linspace(0, 1000, 200)


@pytest.fixture
def detect():
    from spectral.detection import detect_transition

    return detect_transition


def steps_at(*places, sd=0.02, seed=0, width=0.03):
    from spectral.detection.statistic import sigmoid

    t = STEPS / 1000
    noise = sd * np.random.default_rng(seed).standard_normal(len(t))
    return sum(sigmoid(t, m, width) for m in places) + noise


def test_two_transitions_are_both_found_and_dated(detect):
    found = detect(STEPS, steps_at(0.3, 0.7))
    assert found.detected
    assert len(found.further) == 1
    assert sorted([found.midpoint, found.further[0].midpoint]) == pytest.approx([300, 700], abs=5)


@pytest.mark.parametrize("places", [(0.2, 0.6), (0.16, 0.58), (0.25, 0.5, 0.75)])
def test_equal_steps_do_not_hide_each_other(detect, places):
    # Each alone leaves the others as residuals that wander: phi = 0.97 and no significance in the first search.
    found = detect(STEPS, steps_at(*places, seed=3), n_surrogates=399, bumps=False)
    assert found.detected
    assert sorted([found.midpoint, *(one.midpoint for one in found.further)]) == pytest.approx(
        [1000 * m for m in places], abs=5
    )


def test_where_noise_wanders_a_jump_must_stand_out():
    from spectral.detection.tables import calibrated_p, least_jump_ratio

    least = least_jump_ratio(200)
    assert 3 < least < 10
    assert calibrated_p(300.0, 0.9, 200, least - 0.1) == 1.0
    assert calibrated_p(300.0, 0.9, 200, least + 0.1) < 0.001
    assert calibrated_p(300.0, 0.3, 200, 1.0) < 0.001


def test_the_jump_ratio_compares_with_the_largest_change_elsewhere():
    from spectral.detection.statistic import ratio_to_elsewhere

    t = np.linspace(0, 1, 101)
    rest = np.zeros(101)
    rest[20:] += 0.5  # a change of 0.5 far from the sigmoid at 0.7
    rest[70] += 5.0  # within the change itself nothing counts
    assert ratio_to_elsewhere(t, rest, midpoint=0.7, width=0.02, amplitude=-2.0) == pytest.approx(4.0)


def test_a_screened_surrogate_cannot_reach_the_statistic():
    from spectral.detection import rounds
    from spectral.detection import statistic as st

    t, none = np.linspace(0, 1, 60), np.empty((0, 2))
    for phi in (0.0, 0.5):
        noise = np.random.default_rng(4).standard_normal((400, 60))
        rows = st.hampel(3 * np.exp(-t / 0.1) + 0.3 * st.colour(noise, st.correlations(t, phi)))
        rough = st.screen_rows(t, rows, phi_index=int(np.argmin(abs(st.PHI_GRID - phi))), smooth=0, known=none)
        bound = rounds._SCREEN_FACTOR * np.maximum(rough, 0) + rounds._SCREEN_OFFSETS[0]
        assert np.all(st.scan_rows(t, rows).statistic < bound)


def test_one_transition_stays_one(detect):
    found = detect(STEPS, steps_at(0.4))
    assert found.detected
    assert found.further == ()
    assert found.bumps == ()
    assert found.amplitude_in_range == pytest.approx(1, abs=0.1)
    assert found.amplitude_in_noise_sd == pytest.approx(50, rel=0.3)


@pytest.mark.parametrize(
    ("event", "shape"),
    [
        (lambda t: np.exp(-(((t - 0.6) / 0.012) ** 2)), "gaussian"),
        (lambda t: np.where(t >= 0.6, np.exp(-(t - 0.6) / 0.02), 0), "decay"),
    ],
)
def test_a_passing_event_is_a_bump_and_no_transition(detect, event, shape):
    t = STEPS / 1000
    y = np.exp(-t / 0.3) + event(t) + 0.02 * np.random.default_rng(0).standard_normal(200)
    found = detect(STEPS, y)
    assert not found.detected
    assert len(found.bumps) == 1
    assert found.bumps[0].peak == pytest.approx(600, abs=8)
    assert found.bumps[0].shape == shape
    assert found.bumps[0].height == pytest.approx(1, abs=0.3)


def test_everything_found_survives_json(detect):
    from spectral.detection import Transition

    y = steps_at(0.3, 0.7)
    y[100:102] += 1.5
    found = detect(STEPS, y)
    assert found.further
    assert found.bumps
    assert Transition.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_the_floor_falls_with_the_statistic_and_rises_with_wandering_noise():
    from spectral.detection.tables import floor_p

    p = [floor_p(statistic, 0.95, 100) for statistic in (0.0, 20.0, 40.0, 60.0, 200.0)]
    assert p == sorted(p, reverse=True)
    assert p[0] == 1.0
    assert p[-1] < 1e-4
    assert floor_p(40.0, 0.95, 200) > floor_p(40.0, 0.1, 200)
    assert floor_p(40.0, 0.95, 10_000) == floor_p(40.0, 0.95, 400)


def test_calibration_never_sees_a_test_family():
    from spectral.detection.curves import splits
    from spectral.detection.tables import tables

    assert not set(tables()["null_families"]) & set(splits.TEST_NULL)
    assert not set(tables()["abrupt_families"]) & set(splits.TEST_ABRUPT)
    assert set(splits.CALIBRATION_NULL) | set(splits.TEST_NULL) == set(splits.ALL_NULL)


def test_stored_floors_are_what_the_simulation_gives():
    from spectral.detection.calibration import floor_rows
    from spectral.detection.tables import FLOOR_LEVELS, tables

    # 300 curves against the table's 4000, at the 10 % level of nearly-walking noise: 20 % for the quantile's own error.
    level = FLOOR_LEVELS.index(0.1)
    again = floor_rows(100, 300, seed=99)[-1][level]
    assert again == pytest.approx(tables()["floor"]["100"][-1][level], rel=0.25)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(200),
        np.full(200, 1e9),
        np.arange(200.0),
        np.arange(200.0) ** 3,
        np.log1p(np.arange(200.0)),
        np.sqrt(np.arange(200.0)),
        np.maximum.accumulate(np.random.default_rng(0).standard_normal(200)),
        np.cumsum(np.abs(np.random.default_rng(1).standard_normal(200))),
        np.cumsum(np.random.default_rng(2).standard_normal(200)),
        np.tile([0.0, 1.0], 100),
        np.where(np.arange(200) == 90, 1.0, 0.0),
    ],
    ids=[
        "zero",
        "constant",
        "line",
        "cubic",
        "log",
        "root",
        "best_so_far",
        "counter",
        "walk",
        "alternating",
        "single_point",
    ],
)
def test_curves_without_a_transition_never_alarm(detect, values):
    assert not detect(STEPS, values).detected


@pytest.mark.parametrize("n", [0, 1, 2, 11, 12, 39])
def test_too_few_snapshots_say_so(detect, n):
    y = steps_at(0.5)
    found = detect(np.arange(n), y[np.linspace(0, 199, n).astype(int)])
    assert (found.verdict, found.reason) == ("inconclusive", "too_few_snapshots")


def test_an_infinite_value_is_inconclusive(detect):
    y = steps_at(0.5)
    y[10] = np.inf
    assert detect(STEPS, y).reason == "non_finite"


@pytest.fixture
def judge():
    from spectral.detection import detect_run

    families = {"loss": "behaviour", "score": "circuits", "eigenvalue": "spectrum", "alignment": "spectrum"}

    def call(signals, **options):
        return detect_run(STEPS, signals, {name: families[name] for name in signals}, **options)

    return call


def test_the_spectrum_alone_can_be_asked(judge):
    signals = {"loss": steps_at(0.5), "eigenvalue": steps_at(0.5, seed=1), "alignment": steps_at(seed=2)}
    verdict = judge(signals, select_families=["spectrum"], n_surrogates=399)
    assert verdict.detected
    assert verdict.rule == "one_family"
    assert set(verdict.signals) == {"eigenvalue", "alignment"}
    assert judge(signals, select_signals=["eigenvalue"], n_surrogates=399).reason == "one_family"
    with pytest.raises(ValueError, match=r"select_families names \['typo'\]"):
        judge(signals, select_families=["typo"])


def test_a_run_lists_all_its_transitions(judge):
    signals = {"loss": steps_at(0.3, 0.7), "score": steps_at(0.3, 0.7, seed=1), "eigenvalue": steps_at(0.3, seed=2)}
    verdict = judge(signals)
    assert sorted(one.midpoint for one in verdict.transitions) == pytest.approx([300, 700], abs=5)
    assert verdict.midpoint == verdict.transitions[0].midpoint
    both = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert len(both["transitions"]) == 2
    assert {entry["family"] for entry in both["transitions"][0]["family_order"]} <= set(verdict.families.values())


def test_the_order_of_families_is_corrected_for_its_pairs(judge):
    signals = {"loss": steps_at(0.5), "score": steps_at(0.5, seed=1), "eigenvalue": steps_at(0.46, seed=2)}
    verdict = judge(signals, n_surrogates=399)
    assert verdict.transitions[0].family_order[0][0] == "spectrum"
    for pair in verdict.lead_lag:
        assert pair.holm_p >= pair.p_value
        assert pair.resolved == (pair.first_family == "spectrum")


def test_verdicts_that_change_on_a_logarithmic_axis_are_listed(judge):
    # A rise that is even in log(step) is an early jump on the linear axis' scale, and no jump on the logarithmic one.
    signals = {"loss": steps_at(0.5), "score": np.exp(-STEPS / 60) + steps_at(seed=3)}
    verdict = judge(signals, n_surrogates=399)
    for name, (linear, logarithmic) in verdict.log_axis_changes.items():
        assert linear == verdict.signals[name].verdict
        assert logarithmic != linear
    assert judge(signals, n_surrogates=399, log_axis=False).log_axis_changes == {}
