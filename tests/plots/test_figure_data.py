"""What is drawn is what is stored: curves, heat maps, bands and yardsticks against the run's own numbers."""

import numpy as np
import pytest


def by_label(axes, label):
    found = [line for line in axes.lines if line.get_label() == label]
    assert len(found) == 1, f"{label}: {[line.get_label() for line in axes.lines]}"
    return found[0]


def by_gid(figure_or_axes, gid):
    return [artist for artist in figure_or_axes.findobj() if artist.get_gid() == gid]


def panel(figure, title):
    found = [axes for axes in figure.axes if axes.get_title(loc="left").startswith(title)]
    assert len(found) == 1, [axes.get_title(loc="left") for axes in figure.axes]
    return found[0]


def assert_curve(line, steps, heights):
    np.testing.assert_array_equal(line.get_xdata(), steps)
    np.testing.assert_array_equal(line.get_ydata(), heights)


def heat(axes):
    (mesh,) = [artist for artist in axes.collections if artist.__class__.__name__ == "QuadMesh"]
    return mesh


def test_loss_panel_holds_the_stored_losses_and_reference_levels(run):
    from spectral.plots import loss_and_accuracy

    axes = loss_and_accuracy(run).axes[0]
    assert_curve(by_label(axes, "training batch"), run.train_steps, run.read("train/loss"))
    assert_curve(by_label(axes, "held-out probe"), run.steps, run.read("behaviour/loss"))
    assert by_gid(axes, "chance")[0].get_ydata()[0] == pytest.approx(np.log(50))
    # Blocks of 6 to 12 in 32 tokens: the first copy and the first repeated token cost ln V each.
    assert by_gid(axes, "perfect-induction")[0].get_ydata()[0] == pytest.approx(9 * np.log(50) / 31)
    assert axes.get_ylabel() == "loss (nats)"


def test_a_random_prefix_raises_the_level_of_perfect_induction(synthetic, tmp_path):
    from spectral.plots import loss_and_accuracy
    from spectral.storage import open_run

    folder = synthetic.make(tmp_path / "prefixed", steps=(0, 10), config={"max_prefix": 8})
    axes = loss_and_accuracy(open_run(folder)).axes[0]
    # Four more tokens on average that nothing predicts.
    assert by_gid(axes, "perfect-induction")[0].get_ydata()[0] == pytest.approx(13 * np.log(50) / 31)


def test_accuracy_panel_holds_accuracies_with_their_chance_levels(run):
    from spectral.plots import loss_and_accuracy

    axes = loss_and_accuracy(run).axes[1]
    assert_curve(by_label(axes, "induction accuracy"), run.steps, run.read("behaviour/induction_accuracy"))
    assert_curve(by_label(axes, "accuracy without repeats"), run.steps, run.read("behaviour/random_accuracy"))
    assert sorted(line.get_ydata()[0] for line in by_gid(axes, "chance")) == pytest.approx([1 / 50, 0.25])


def test_periods_outside_of_training_are_dashed_and_named_so(run):
    from spectral.plots import loss_and_accuracy

    figure = loss_and_accuracy(run)
    axes = figure.axes[2]
    stored = run.read("behaviour/induction_accuracy_period")
    for i, label in enumerate(["3 (not trained)", "6", "9", "12", "15 (not trained)"]):
        line = by_label(axes, label)
        assert_curve(line, run.steps, stored[:, i])
        assert (line.get_linestyle() == "-") == ("not" not in label)
    assert figure.axes[-1].get_xlabel() == "step"


def test_accuracy_is_drawn_for_every_kind_of_probe_that_predicts_anything(run, synthetic):
    from spectral.plots import loss_and_accuracy

    axes = loss_and_accuracy(run).axes[3]
    stored = run.read("behaviour/induction_accuracy_probe")
    for i, label in enumerate(["repeat", "random gap", "repeated tokens"]):
        assert_curve(by_label(axes, label), run.steps, stored[:, i])
    assert not [line for line in axes.lines if line.get_label() == "no repeat"]
    assert [line.get_ydata()[0] for line in by_gid(axes, "ceiling")] == [0.9]
    assert by_gid(axes, "chance")[0].get_ydata()[0] == pytest.approx(1 / 50)


def test_band_interval_and_midpoint_stand_where_the_verdict_puts_them(run):
    from spectral.plots import loss_and_accuracy

    figure = loss_and_accuracy(run)
    for axes in figure.axes:
        (band,), (interval,), (line,) = (by_gid(axes, f"transition-{w}") for w in ("band", "interval", "midpoint"))
        assert (band.get_x(), band.get_width()) == (450, 100)
        assert (interval.get_x(), interval.get_width()) == (490, 20)
        assert line.get_xdata() == [500, 500]
    note = by_gid(figure, "notes")[0].get_text().replace("\n", " ")
    assert "Abrupt transition at step 500 (90 % interval 490 to 510), onset 450, end 550, p = 0.0012" in note


