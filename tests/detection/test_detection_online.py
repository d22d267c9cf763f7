"""The online detector: causality, resumption, states, and the whole-run false-alarm level."""

import json
import math

import numpy as np
import pytest

FAMILIES = {"loss": "behaviour", "score": "circuits", "lambda_1": "spectrum"}


@pytest.fixture
def detector():
    from spectral.detection import OnlineDetector

    def build(**options):
        return OnlineDetector(FAMILIES, planned_steps=1000, **options)

    return build


def run(n=51, m=0.45, seed=0, kept=True):
    """Return steps and rows of a run whose three signals change at m (and come back, unless kept)."""
    from spectral.detection.statistic import sigmoid

    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, n)
    change = sigmoid(t, m, 0.05) - (0 if kept else sigmoid(t, m + 0.1, 0.02))
    rows = [
        {
            "loss": 2 * np.exp(-x / 0.03) + 2 - 1.5 * s + 0.03 * rng.standard_normal(),
            "score": 0.05 + 0.8 * s + 0.02 * rng.standard_normal(),
            "lambda_1": math.exp(1 + s + 0.1 * rng.standard_normal()),
        }
        for x, s in zip(t, change, strict=True)
    ]
    return [round(1000 * x) for x in t], rows


def feed(detector, steps, rows):
    return [event for step, row in zip(steps, rows, strict=True) for event in detector.update(step, row)]


def test_a_transition_is_confirmed_soon_after_and_never_before(detector):
    steps, rows = run()
    events = feed(detector(log_signals=["lambda_1"]), steps, rows)
    confirmed = [e for e in events if e.kind == "transition_confirmed"]
    assert len(confirmed) == 1
    assert 450 < confirmed[0].step <= 450 + 150
    assert confirmed[0].midpoint == pytest.approx(450, abs=25)
    assert len({FAMILIES[name] for name in confirmed[0].signals}) >= 2
    kinds = [e.kind for e in events if e.signal == "score"]
    assert kinds == ["candidate", "confirmed"]


def test_a_change_that_does_not_stay_is_revoked(detector):
    steps, rows = run(kept=False)
    watcher = detector()
    events = feed(watcher, steps, rows)
    assert any(e.kind == "revoked" and e.signal == "score" for e in events)
    assert not watcher.transition_confirmed


@pytest.mark.parametrize("cut", [25, 30, 40])
def test_the_future_cannot_change_the_past(detector, cut):
    steps, rows = run()
    other = [row if i < cut else {k: 10 * v for k, v in row.items()} for i, row in enumerate(rows)]
    one, two = feed(detector(), steps[:cut], rows[:cut]), feed(detector(), steps, other)
    assert one == [e for e in two if e.step < steps[cut]]


@pytest.mark.parametrize("cut", [5, 26, 35])
def test_resumed_equals_uninterrupted(detector, cut):
    steps, rows = run()
    whole = detector()
    expected = feed(whole, steps, rows)
    first = detector()
    events = feed(first, steps[:cut], rows[:cut])
    # Through JSON: only plain types survive, as in a checkpoint read with weights_only.
    state = json.loads(json.dumps(first.state_dict(), allow_nan=False))
    second = detector()
    second.load_state_dict(state)
    events += feed(second, steps[cut:], rows[cut:])
    assert events == expected
    assert second.statistics == whole.statistics
    assert second.state_dict() == whole.state_dict()


