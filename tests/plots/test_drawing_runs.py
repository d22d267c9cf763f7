"""Drawing whole runs: files, states of a run, missing data, and no trace in matplotlib's global state."""

import matplotlib
import numpy as np
import pytest

SNAPSHOT_FIGURES = {
    "eigenvalues", "gradient_alignment", "head_scores", "circuit_metrics", "causal_effects", "attention_patterns",
    "eigenvector_blocks", "loss_by_position",
}  # fmt: skip


def stems(paths):
    return {path.stem for path in paths}


def test_every_figure_is_written_in_both_formats_into_the_run(tmp_path, synthetic):
    from spectral.plots import FIGURES, draw_run

    folder = synthetic.make(tmp_path / "run", steps=(0, 500, 1000), verdict=synthetic.verdict())
    lines = []
    paths = draw_run(folder, dpi=40, progress=lines.append)
    assert [path.name for path in paths] == [f"{name}.{form}" for name in FIGURES for form in ("png", "pdf")]
    assert all(path.parent == folder / "figures" for path in paths)
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF")
    assert sorted(p.name for p in (folder / "figures").iterdir()) == sorted(p.name for p in paths)  # no temporaries
    assert lines[0] == "summary written: summary.png, summary.pdf"


def test_pixels_follow_dpi_and_equal_runs_give_equal_bytes(run):
    from spectral.plots import loss_by_position
    from spectral.plots.command import render

    small, large = render(loss_by_position(run), "png", dpi=50), render(loss_by_position(run), "png", dpi=100)
    width = [int.from_bytes(data[16:20], "big") for data in (small, large)]
    assert width[1] == 2 * width[0]
    assert render(loss_by_position(run), "pdf") == render(loss_by_position(run), "pdf")


def test_global_state_of_matplotlib_stays_as_it_was(run):
    from matplotlib import pyplot

    from spectral.plots import FIGURES
    from spectral.plots.command import render

    before = dict(matplotlib.rcParams)
    figures = [draw(run) for draw in FIGURES.values()]
    render(figures[0], "png", dpi=30)
    render(figures[0], "pdf", dpi=30)
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def test_figures_look_the_same_whatever_the_callers_settings(run):
    from spectral.plots import head_scores
    from spectral.plots.command import render

    plain = render(head_scores(run), "png", dpi=50)
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "xtick.major.size": 15}):
        assert render(head_scores(run), "png", dpi=50) == plain


@pytest.mark.parametrize(
    ("config", "reason"),
    [({}, "no snapshot was committed yet"), ({"eigen_interval": 0}, "measuring was switched off (eigen_interval 0)")],
)
def test_without_snapshots_losses_are_drawn_and_the_rest_is_listed_with_the_reason(tmp_path, synthetic, config, reason):
    from spectral.plots import draw_run

    folder = synthetic.make(tmp_path / "run", steps=(), config=config)
    lines = []
    paths = draw_run(folder, formats=("png",), dpi=40, progress=lines.append)
    assert stems(paths) == {"summary", "loss_and_accuracy"}
    left_out = [line for line in lines if "left out" in line]
    assert {line.split()[0] for line in left_out} == SNAPSHOT_FIGURES
    assert all(reason in line for line in left_out)
    assert any("no hessian/eigenvalues" in line for line in left_out)


def test_a_figure_without_its_dataset_raises_an_error_that_names_it(tmp_path, synthetic):
    from spectral.errors import ResultsFileError
    from spectral.plots import FIGURES, MissingDataError
    from spectral.storage import open_run

    run = open_run(synthetic.make(tmp_path / "run", steps=()))
    assert issubclass(MissingDataError, ResultsFileError)
    for name in SNAPSHOT_FIGURES:
        with pytest.raises(
            MissingDataError, match=r"has no (behaviour|hessian|circuits|causal)/\w+: no snap"
        ) as caught:
            FIGURES[name](run)
        assert "/" in caught.value.dataset


def test_a_run_without_causes_says_why(tmp_path, synthetic):
    from spectral.plots import MissingDataError, causal_effects
    from spectral.storage import open_run

    run = open_run(synthetic.make(tmp_path / "never", steps=(10,), config={"causal": "never"}))
    with pytest.raises(MissingDataError, match=r"measuring causes was switched off \(causal never\)"):
        causal_effects(run)
    run = open_run(synthetic.make(tmp_path / "foreign", steps=(0,), ablation_modes=()))
    with pytest.raises(MissingDataError, match="this run does not store it"):
        causal_effects(run)


def test_a_dataset_that_the_run_does_not_store_is_named_too(tmp_path, synthetic):
    from spectral.plots import MissingDataError, attention_patterns
    from spectral.storage import open_run

    run = open_run(synthetic.make(tmp_path / "run", steps=(0,), attention_positions=0))
    with pytest.raises(MissingDataError, match="circuits/attention_pattern: this run does not store it"):
        attention_patterns(run)