def test_without_detected_transition_there_is_no_band_and_the_figure_says_so(tmp_path, synthetic):
    from spectral.plots import FIGURES
    from spectral.storage import open_run

    run = open_run(synthetic.make(tmp_path / "run", verdict=synthetic.verdict(detected=False)))
    for draw in FIGURES.values():
        figure = draw(run)
        assert not [a for a in figure.findobj() if str(a.get_gid()).startswith("transition")]
        note = by_gid(figure, "notes")[0].get_text().replace("\n", " ")
        assert "No transition detected; verdict: gradual (the change is too slow to be abrupt)" in note


def test_eigenvalues_are_drawn_with_bounds_signs_and_hollow_unconverged_points(run):
    from spectral.plots import eigenvalues

    figure = eigenvalues(run)
    top, bottom = panel(figure, "largest"), panel(figure, "most negative")
    stored, negative = run.read("hessian/eigenvalues"), run.read("hessian/negative_eigenvalues")
    for rank in range(10):
        assert_curve(by_gid(top, f"rank-{rank}")[0], run.steps, stored[:, rank])
    for rank in range(3):
        assert_curve(by_gid(bottom, f"negative_rank-{rank}")[0], run.steps, negative[:, rank])
    assert bottom.get_ylim()[0] < negative.min() < 0
    # The band of the largest eigenvalue reaches from value - bound to value + bound.
    bounds = run.read("hessian/error_bounds")
    corners = top.collections[0].get_paths()[0].vertices[:, 1]
    assert corners.max() == pytest.approx((stored + bounds)[:, 0].max())
    assert corners.min() == pytest.approx((stored - bounds)[:, 0].min())
    (hollow,) = by_gid(top, "unconverged")
    where = run.steps % 100 == 0
    np.testing.assert_array_equal(hollow.get_offsets(), np.column_stack([run.steps[where], stored[where, 9]]))
    assert_curve(by_label(panel(figure, "trace"), "estimate"), run.steps, run.read("hessian/trace"))
    assert figure.get_supylabel() == "nats / parameter²"


def test_eigenvalue_axis_is_logarithmic_only_where_the_range_demands(tmp_path, synthetic):
    from spectral.plots import eigenvalues
    from spectral.storage import open_run

    def scale(name, values):
        folder = synthetic.make(
            tmp_path / name,
            steps=(0, 10),
            n_top=2,
            change=lambda row: row.update({"hessian/eigenvalues": np.array(values)}),
        )
        return panel(eigenvalues(open_run(folder)), "largest").get_yscale()

    assert scale("narrow", [2.0, 1.0]) == "linear"
    assert scale("wide", [500.0, 1.0]) == "log"
    assert scale("signs", [500.0, -1.0]) == "symlog"


def test_alignment_map_holds_every_cosine_and_chance_lines(run, synthetic):
    from spectral.plots import gradient_alignment

    figure = gradient_alignment(run)
    cosines = heat(panel(figure, "cos²"))
    np.testing.assert_allclose(cosines.get_array(), run.read("hessian/gradient_alignment").T)
    overlap = heat(panel(figure, "eigenvector inside"))
    stored = run.read("hessian/eigenvector_overlap")
    np.testing.assert_allclose(overlap.get_array().filled(np.nan), stored.T)
    assert np.ma.getmaskarray(overlap.get_array())[:, 0].all()  # the first snapshot has none before it
    share = panel(figure, "share of the squared gradient")
    assert_curve(by_label(share, "k = 5"), run.steps, run.read("hessian/gradient_alignment_total")[:, 4])
    assert by_gid(share, "chance")[0].get_ydata()[0] == pytest.approx(10 / synthetic.n_parameters)


def test_head_scores_have_a_panel_per_layer_and_score_and_a_named_curve_per_head(run):
    from spectral.plots import head_scores

    figure = head_scores(run)
    assert len(figure.axes) == 8
    names = ("induction_score", "previous_token_score", "duplicate_token_score", "content_match_fraction")
    for i, name in enumerate(names):
        stored = run.read(f"circuits/{name}")
        for layer in range(2):
            for head in range(4):
                assert_curve(
                    by_label(figure.axes[4 * layer + i], f"L{layer}H{head}"), run.steps, stored[:, layer, head]
                )
    assert by_gid(figure.axes[0], "chance")[0].get_ydata()[0] == pytest.approx(0.11)
    assert not by_gid(figure.axes[2], "chance")
    assert "chance not stored" in figure.axes[2].get_title(loc="left")


