"""The look of figures: the suite's style file, a user's own on top of it, and figures without notes."""

import matplotlib
import numpy as np
import pytest


def visualize(*arguments, expect=0):
    from spectral.cli import visualize as command

    assert command(list(map(str, arguments))) == expect


def test_every_figure_is_a_function_of_the_module_that_lists_them():
    from spectral.plots import figures

    for name, draw in figures.FIGURES.items():
        assert getattr(figures, name) is draw


def test_the_style_file_is_one_that_matplotlib_finds_by_its_name():
    import matplotlib.style

    from spectral.plots.style import house_style

    with matplotlib.style.context("spectral.plots.house"):
        mine = dict(matplotlib.rcParams)
    with house_style():
        assert dict(matplotlib.rcParams) == mine
    assert mine["axes.spines.top"] is False
    assert mine["font.sans-serif"] == ["DejaVu Sans"]


def test_a_users_style_lies_on_top_and_ends_with_the_block(run, tmp_path):
    from spectral.plots import loss_by_position
    from spectral.plots.style import figure_options, house_style

    (tmp_path / "my.mplstyle").write_text("axes.titlesize: 17\naxes.labelcolor: ff0000\n")
    with figure_options(style=tmp_path / "my.mplstyle"):
        figure = loss_by_position(run)
        with house_style():
            assert matplotlib.rcParams["axes.spines.top"] is False
    assert matplotlib.colors.to_hex(figure.axes[0].yaxis.label.get_color()) == "#ff0000"
    with house_style():
        assert matplotlib.rcParams["axes.titlesize"] == 9.5


def test_plain_figures_have_the_same_data_without_title_and_notes(run):
    from spectral.plots import gradient_alignment
    from spectral.plots.style import figure_options

    noted = gradient_alignment(run)
    with figure_options(plain=True):
        plain = gradient_alignment(run)
    assert not [text for text in plain.texts if text.get_text()]
    assert [text for text in noted.texts if text.get_gid() == "notes"]
    assert plain.get_size_inches()[1] < noted.get_size_inches()[1]
    for mine, other in zip(plain.axes, noted.axes, strict=True):
        for line, same in zip(mine.lines, other.lines, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), same.get_xydata())


def test_chosen_figures_are_drawn_for_a_paper(run_folder, tmp_path):
    visualize(
        run_folder, "--figures", "loss_by_position", "--style", "paper", "--plain", "--formats", "svg,pdf",
        "--output", tmp_path / "paper",
    )  # fmt: skip
    assert {file.name for file in (tmp_path / "paper").iterdir()} == {"loss_by_position.svg", "loss_by_position.pdf"}
    text = (tmp_path / "paper" / "loss_by_position.svg").read_text()
    assert "loss (nats)</text>" in text  # text, not outlines
    assert "Run synthetic" not in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--style", "nosuch.mplstyle"], "--style nosuch.mplstyle cannot be used"),
        (["--style", "bad.mplstyle"], "--style bad.mplstyle cannot be used"),
        (["--figures", "eigenvalue"], "--figures 'eigenvalue' is unknown; use some of summary"),
        (["--formats", "jpg"], "--formats 'jpg'"),
        (["--dpi", "3"], "--dpi 3"),
    ],
)
def test_mistakes_cost_one_line(run_folder, flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.mplstyle").write_text("axes.nonsense: 3\n")
    visualize(run_folder, *flags, "--output", tmp_path / "out", expect=2)
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
