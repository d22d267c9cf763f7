"""Scores against their hand values."""

import pytest


@pytest.mark.parametrize(
    ("annotations", "predicted", "f1", "cover"),
    [
        ([{100}], {103}, 1, 0.9704),
        ([{100}], set(), 0.6667, 0.5),
        ([{100}], {60}, 0.5, 0.6571),
        ([set()], set(), 1, 1),
        ([set()], {100}, 0.6667, 0.5),
        ([{100}, {104}, set()], {101}, 1, 0.8218),
        ([{100}, {104}, set()], set(), 0.8, 0.6669),
    ],
)
def test_scores_match_their_hand_values(annotations, predicted, f1, cover):
    from spectral.detection.scoring import covering, f1_margin

    assert f1_margin(annotations, predicted, margin=5) == pytest.approx(f1, abs=1e-4)
    assert covering(annotations, predicted, n=200) == pytest.approx(cover, abs=1e-4)


def test_one_prediction_serves_one_truth():
    from spectral.detection.scoring import f1_margin

    # Two truths within the margin of one prediction: precision 1, recall 2/3.
    assert f1_margin([{100, 104}], {102}, margin=5) == pytest.approx(0.8)


@pytest.mark.parametrize(("n", "upper"), [(10, 0.28), (73, 0.05), (381, 0.01)])
def test_no_hits_still_leave_a_rate_possible(n, upper):
    from spectral.detection.scoring import wilson

    low, high = wilson(0, n)
    assert low == 0
    assert high == pytest.approx(upper, abs=0.003)
    assert wilson(0, 0) == (0.0, 1.0)