def test_heads_beyond_the_colours_are_grey_but_drawn(tmp_path, synthetic):
    from matplotlib.collections import LineCollection

    from spectral.plots import head_scores
    from spectral.storage import open_run

    run = open_run(synthetic.make(tmp_path / "run", steps=(0, 500, 1000), n_heads=12, d_head=2))
    axes = head_scores(run).axes[4]
    named = [line for line in axes.lines if str(line.get_label()).startswith("L1H")]
    (grey,) = [artist for artist in axes.collections if isinstance(artist, LineCollection)]
    assert len(named) == 9
    assert len(grey.get_segments()) == 3
    assert grey.get_label() == "3 other heads"
    assert by_label(axes, "L1H2").get_color() != by_label(axes, "L1H0").get_color()


def test_circuit_figure_names_the_strongest_composition_and_shows_the_best_head_in_the_plane(run):
    from spectral.plots import circuit_metrics

    figure = circuit_metrics(run)
    assert_curve(
        by_label(panel(figure, "OV copying"), "L1H2"), run.steps, run.read("circuits/ov_copying_score")[:, 1, 2]
    )
    for title, name in (("K-composition matching", "k_composition_matching"), ("K-composition", "k_composition")):
        axes = next(a for a in figure.axes if a.get_title(loc="left") == title)
        assert axes.lines[0].get_label() == "L0H1→L1H2"
        assert_curve(axes.lines[0], run.steps, run.read(f"circuits/{name}")[:, 0, 1, 1, 2])
    z = panel(figure, "K-composition z")
    assert_curve(by_label(z, "L0H1→L1H2"), run.steps, run.read("circuits/k_composition_z")[:, 0, 1, 1, 2])
    assert by_gid(z, "largest-null")[0].get_ydata()[0] == 3.4
    assert panel(figure, "Q-composition z").lines
    planes = by_gid(figure, "ov-plane")
    stored = run.read("circuits/ov_eigenvalues")
    for points, step in zip(planes, (340, 500, 640), strict=True):  # a width before, midpoint, a width after
        np.testing.assert_array_equal(points.get_offsets(), stored[list(run.steps).index(step), 1, 2])


def test_causal_maps_hold_the_effects_of_the_last_row_and_one_row_per_head(run, synthetic):
    from spectral.plots import causal_effects

    figure = causal_effects(run)
    assert figure.texts[0].get_text() == "Causal effects at step 1,000"
    removed = run.read("causal/remove_one_induction_loss")[-1]
    axes = panel(figure, "head removed")
    cells = heat(axes).get_array()
    assert [label.get_text() for label in axes.get_yticklabels()][:8] == list(synthetic.components[1:9])
    np.testing.assert_allclose(cells[:8], removed.reshape(3, 8).T)
    np.testing.assert_allclose(cells[8:], run.read("causal/remove_layer_induction_loss")[-1].T)
    assert [label.get_text() for label in axes.get_yticklabels()][8:] == ["L0 all", "L1 all"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["zero", "mean", "pattern\npreserving"]
    alone = run.read("causal/keep_only_induction_loss")[-1]
    np.testing.assert_allclose(heat(panel(figure, "head kept alone")).get_array(), alone.reshape(3, 8).T)
    bars = panel(figure, "written directly").patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], run.read("causal/logit_attribution")[-1])


def test_of_many_heads_those_with_the_largest_effects_are_drawn(tmp_path, synthetic):
    from spectral.plots import causal_effects
    from spectral.storage import open_run

    components = ("embedding", *(f"L{layer}H{head}" for layer in range(2) for head in range(16)))
    folder = synthetic.make(tmp_path / "run", steps=(0, 1000), n_heads=16, d_head=2, components=components)
    figure = causal_effects(open_run(folder))
    rows = [label.get_text() for label in panel(figure, "head removed").get_yticklabels()]
    assert len(rows) == 26
    assert {"L0H1", "L1H2"} <= set(rows)
    assert "8 heads with smaller effects are left out" in by_gid(figure, "notes")[0].get_text().replace("\n", " ")


