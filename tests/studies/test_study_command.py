"""`spectral study repeated` from the command line to its page."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ["--scale", "0.001", "--models", "1L_fixed", "--jobs", "1"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def study(*arguments):
    from spectral.cli import main

    return main(["study", "repeated", *map(str, arguments)])


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a tiny study. Read only but for its page."""
    folder = tmp_path_factory.mktemp("studies") / "tiny"
    assert study(*TINY, "--output", folder, "--quiet") == 0
    return folder


def test_it_writes_page_findings_figures_and_runs(finished):
    assert {path.name for path in finished.iterdir()} == {"index.html", "findings.json", "figures", "runs"}
    content = json.loads((finished / "findings.json").read_text())
    assert content["scale"] == 0.001
    assert content["n_sequences"] == 128
    assert [run["run"] for run in content["runs"]] == ["runs/1L_fixed_seed0"]
    by_claim = {finding["claim"]: finding for finding in content["findings"]}
    assert by_claim["one_layer_positional"]["verdict"] == "undecided"  # five steps teach nothing
    assert by_claim["two_layer_positional"]["verdict"] == "not measured"
    value = by_claim["one_layer_positional"]["runs"][0]["conditions"][0]["value"]
    page = (finished / "index.html").read_text()
    assert f"{value:.3f}" in page
    figures = {path.stem for path in (finished / "figures").iterdir()}
    assert figures == set(re.findall(r'<img id="(\w+)"', page))
    assert "attention_maps_1L_fixed" in figures


def test_the_page_can_be_written_again_and_no_run_is_touched(finished, capsys):
    before = {path: path.read_bytes() for path in sorted((finished / "runs").rglob("*")) if path.is_file()}
    page = (finished / "index.html").read_bytes()
    assert study(*TINY, "--output", finished, "--page_only") == 0
    assert (finished / "index.html").read_bytes() == page
    assert {path: path.read_bytes() for path in sorted((finished / "runs").rglob("*")) if path.is_file()} == before
    shown = capsys.readouterr()
    assert "measuring 1L_fixed_seed0, step 5" in shown.err
    assert "undecided     0 of 1  A 1-layer model trained on blocks" in shown.out
    assert f"1 runs: {finished}/index.html" in shown.out


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(capsys, tmp_path):
    assert study("--scale", "0.001", "--models", "2L_fixed", "1L_fixed", "--seeds", "2", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"runs/repeated_study: 4 runs to train; about \d+ s, \d at a time", lines[0])
    assert lines[1:3] == ["2L_fixed_seed0: 5 steps, to train", "2L_fixed_seed1: 5 steps, to train"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--scale 3", "--scale is 3; give a number between 0.001 and 1"),
        ("--scale big", "--scale: invalid float value"),
        ("--seeds 0", "--seeds is 0; give at least 1"),
        ("--models 3L_fixed", "--models '3L_fixed' is unknown; use some of 1L_fixed, 1L_varied"),
        ("--models", "--models: expected at least one argument"),
        ("--jobs -1", "--jobs is -1"),
        ("--scael 0.1", "--scael"),
        ("--page_only --dry_run", "--dry_run has no meaning together with --page_only"),
        ("--page_only", "runs/repeated_study holds no finished run; train some first"),
        ("--output file/study", "file cannot be written; choose another place with --output"),
        ("--output file", "file cannot be written; choose another place with --output"),
    ],
)
def test_a_mistake_ends_in_one_line(capsys, tmp_path, words, message):
    Path("file").write_text("mine")
    assert study(*words.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert Path("file").read_text() == "mine"


def test_another_scale_in_the_same_folder_is_refused(finished, capsys):
    assert study("--output", finished, "--quiet") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "1L_fixed_seed0 was made with num_steps 5, this study asks for 5000; give the --scale of then" in line


def test_unknown_studies_and_help(capsys):
    from spectral.cli import main

    assert main(["study"]) == 2
    assert main(["study", "--help"]) == 0
    assert "spectral study repeated --help" in capsys.readouterr().out
    assert main(["study", "gossip"]) == 2
    assert "unknown study 'gossip'; use one of repeated, controls" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main(["study", "repeated", "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    from spectral.cli import STUDY_FLAGS

    for name in STUDY_FLAGS:
        assert f"--{name}" in text


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "spectral.cli", "study", "repeated", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_study_that_is_interrupted_saves_and_goes_on(tmp_path, jobs):
    place = ["--scale", "0.02", "--models", "1L_fixed", "2L_fixed", "--jobs", jobs, "--output", tmp_path / "study"]
    process = start(*place)
    end = time.monotonic() + 120
    while time.monotonic() < end and not list((tmp_path / "study").glob("runs/*/checkpoints/step_00000002?.pt")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, (out, err)
    assert "interrupted; every running model was saved, give the command again to go on" in err
    assert "Traceback" not in err
    assert not (tmp_path / "study/index.html").exists()
    process = start(*place)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "2 runs:" in out


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_short_version_finds_what_a_tenth_of_the_steps_can_show(tmp_path):
    process = start("--scale", "0.1", "--output", tmp_path / "study")
    out, err = process.communicate(timeout=3600)
    assert process.returncode == 0, err
    assert "5 runs:" in out
    content = json.loads((tmp_path / "study/findings.json").read_text())
    found = {finding["claim"]: finding["verdict"] for finding in content["findings"]}
    assert found["one_layer_no_induction"] == "yes"
    assert found["induction_in_layer_1"] == "yes"
    assert found["generalises"] == "yes"
    assert "Steps are multiplied by 0.1" in (tmp_path / "study/index.html").read_text()