def test_an_empty_run_raises_instead_of_writing_nothing(tmp_path, synthetic):
    from spectral.plots import MissingDataError, draw_run

    folder = synthetic.make(tmp_path / "run", steps=(), train=False)
    with pytest.raises(MissingDataError, match="train/loss"):
        draw_run(folder)
    assert list((folder / "figures").iterdir()) == []


def test_a_run_that_is_still_written_is_drawn_as_far_as_it_got(tmp_path, synthetic):
    from spectral.plots import head_scores, loss_and_accuracy, summary
    from spectral.storage import RunDirectory, open_run

    folder = synthetic.make(tmp_path / "run", steps=range(0, 401, 100), status="running")
    with RunDirectory.open(folder, for_writing=True):
        run = open_run(folder)
        for draw in (summary, loss_and_accuracy, head_scores):
            figure = draw(run)
            assert "running, 5 snapshots" in figure.texts[1].get_text().replace("\n", " ")
            assert "No transition detected so far" in figure.texts[1].get_text().replace("\n", " ")


def test_a_run_whose_process_died_is_drawn_and_called_so(tmp_path, synthetic):
    from spectral.plots import eigenvalues, summary
    from spectral.storage import open_run

    run = open_run(synthetic.make(tmp_path / "run", steps=range(0, 401, 100), status="running"))
    for draw in (summary, eigenvalues):
        assert "process died, 5 snapshots, up to step 1,000" in draw(run).texts[1].get_text()


def test_missing_values_leave_gaps_and_break_nothing(tmp_path, synthetic):
    from spectral.plots import FIGURES, eigenvalues
    from spectral.storage import open_run

    folder = synthetic.make(
        tmp_path / "run", steps=range(0, 1001, 40), change=synthetic.spoil, verdict=synthetic.verdict()
    )
    run = open_run(folder)
    for draw in FIGURES.values():
        draw(run)
    stored = run.read("hessian/eigenvalues")[:, 0]
    line = next(a for a in eigenvalues(run).findobj() if a.get_gid() == "rank-0")
    np.testing.assert_array_equal(np.isnan(line.get_ydata()), ~np.isfinite(stored))


def test_what_was_never_measured_counts_as_missing(tmp_path, synthetic):
    from spectral.plots import MissingDataError, eigenvalues
    from spectral.storage import open_run

    def drop(row):
        for name in list(row):
            if name.startswith("hessian/"):
                del row[name]

    run = open_run(synthetic.make(tmp_path / "run", steps=(0, 10), change=drop))
    with pytest.raises(MissingDataError, match="hessian/eigenvalues: none of its values was measured"):
        eigenvalues(run)


def test_one_snapshot_is_enough_and_visible(tmp_path, synthetic):
    from spectral.plots import FIGURES
    from spectral.storage import open_run

    run = open_run(synthetic.make(tmp_path / "run", steps=(0,), train=False))
    figures = {name: draw(run) for name, draw in FIGURES.items()}
    lines = [line for axes in figures["head_scores"].axes for line in axes.lines if line.get_label().startswith("L")]
    assert {line.get_marker() for line in lines} == {"o"}


def test_a_run_of_another_program_without_settings_is_drawn(tmp_path, synthetic):
    from spectral.plots import circuit_metrics, loss_and_accuracy, loss_by_position, summary
    from spectral.storage import open_run

    folder = synthetic.make(tmp_path / "run", steps=(0, 500, 1000), probe_periods=())
    (folder / "config.json").write_text("{}\n")
    run = open_run(folder)
    for draw in (summary, loss_and_accuracy, circuit_metrics, loss_by_position):
        assert draw(run).axes


def test_output_folder_is_made_and_wrong_options_are_refused(tmp_path, synthetic):
    from spectral.errors import RunDirectoryError
    from spectral.plots import draw_run

    run_folder = synthetic.make(tmp_path / "run", steps=())
    paths = draw_run(run_folder, output=tmp_path / "a" / "b", formats=("svg",))
    assert {path.suffix for path in paths} == {".svg"}
    assert {path.parent for path in paths} == {tmp_path / "a" / "b"}
    with pytest.raises(ValueError, match=r"formats=\['jpg'\] cannot be drawn; use some of png"):
        draw_run(run_folder, formats=("jpg",))
    with pytest.raises(ValueError, match="dpi=0"):
        draw_run(run_folder, dpi=0)
    with pytest.raises(RunDirectoryError, match="does not exist"):
        draw_run(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        draw_run(run_folder, output=tmp_path / "file")
