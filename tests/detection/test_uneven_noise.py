"""Noise that differs before, within and after a change: its scale, its ratio, and what dating makes of it."""

import numpy as np
import pytest

T = np.linspace(0, 1, 400)
MIDPOINT, WIDTH = 0.5, 0.1


def residual(boost, core=1.0, seed=0):
    """Return residuals that are `boost` times as loud within a width of the midpoint, `core` times that in its core."""
    place = np.abs(T - MIDPOINT) / WIDTH
    loud = np.where(place < 1, boost, 1.0) * np.where(place < 0.5, core, 1.0)
    return 0.02 * loud * np.random.default_rng(seed).standard_normal(len(T))


@pytest.mark.parametrize(("boost", "core"), [(1.0, 1.0), (3.0, 1.0), (2.0, 2.0)])
def test_the_scale_follows_the_noise_of_each_stretch(boost, core):
    from spectral.detection.uneven_noise import noise_scale

    scale = np.mean(
        [noise_scale(T, residual(boost, core, seed), midpoint=MIDPOINT, width=WIDTH) for seed in range(40)], axis=0
    )
    outside, shoulder, middle = scale[0], scale[T.searchsorted(0.42)], scale[200]
    assert shoulder / outside == pytest.approx(boost, rel=0.1)
    assert middle / outside == pytest.approx(boost * core, rel=0.1)
    assert scale[-1] == pytest.approx(outside, rel=0.05)


def test_the_ratio_is_that_of_the_noise_and_near_one_where_few_points_tell():
    from spectral.detection.uneven_noise import noise_ratio

    ratios = [noise_ratio(T, residual(3.0, seed=seed), midpoint=MIDPOINT, width=WIDTH) for seed in range(40)]
    assert np.mean(ratios) == pytest.approx(3.0, rel=0.1)
    assert noise_ratio(T, np.zeros(len(T)), midpoint=MIDPOINT, width=WIDTH) < 1.1
    alone = np.where(np.arange(400) == 200, 0.06, residual(1.0))
    assert noise_ratio(T, alone, midpoint=T[200], width=1e-4) < noise_ratio(T, residual(3.0), midpoint=0.5, width=0.1)


def test_loud_noise_within_the_change_widens_its_intervals():
    from spectral.detection import detect_transition
    from spectral.detection.statistic import sigmoid

    step = sigmoid(T, MIDPOINT, WIDTH / 2)
    lengths = {}
    for boost in (1.0, 4.0):
        found = [
            detect_transition(T, step + residual(boost, seed=seed), n_surrogates=99, several=False, bumps=False)
            for seed in range(3)
        ]
        assert all(one.detected for one in found)
        lengths[boost] = np.median([np.diff(one.interval)[0] for one in found])
    # Four times the noise on each point that tells the midpoint; noise taken for even (1.6 of it) would say less.
    assert lengths[4.0] > 3 * lengths[1.0]


def test_every_class_of_noise_has_a_positive_factor_and_the_loudest_the_largest():
    from spectral.detection.tables import NOISE_RATIO_EDGES, noise_class, tables, widening

    assert [noise_class(ratio) for ratio in (0.5, 1.29, 1.3, 1.99, 2.0, 9.0)] == [0, 0, 1, 1, 2, 2]
    assert tuple(tables()["noise_ratio_edges"]) == NOISE_RATIO_EDGES
    assert set(tables()["widening"]) == {"midpoint", "onset", "end", "width"}
    for name, row in tables()["widening"].items():
        for n, factors in row.items():
            assert len(factors) == len(NOISE_RATIO_EDGES) + 1
            assert min(factors) > 0
            assert widening(name, int(n), 1.0) == factors[0]
            assert widening(name, int(n), 3.0) == factors[-1] == max(factors)


def test_intervals_scale_with_the_factor_of_the_class():
    from dataclasses import replace

    from spectral.detection.intervals import date, refine
    from spectral.detection.statistic import sigmoid
    from spectral.detection.tables import widening

    y = sigmoid(T, MIDPOINT, WIDTH) + residual(1.0)
    fit = refine(T, y, phi_index=0, near=0.5, known=np.empty((0, 2)))
    assert fit.noise_ratio == pytest.approx(1.0, abs=0.2)
    lengths = {ratio: np.diff(date(replace(fit, noise_ratio=ratio), T).onset_interval)[0] for ratio in (1.0, 3.0)}
    assert lengths[3.0] / lengths[1.0] == pytest.approx(widening("onset", 400, 3.0) / widening("onset", 400, 1.0))
