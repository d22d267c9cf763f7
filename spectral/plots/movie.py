"""Writing a movie of a run, one frame per snapshot: GIF with Pillow, MP4 with the program ffmpeg."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import FFMpegWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from tqdm import tqdm

from spectral.errors import ConfigError, RunDirectoryError
from spectral.plots.movie_frames import MOVIES, Frames
from spectral.plots.style import house_style
from spectral.storage import open_run
from spectral.storage.atomic import fsync_folder

MOST_FRAMES = 300
FRAMES_PER_SECOND, STILL_SECONDS = 8, 2  # the last frame stands still
_COLORS = 128
_LINES = 5


def write_movie(
    run_path: str | os.PathLike[str],
    subject: str,
    *,
    output: str | os.PathLike[str] | None = None,
    dpi: int = 100,
    stream: Any = None,
) -> Path:
    """Write a movie of a run.

    Args:
        run_path: a run folder, or its results file; live and crashed runs are shown as far as they got.
        subject: `attention` or `spectrum`.
        output: file to write, `.gif` or `.mp4`; None takes `<run>/figures/<subject>.gif`.
        dpi: resolution.
        stream: text stream that receives progress, a bar on a terminal and lines elsewhere; None is silent.

    Returns:
        The file. It appears whole or not at all. Of more than 300 snapshots evenly spread ones become frames.

    Raises:
        ConfigError: another suffix or subject, or MP4 without ffmpeg.
        MissingDataError: the run holds nothing to show. RunDirectoryError: the file cannot be written.
    """
    if subject not in MOVIES:
        raise ConfigError([f"--animate {subject!r} is unknown; use one of {', '.join(MOVIES)}"])
    run = open_run(run_path)
    target = run.path / "figures" / f"{subject}.gif" if output is None else Path(output)
    if target.suffix.lower() not in (".gif", ".mp4"):
        raise ConfigError([f"--output {target}: a movie is a .gif or an .mp4 file"])
    if target.suffix.lower() == ".mp4" and not FFMpegWriter.isAvailable():
        raise ConfigError([f"--output {target}: MP4 needs the program ffmpeg; install it, or write a .gif"])
    with house_style():
        frames = MOVIES[subject](run)
        shown = thinned(frames.n_frames)
        if len(shown) < frames.n_frames and stream is not None:
            print(f"{len(shown)} of {frames.n_frames} snapshots become frames", file=stream)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # A folder of its own beside the target: both writers choose the format by the suffix of the file.
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".movie-", suffix=".tmp") as folder:
                temporary = Path(folder) / target.name
                write = _write_gif if target.suffix.lower() == ".gif" else _write_mp4
                write(frames, _told(shown, stream), temporary, dpi)
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            fsync_folder(target.parent)
        except OSError as error:
            msg = f"{target} cannot be written ({error.strerror or error}); choose another --output or free some space"
            raise RunDirectoryError(msg) from error
    return target


def thinned(n: int) -> list[int]:
    """Return the snapshots that become frames: all, or 300 evenly spread ones with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, MOST_FRAMES))})


def _write_gif(frames: Frames, shown: Iterator[int], path: Path, dpi: int) -> None:
    images = []
    frames.figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(frames.figure)
    for i in shown:
        frames.draw(i)
        canvas.draw()
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    # One palette for all frames: with one each, still parts would flicker.
    chosen = [images[0], images[len(images) // 2], images[-1]]
    together = Image.new("RGB", (images[0].width, sum(image.height for image in chosen)))
    for i, image in enumerate(chosen):
        together.paste(image, (0, i * image.height))
    palette = together.quantize(_COLORS)
    first, *rest = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    durations = [1000 // FRAMES_PER_SECOND] * len(images)
    durations[-1] = 1000 * STILL_SECONDS
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)


def _write_mp4(frames: Frames, shown: Iterator[int], path: Path, dpi: int) -> None:
    writer = FFMpegWriter(fps=FRAMES_PER_SECOND, extra_args=["-pix_fmt", "yuv420p"])
    FigureCanvasAgg(frames.figure)
    with writer.saving(frames.figure, str(path), dpi):
        for i in shown:
            frames.draw(i)
            writer.grab_frame()
        for _ in range(STILL_SECONDS * FRAMES_PER_SECOND):
            writer.grab_frame()


def _told(shown: list[int], stream: Any) -> Iterator[int]:
    if stream is None:
        yield from shown
    elif stream.isatty():
        yield from tqdm(shown, file=stream, unit="frame", dynamic_ncols=True)
    else:
        every = max(1, len(shown) // _LINES)
        for done, i in enumerate(shown, 1):
            yield i
            if done % every == 0 or done == len(shown):
                print(f"frame {done}/{len(shown)}", file=stream, flush=True)
