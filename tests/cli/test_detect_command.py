"""`spectral detect`: tables, the JSON file, and how it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

SMALL = ("--preset", "tiny", "--n_threads", "1", "--num_steps", "8", "--eigen_interval", "4", "--quiet")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    from spectral.cli import train

    folder = tmp_path_factory.mktemp("detect_runs")
    assert train([*SMALL, "--runs_dir", str(folder), "--run_name", "trained"]) == 0
    return folder / "trained"


@pytest.fixture(scope="session")
def stepped(trained, tmp_path_factory):
    """A run whose stored signals hold a step at 600 of 1,000, in behaviour, in head L1H0 and in the spectrum."""
    from spectral.storage import ResultsWriter
    from spectral.storage.hdf5 import get_root_attributes, open_reader
    from spectral.storage.layout import RunLayout

    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("detect_stepped") / "stepped"))
    with open_reader(folder / "results.h5") as file:
        root = get_root_attributes(file)
    layout = RunLayout.from_json(root["layout_json"])
    (folder / "results.h5").unlink()
    generator = np.random.default_rng(0)
    heads = (layout.n_layers, layout.n_heads)
    with ResultsWriter.create(folder / "results.h5", layout, attributes={"config_json": root["config_json"]}) as writer:
        for step in range(0, 1001, 10):
            level = 1 / (1 + np.exp(-(step - 600) / 8))
            noise = generator.normal(0, 0.01, 4)
            scores = np.full(heads, 0.02)
            scores[1, 0] = 0.02 + 0.9 * level + noise[1]
            matches = np.full(heads, np.nan)
            matches[1, 0] = 0.03
            eigenvalues = np.full(layout.n_top, np.exp(level + noise[2]))
            row = {"behaviour/induction_loss": 3 - 2.5 * level + noise[0], "hessian/eigenvalues": eigenvalues}
            row |= {"circuits/induction_score_corrected": scores, "circuits/content_match_fraction": matches}
            writer.append_snapshot({"step": step, **row})
        writer.set_status("finished")
    return folder


def detect(*words):
    from spectral.cli import main

    return main(["detect", *map(str, words)])


def test_it_prints_the_tables_and_writes_the_verdict(stepped, tmp_path, capsys):
    folder = Path(shutil.copytree(stepped, tmp_path / "run"))
    assert detect(folder) == 0
    out = capsys.readouterr().out
    assert "transition: abrupt, midpoint at step" in out
    assert "which moved first" in out
    assert "look back a fixed way, no induction" in out
    found = json.loads((folder / "transitions.json").read_text())
    assert found["consensus"]["detected"]
    assert abs(found["consensus"]["midpoint"] - 600) <= 20
    assert set(found["consensus"]["agreeing_signals"]) == {"behaviour", "circuits", "spectrum"}
    assert found["mechanism"]["label"] == "positional"
    assert (found["mechanism"]["layer"], found["mechanism"]["head"]) == (1, 0)


def test_the_spectrum_alone_goes_to_a_file_of_its_own(stepped, tmp_path, capsys):
    folder = Path(shutil.copytree(stepped, tmp_path / "run"))
    before = (folder / "transitions.json").read_bytes()
    assert detect(folder, "--signals", "hessian") == 0
    assert (folder / "transitions.json").read_bytes() == before
    found = json.loads((folder / "transitions_hessian.json").read_text())
    assert set(found["signals"]) == {"largest_eigenvalue"}
    assert found["consensus"]["rule"] == "one_family"
    assert found["consensus"]["detected"]
    assert "induction_loss" not in capsys.readouterr().out
    assert detect(folder, "--signals", "induction_loss,circuits", "--output", "mine.json") == 0
    assert set(json.loads(Path("mine.json").read_text())["signals"]) == {"induction_loss", "induction_score"}


def test_a_short_run_is_inconclusive(trained, tmp_path, capsys):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    assert detect(folder) == 0
    assert "too few snapshots" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--signals", "nonsense"), "'nonsense' is unknown; use some of hessian, behaviour, circuits, spectrum"),
        (("--significance", "2"), "--significance"),
        (("--output", "missing/folder/file.json"), "--output"),
    ],
)
def test_a_mistake_is_one_line(trained, capsys, words, text):
    assert detect(trained, *words) == 2
    error = capsys.readouterr().err.strip()
    assert text in error
    assert "\n" not in error


def test_no_run_is_one_line(capsys):
    assert detect("nowhere") == 2
    assert "nowhere" in capsys.readouterr().err
