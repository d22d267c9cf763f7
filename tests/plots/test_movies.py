"""Movies: a frame per snapshot with that snapshot's numbers, and whole files or none."""

import io
import itertools
import shutil

import numpy as np
import pytest
from PIL import Image


def animate(*arguments, expect=0):
    from spectral.cli import visualize

    assert visualize(list(map(str, arguments))) == expect


@pytest.fixture
def short_run(synthetic, tmp_path):
    return synthetic.make(tmp_path / "short", steps=(0, 400, 500, 1000), verdict=synthetic.verdict())


def test_attention_frames_show_the_patterns_of_their_snapshot(run, synthetic):
    from spectral.plots.movie_frames import AttentionFrames

    frames = AttentionFrames(run)
    assert frames.n_frames == len(run.steps)
    stored = run.read("circuits/attention_pattern")
    maps = {axes.get_title(loc="left"): axes.images[0] for axes in frames.figure.axes if axes.images}
    assert {"L1H2 induction", "L0H1 previous token"} <= set(maps)
    assert len(maps) == 8
    for i in (0, 25, 50):
        frames.draw(i)
        for title, image in maps.items():
            layer, head = int(title[1]), int(title[3])
            np.testing.assert_array_equal(image.get_array(), stored[i, layer, head].astype(np.float32))
        (line,) = [artist for artist in frames.figure.findobj() if artist.get_gid() == "now"]
        assert line.get_xdata()[0] == run.steps[i]


def test_spectrum_frames_show_eigenvalues_with_a_trail(run, synthetic):
    from spectral.plots.movie_frames import SpectrumFrames

    frames = SpectrumFrames(run)
    top, bottom = run.read("hessian/eigenvalues"), run.read("hessian/negative_eigenvalues")
    frames.draw(20)
    for age, (above, below) in enumerate(frames._trail):
        np.testing.assert_array_equal(above.get_ydata(), top[20 - age])
        np.testing.assert_array_equal(below.get_ydata(), bottom[20 - age])
    plane = run.read("circuits/ov_eigenvalues")[(20, *synthetic.induction_head)]
    np.testing.assert_array_equal(frames._points.get_data(), plane.T)


@pytest.mark.parametrize("subject", ["attention", "spectrum"])
def test_a_gif_has_one_frame_per_snapshot(subject, short_run, tmp_path, capsys):
    target = tmp_path / "deep" / "movie.gif"
    animate(short_run, "--animate", subject, "--output", target, "--dpi", "40")
    captured = capsys.readouterr()
    assert captured.out == f"{target}\n"
    assert captured.err.splitlines()[-1] == "frame 4/4"
    with Image.open(target) as movie:
        assert (movie.format, movie.n_frames) == ("GIF", 4)
        assert movie.info["loop"] == 0
        shown = []
        for i in range(4):
            movie.seek(i)
            shown.append(np.asarray(movie.convert("RGB")).astype(int))
    assert all(np.abs(a - b).max() > 50 for a, b in itertools.pairwise(shown))
    assert list(target.parent.iterdir()) == [target]


def test_without_output_the_movie_goes_to_the_figures(short_run, capsys):
    animate(short_run, "--animate", "spectrum", "--dpi", "30")
    assert (short_run / "figures" / "spectrum.gif").exists()


def test_patterns_that_were_not_stored_come_from_the_checkpoints(tmp_path):
    import torch

    from spectral import RunConfig, Transformer, open_run
    from spectral.cli import train
    from spectral.plots.movie_frames import AttentionFrames
    from spectral.storage import load_checkpoint

    flags = [
        "--preset",
        "tiny",
        "--num_steps",
        "8",
        "--checkpoint_interval",
        "4",
        "--attention_positions",
        "0",
        "--eigen_interval",
        "8",
    ]
    assert train([*flags, "--runs_dir", str(tmp_path), "--run_name", "bare", "--quiet"]) == 0
    run = open_run(tmp_path / "bare")
    frames = AttentionFrames(run)
    assert list(frames.steps) == [4, 8]
    model = Transformer.from_config(RunConfig.from_dict(run.config)).eval()
    model.load_state_dict(load_checkpoint(tmp_path / "bare" / "checkpoints" / "step_000000008.pt")["model"])
    with torch.no_grad():
        _, patterns = model.forward_with_patterns(torch.as_tensor(run.probe("repeat_tokens")[:1]))
    np.testing.assert_array_equal(frames.patterns[-1], patterns[0].numpy())
    assert "from the checkpoints" in frames.figure.texts[1].get_text()
    shutil.rmtree(tmp_path / "bare" / "checkpoints")
    animate(tmp_path / "bare", "--animate", "attention", expect=2)


def test_long_runs_are_thinned_and_say_so(short_run, monkeypatch):
    from spectral.plots import movie

    assert movie.thinned(5) == [0, 1, 2, 3, 4]
    assert len(movie.thinned(10_000)) == 300
    assert movie.thinned(10_000)[-1] == 9_999
    monkeypatch.setattr(movie, "MOST_FRAMES", 2)
    told = io.StringIO()
    target = movie.write_movie(short_run, "spectrum", dpi=30, stream=told)
    assert told.getvalue().splitlines()[0] == "2 of 4 snapshots become frames"
    with Image.open(target) as found:
        assert found.n_frames == 2


def test_mp4_without_ffmpeg_costs_one_line(short_run, monkeypatch, tmp_path, capsys):
    from matplotlib.animation import FFMpegWriter

    monkeypatch.setattr(FFMpegWriter, "isAvailable", classmethod(lambda cls: False))
    animate(short_run, "--animate", "spectrum", "--output", tmp_path / "m.mp4", expect=2)
    assert "MP4 needs the program ffmpeg; install it, or write a .gif" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg, which is not installed here")
def test_mp4_is_written_with_ffmpeg(short_run, tmp_path):
    target = tmp_path / "m.mp4"
    animate(short_run, "--animate", "spectrum", "--output", target, "--dpi", "40")
    assert target.read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--animate", "losses"], "--animate"),
        (["--animate", "spectrum", "--output", "movie.avi"], "a movie is a .gif or an .mp4 file"),
        (["--animate", "spectrum", "--output", "file/x.gif"], "cannot be written"),
    ],
)
def test_mistakes_cost_one_line(short_run, flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    animate(short_run, *flags, expect=2)
    error = capsys.readouterr().err
    assert words in error
    assert error.splitlines()[-1].startswith("error: ")


def test_a_run_without_snapshots_or_with_missing_values(synthetic, tmp_path, capsys):
    empty = synthetic.make(tmp_path / "empty", steps=())
    for subject in ("attention", "spectrum"):
        animate(empty, "--animate", subject, expect=2)
        assert "no snapshot was committed yet" in capsys.readouterr().err

    def spoil(row):
        for name, value in row.items():
            if name != "step" and not name.endswith("converged") and row["step"] == 500:
                row[name] = np.full(np.shape(value), np.nan)

    gaps = synthetic.make(tmp_path / "gaps", steps=(0, 500, 1000), change=spoil)
    for subject in ("attention", "spectrum"):
        animate(gaps, "--animate", subject, "--dpi", "30")