def test_attention_maps_show_the_stored_patterns_at_five_steps_best_heads_first(run, synthetic):
    from spectral.plots import attention_patterns

    figure = attention_patterns(run)
    maps = [axes for axes in figure.axes if axes.images]
    assert len(maps) == 5 * 8
    assert maps[0].get_title() == "L1H2\ninduction"
    assert maps[1].get_title() == "L0H1\nprev. token"
    assert maps[0].spines["left"].get_linewidth() > 1 > maps[2].spines["left"].get_linewidth()
    stored = run.read("circuits/attention_pattern").astype(float)
    for row, step in enumerate((340, 440, 500, 540, 640)):
        i = list(run.steps).index(step)
        assert maps[8 * row].get_ylabel() == f"step {step}"
        np.testing.assert_array_equal(maps[8 * row].images[0].get_array(), stored[i, 1, 2])
        np.testing.assert_array_equal(maps[8 * row + 1].images[0].get_array(), stored[i, 0, 1])
    assert [text.get_text() for text in maps[32].get_xticklabels()] == [str(token) for token in synthetic.tokens]


def test_attention_figure_says_that_it_chose_heads(tmp_path, synthetic):
    from spectral.plots import attention_patterns
    from spectral.storage import open_run

    run = open_run(synthetic.make(tmp_path / "run", steps=(0, 500, 1000), n_heads=6, d_head=2))
    figure = attention_patterns(run)
    assert "8 of 12 heads, chosen by score" in figure.texts[0].get_text()
    assert sum(bool(axes.images) for axes in figure.axes) == 3 * 8


def test_block_rows_sum_to_one_and_small_blocks_are_named_as_a_group(tmp_path, synthetic):
    from spectral.plots import eigenvector_blocks
    from spectral.storage import open_run

    names = ("W_E", "W_U", *(f"L0H{i}.W_Q" for i in range(6)))
    mass = np.array([0.5, 0.44, *[0.01] * 6])
    run = open_run(
        synthetic.make(
            tmp_path / "run",
            steps=(0, 10),
            block_names=names,
            change=lambda row: row.update({"hessian/block_mass": np.tile(mass, (10, 1))}),
        )
    )
    axes = panel(eigenvector_blocks(run), "eigenvector 1")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["W_E", "W_U", "L0: 6 others"]
    np.testing.assert_allclose(heat(axes).get_array(), np.array([[0.5, 0.5], [0.44, 0.44], [0.06, 0.06]]))


def test_position_map_and_slices_hold_the_stored_losses(run):
    from spectral.plots import loss_by_position

    figure = loss_by_position(run)
    stored = run.read("behaviour/loss_by_position")
    np.testing.assert_allclose(heat(figure.axes[0]).get_array(), stored.T)
    np.testing.assert_array_equal(by_label(figure.axes[1], "step 500").get_ydata(), stored[list(run.steps).index(500)])
    onset, end = by_gid(figure.axes[0], "transition-onset")[0], by_gid(figure.axes[0], "transition-end")[0]
    assert onset.get_xdata() == [450, 450]
    assert end.get_xdata() == [550, 550]


def test_summary_tells_when_how_sharp_who_agrees_what_came_first_and_the_setup(run):
    from spectral.plots import summary

    figure = summary(run)
    text = "\n".join(t.get_text() for t in figure.findobj() if hasattr(t, "get_text"))
    text = " ".join(text.split())
    for phrase in (
        "An abrupt transition at step 500",
        "when: step 450 to 550",
        "how sharp: 14.2 times",
        "p = 0.0012 (false-alarm level 0.01)",
        "circuits: induction score",
        "previous token score 70 steps before induction accuracy (90 %: 50 to 90)",
        "data: repeated, blocks of 6 to 12; 50 tokens, sequences of 32",
        "seed: 0",
    ):
        assert phrase in text
    panels = [axes for axes in figure.axes if by_gid(axes, "transition-band")]
    assert len(panels) == 5
    assert len({axes.get_xlim() for axes in panels}) == 1
    assert_curve(by_label(panels[4], "L1H2 induction"), run.steps, run.read("circuits/induction_score")[:, 1, 2])


def test_log_steps_keep_step_zero(run):
    from spectral.plots import loss_and_accuracy

    axes = loss_and_accuracy(run, log_steps=True).axes[0]
    assert axes.get_xscale() == "symlog"
    assert axes.get_xlim()[0] == 0


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (range(0, 1001, 20), [340, 440, 500, 540, 640]),
        ([0, 400, 500, 600, 1000], [0, 400, 500, 600, 1000]),
        ([480, 500], [480, 500]),
        ([500, 520], [500, 520]),
    ],
)
def test_stages_stay_distinct_and_ordered_however_sparse_the_snapshots(steps, expected):
    from spectral.plots.source import stages

    steps = np.array(steps)
    assert steps[stages(steps, 450.0, 500.0, 550.0)].tolist() == expected


def test_stages_without_transition_are_even():
    from spectral.plots.source import stages

    assert stages(np.arange(51), None, None, None) == [0, 12, 25, 38, 50]
    assert stages(np.arange(2), None, None, None) == [0, 1]
