"""Sparklines: heights, gaps and places on the step axis."""

import numpy as np
import pytest


def test_heights_become_levels_and_gaps_stay_blank():
    from spectral.plots.sparkline import sparkline

    assert sparkline(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.array([0.0, np.nan, 1.0]), low=0.0, high=2.0) == "▁ ▅"
    assert sparkline(np.array([3.0, 3.0])) == "▁▁"
    assert sparkline(np.array([np.nan, np.nan])) == "  "
    assert sparkline(np.array([-5.0, 5.0]), low=0.0, high=1.0, levels="_.-=+*#@") == "_@"


def test_bins_hold_means_interpolate_between_snapshots_and_keep_missing_values():
    from spectral.plots.sparkline import resample

    edges = np.linspace(0, 40, 5)
    values = resample(np.array([0, 5, 30, 40]), np.array([1.0, 3.0, 7.0, 9.0]), edges)
    # Bins [0,10) [10,20) [20,30) [30,40]: means of two, then the line from (5, 3) to (30, 7) at 15 and 25.
    assert values == pytest.approx([2.0, 4.6, 6.2, 8.0])
    gaps = resample(np.array([0, 15, 30]), np.array([1.0, np.nan, 2.0]), edges)
    np.testing.assert_array_equal(np.isnan(gaps), [False, True, True, False])
    outside = resample(np.array([12.0, 18.0]), np.array([1.0, 2.0]), edges)
    np.testing.assert_array_equal(np.isnan(outside), [True, False, True, True])


def test_the_marker_stands_under_the_transition():
    from spectral.plots.sparkline import marker_line

    assert marker_line(np.linspace(0, 100, 11), 30.0, 55.0, 79.0) == "   ──▲──"
