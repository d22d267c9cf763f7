"""T against brute-force least squares, whitening identities and the outlier filter."""

import numpy as np
import pytest


def brute_force(t, y, phi):
    """Fit each model by its own least-squares solve on whitened columns: no projection is shared."""
    from spectral.detection import statistic as st

    rho = st.correlations(t, phi)
    shapes = st.smooth_shapes(t)
    bases = [np.stack([np.ones_like(t), t], axis=1)]
    bases += [np.column_stack([bases[0], shapes[:, b]]) for b in range(shapes.shape[1])]

    def rss(columns):
        # The whitening matrix written out: row 0 kept, row i takes rho_i of its predecessor.
        L = np.eye(len(t))
        for i in range(1, len(t)):
            L[i, i - 1] = -rho[i]
            L[i] /= np.sqrt(1 - rho[i] ** 2)
        X, z = L @ columns, L @ y
        beta = np.linalg.lstsq(X, z, rcond=None)[0]
        return float(np.sum((z - X @ beta) ** 2))

    rss0 = min([rss(b) for b in bases] + [rss(np.column_stack([bases[0], s])) for s in st.smooth_only_shapes(t).T])
    # Every 7th candidate keeps this in seconds; the fast path gets the same ones.
    narrow = [(m, w) for w in st.WIDTHS for m in st.MIDPOINTS][::7]
    rss1 = min(rss(np.column_stack([b, st.sigmoid(t, m, w)])) for b in bases for m, w in narrow)
    return rss0, rss1


@pytest.mark.parametrize("even", [True, False])
def test_residual_sums_equal_brute_force_least_squares(even):
    from spectral.detection import statistic as st

    rng = np.random.default_rng(3)
    t = np.linspace(0, 1, 41) if even else np.sort(np.concatenate([[0, 1], rng.uniform(0, 1, 39)]))
    y = st.sigmoid(t, 0.4, 0.05) + np.exp(-t / 0.1) + 0.1 * rng.standard_normal(41)
    narrow = st.sigmoid_grid(t, st.MIDPOINTS, np.array(st.WIDTHS))[:, ::7]
    fit = st.fit_rows(y[None], st.build_design(t, 0.4, st.smooth_shapes(t), st.smooth_only_shapes(t), narrow))
    rss0, rss1 = brute_force(t, y, 0.4)
    assert fit.rss0[0] == pytest.approx(rss0, rel=1e-8)
    assert fit.rss1[0] == pytest.approx(rss1, rel=1e-8)


def test_statistic_of_a_scan_is_the_log_ratio_of_its_residual_sums():
    from spectral.detection import statistic as st

    t = np.linspace(0, 1, 50)
    rows = np.random.default_rng(0).standard_normal((5, 50))
    scan = st.scan_rows(t, rows)
    np.testing.assert_allclose(scan.statistic, 50 * np.log(scan.fit.rss0 / scan.fit.rss1), rtol=1e-12)
    # A row is judged alone: its neighbours in the block change nothing.
    alone = st.scan_rows(t, rows[3:4])
    assert alone.statistic[0] == pytest.approx(scan.statistic[3], rel=1e-9)


def test_colour_inverts_whiten_and_keeps_the_marginal_variance():
    from spectral.detection import statistic as st

    t = np.sort(np.random.default_rng(1).uniform(0, 1, 60))
    rho = st.correlations(t, 0.7)
    rows = np.random.default_rng(2).standard_normal((4000, 60))
    np.testing.assert_allclose(st.whiten(st.colour(rows, rho), rho), rows, atol=1e-12)
    sd = st.colour(rows, rho).std(axis=0)
    assert np.all(np.abs(sd - 1) < 6 / np.sqrt(2 * 4000))  # 6 standard errors of an sd


def test_noise_coefficient_is_recovered():
    from spectral.detection import statistic as st
    from spectral.detection.curves import families

    t = np.linspace(0, 1, 400)
    rows = np.stack([families.ar1(400, 0.6, 1.0, np.random.default_rng(i)) for i in range(30)])
    assert st.scan_rows(t, rows).phi.mean() == pytest.approx(0.6, abs=0.08)


def test_filter_removes_a_lone_outlier_and_keeps_a_step():
    from spectral.detection.statistic import hampel

    y = 0.01 * np.random.default_rng(0).standard_normal(60)
    y[30:] += 1
    spiked = y.copy()
    spiked[15] += 3
    out = hampel(np.stack([y, spiked]))
    np.testing.assert_array_equal(out[0, 26:34], y[26:34])
    assert abs(out[1, 15]) < 0.05


def test_sigmoid_passes_10_and_90_percent_one_width_apart():
    from spectral.detection.statistic import sigmoid

    np.testing.assert_allclose(sigmoid(np.array([0.35, 0.4, 0.45]), 0.4, 0.1), [0.1, 0.5, 0.9], atol=1e-12)