def test_state_passes_through_a_weights_only_checkpoint(detector, tmp_path):
    import torch

    steps, rows = run()
    watcher = detector()
    feed(watcher, steps[:30], rows[:30])
    torch.save(watcher.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == watcher.state_dict()


def test_a_state_of_an_older_calibration_goes_on_with_what_it_announced(detector):
    steps, rows = run()
    first = detector()
    feed(first, steps[:40], rows[:40])
    assert first.transition_confirmed
    second = detector()
    second.load_state_dict(first.state_dict() | {"calibration_id": "online-calibration-2024"})
    assert second.transition_confirmed
    assert feed(second, steps[40:], rows[40:]) == feed(first, steps[40:], rows[40:])


def test_a_rise_of_many_snapshots_is_not_taken_for_wandering_noise():
    from spectral.detection.online_statistic import scan_online
    from spectral.detection.statistic import sigmoid

    t = np.linspace(0, 1, 200)
    y = sigmoid(t, 0.4, 0.08) + 0.03 * np.random.default_rng(1).standard_normal(200)
    seen = 90  # the midpoint lies 10 snapshots back; differences of the curve itself would say phi = 0.95
    scan = scan_online(t[:seen], y[None, :seen])
    assert scan.phi[0] <= 0.3
    assert scan.statistic[0] > 80
    assert scan.midpoint[0] == pytest.approx(0.4, abs=0.01)


def test_a_saved_state_does_not_grow_with_the_run(detector):
    steps, rows = run()
    watcher = detector()
    feed(watcher, steps[:10], rows[:10])
    state = watcher.state_dict()
    other = detector()
    other.load_state_dict(state)
    feed(other, steps[10:], rows[10:])
    feed(watcher, steps[10:], rows[10:])
    assert len(state["tracks"]["loss"]["steps"]) == 10


def test_statistics_are_nan_until_there_are_enough_snapshots(detector):
    steps, rows = run()
    watcher = detector(min_snapshots=20)
    feed(watcher, steps[:19], rows[:19])
    assert all(math.isnan(x) for x in watcher.statistics.values())
    feed(watcher, steps[19:20], rows[19:20])
    assert all(math.isfinite(x) for x in watcher.statistics.values())
    assert set(watcher.thresholds) == set(FAMILIES)


def test_missing_and_non_finite_values_are_skipped(detector):
    steps, rows = run()
    rows = [dict(row, loss=math.nan) if i % 7 == 3 else row for i, row in enumerate(rows)]
    rows = [{k: v for k, v in row.items() if k != "score"} if i == 5 else row for i, row in enumerate(rows)]
    events = feed(detector(), steps, rows)
    assert any(e.kind == "transition_confirmed" for e in events)


def test_a_constant_signal_never_alarms(detector):
    watcher = detector()
    events = feed(watcher, range(0, 1000, 20), [dict.fromkeys(FAMILIES, 0.1)] * 50)
    assert events == []
    assert watcher.statistics["loss"] == 0


def test_events_are_json(detector):
    for event in feed(detector(), *run()):
        json.dumps(event.to_dict(), allow_nan=False)


def test_bad_input_is_named_with_its_remedy(detector):
    from spectral.detection import OnlineDetector

    watcher = detector()
    watcher.update(10, {"loss": 1.0})
    with pytest.raises(ValueError, match=r"step=10 does not follow 10.*increase"):
        watcher.update(10, {"loss": 1.0})
    with pytest.raises(ValueError, match=r"unknown signals.*typo"):
        watcher.update(20, {"typo": 1.0})
    with pytest.raises(ValueError, match="at least one"):
        OnlineDetector({}, planned_steps=10)
    with pytest.raises(ValueError, match="planned_steps=0"):
        OnlineDetector(FAMILIES, planned_steps=0)
    with pytest.raises(ValueError, match=r"calibrated \[0.01, 0.2\]"):
        detector(significance=0.5)
    with pytest.raises(ValueError, match="min_snapshots=3"):
        detector(min_snapshots=3)
    with pytest.raises(ValueError, match="log_signals"):
        detector(log_signals=["typo"])
    with pytest.raises(ValueError, match="build it with"):
        watcher.load_state_dict(OnlineDetector({"a": "b"}, planned_steps=1).state_dict())


def test_thresholds_rise_with_strictness_and_lie_between_the_table_s_lengths():
    from spectral.detection.thresholds import LEVELS, threshold

    # They need not rise with length: what each is compared with is T times the scale of its kind.
    low, high = sorted((threshold(100, 0.05), threshold(200, 0.05)))
    assert 0 < low < threshold(140, 0.05) < high
    assert threshold(400, 0.05) == threshold(5000, 0.05)
    by_level = [threshold(60, level) for level in LEVELS]
    assert by_level == sorted(by_level)
    assert threshold(5, 0.05) == threshold(30, 0.05)


def followed(t, y):
    """Return (step, kind) of every event of one signal."""
    from spectral.detection import OnlineDetector

    watcher = OnlineDetector({"y": "behaviour"}, planned_steps=1)
    return [(e.step, e.kind) for x, v in zip(t, y, strict=True) for e in watcher.update(x, {"y": v})]


def test_a_transition_is_announced_before_the_twentieth_snapshot(detector):
    steps, rows = run(m=0.24)
    events = feed(detector(), steps, rows)
    candidate = next(e for e in events if e.kind == "candidate")
    assert 240 < candidate.step <= 320
    assert next(e for e in events if e.kind == "transition_confirmed").step < steps[19]


def test_kinds_of_change():
    from spectral.detection.thresholds import KINDS, kind_of, kind_scales

    phi, width = np.array([0.0, 0.5, 0.8, 0.97, 0.0, 0.97]), np.array([0.03, 0.03, 0.03, 0.03, 0.01, 0.01])
    assert kind_of(phi, width, 0.005).tolist() == [0, 1, 2, 3, 4, 7]
    # 51 snapshots: a width of 0.03 is 1.5 of them. 1,001 snapshots: the narrowest width stays sharp.
    assert kind_of(phi, width, 0.02).tolist() == [4, 5, 6, 7, 4, 7]
    assert kind_of(phi, width, 0.001).tolist() == [0, 1, 2, 3, 4, 7]
    for n in (20, 30, 40, 75, 200, 1000):
        scales = kind_scales(n)
        assert len(scales) == KINDS
        assert scales[0] == 1
        assert np.all((scales > 0) & (scales <= 1))
        assert np.all(np.diff(scales.reshape(2, -1), axis=1) <= 0), "the more the noise wanders, the less T counts"


def test_a_jump_counts_less_than_a_rise_over_several_snapshots():
    from spectral.detection.statistic import sigmoid

    t, rng = np.linspace(0, 1, 200), np.random.default_rng(3)
    walk = np.cumsum(0.02 * rng.standard_normal(200)) + 0.25 * (t > 0.5)  # 12 increments high, in one
    rise = 0.35 * sigmoid(t, 0.5, 0.04) + 0.65 * np.sqrt(t) + 0.04 * rng.standard_normal(200)  # 9 noise deviations
    assert not any(kind == "confirmed" for _, kind in followed(t, walk))
    confirmed = [step for step, kind in followed(t, rise) if kind == "confirmed"]
    assert len(confirmed) == 1
    assert 0.5 < confirmed[0] < 0.6


def test_a_spike_that_decays_with_two_percent_of_the_run_is_never_confirmed():
    t = np.linspace(0, 1, 200)
    for seed in range(5):
        noise = 0.02 * np.random.default_rng(seed).standard_normal(200)
        y = np.exp(-t / 0.3) + np.where(t > 0.6, np.exp(-np.maximum(t - 0.6, 0) / 0.02), 0) + noise
        kinds = [kind for _, kind in followed(t, y)]
        assert "candidate" in kinds
        assert "confirmed" not in kinds


def test_a_kink_of_a_quiet_curve_is_never_confirmed():
    t = np.linspace(0, 1, 200)
    warm_up = np.where(t < 0.1, t**2 / 0.2, t - 0.05)
    curves = {
        "slope": 0.3 * t + 2 * np.maximum(t - 0.5, 0),
        "relaxation": np.exp(-np.maximum(t - 0.4, 0) / 0.2),
        "warm-up": np.exp(-warm_up / 0.2),
        "wide rise": 1 / (1 + np.exp(-4.394 * (t - 0.5) / 0.2)),
    }
    for name, curve in curves.items():
        kinds = [kind for _, kind in followed(t, curve + 0.002 * np.random.default_rng(4).standard_normal(200))]
        assert "confirmed" not in kinds, name
    # The narrow rise of the same height is, under the same noise.
    step = 1 / (1 + np.exp(-4.394 * (t - 0.5) / 0.05))
    assert "confirmed" in [
        kind for _, kind in followed(t, step + 0.002 * np.random.default_rng(4).standard_normal(200))
    ]


def test_a_rise_is_soon_over_and_a_kink_is_not():
    from spectral.detection.online_statistic import scan_online, soon_over

    t = np.linspace(0, 1, 200)
    rng = np.random.default_rng(5)
    narrow = 1 / (1 + np.exp(-4.394 * (t - 0.5) / 0.06))
    kink = 10 * np.maximum(t - 0.47, 0)
    rows = np.stack([narrow, kink]) + 0.005 * rng.standard_normal((2, 200))
    seen = 110  # five percent of the run after the midpoint
    assert soon_over(t[:seen], scan_online(t[:seen], rows[:, :seen]), np.arange(2)).tolist() == [True, False]


@pytest.mark.parametrize("planned", [30, 800, 5000])
def test_the_simulation_looks_as_early_as_the_detector_on_any_axis(planned):
    from spectral.detection.online_calibration import gated_online

    t = np.linspace(0, 1, planned)[:10]
    statistic, kind, _ = gated_online(t, np.random.default_rng(0).standard_normal((3, 10)))
    assert statistic.shape == kind.shape == (3,)
    assert not np.isnan(statistic).any()


def test_the_number_of_processes_does_not_change_the_calibration(monkeypatch):
    from spectral.detection import calibration

    monkeypatch.setattr(calibration, "FLOOR_SIZES", (40,))
    monkeypatch.setattr(calibration, "WIDENING_SIZES", (50,))
    monkeypatch.setattr(calibration, "SIZES", (30,))
    one, two = (calibration.calibrate(5, 8, 3, 4, processes=k) for k in (1, 2))
    assert one == two
    assert one["calibration_id"].startswith("calibration-5-")
    assert calibration.calibrate(6, 8, 3, 4)["calibration_id"].split("-")[2] != one["calibration_id"].split("-")[2]


def test_stored_thresholds_hold_on_fresh_null_curves():
    from spectral.detection.online_calibration import run_maxima
    from spectral.detection.thresholds import threshold

    h = threshold(50, 0.05)
    for family in ("exponential", "slow_sigmoid", "persistent_noise"):
        # 150 curves at 5 %: 7.5 expected; 18 have probability 0.0007.
        assert np.count_nonzero(run_maxima(family, 50, 150, seed=7) > h) < 18, family


@pytest.mark.slow
def test_few_runs_of_a_null_family_are_ever_confirmed():
    from spectral.detection import OnlineDetector
    from spectral.detection.curves.families import NULL

    t = np.linspace(0, 1, 50)
    for name, family in NULL.items():
        alarms = 0
        for i in range(100):
            watcher = OnlineDetector({"y": "behaviour"}, planned_steps=1)
            y, _ = family(t, np.random.default_rng([5, i]))
            kinds = {e.kind for x, v in zip(t, y, strict=True) for e in watcher.update(x, {"y": v})}
            alarms += "confirmed" in kinds
        assert alarms <= 13, (name, alarms)  # nominal 5 %: 14 of 100 have probability 0.0005
