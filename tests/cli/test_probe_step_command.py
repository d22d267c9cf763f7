"""`spectral probe-step`: what it writes and prints, and how it refuses."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SMALL = ("--preset", "tiny", "--n_threads", "1", "--num_steps", "8", "--eigen_interval", "4")
QUICK = ("--n_steps", "3", "--k", "2", "--refresh", "2", "--measure_interval", "2")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    from spectral.cli import train

    folder = tmp_path_factory.mktemp("probe_step_runs")
    flags = ("--checkpoint_interval", "4", "--keep_checkpoints", "2", "--quiet")  # keeps those of steps 4 and 8
    assert train([*SMALL, *flags, "--runs_dir", str(folder), "--run_name", "finished"]) == 0
    return folder / "finished"


@pytest.fixture
def copy(finished):
    return Path(shutil.copytree(finished, "runs/mine"))


def run(*words):
    from spectral.cli import main

    return main(["probe-step", *words])


def contents(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def test_it_writes_one_file_and_one_figure_and_nothing_else(copy, capsys):
    before = contents(copy)
    assert run("--run", str(copy), "--step", "5", *QUICK) == 0
    data, figure = Path("runs/mine/probe_steps/step_5.json"), Path("runs/mine/figures/probe_step_5.png")
    after = contents(copy)
    assert set(after) - set(before) == {data, figure}
    assert all(after[path] == before[path] for path in before)
    assert figure.read_bytes().startswith(b"\x89PNG")
    found = json.loads(data.read_text())
    assert (found["step"], found["replayed"], found["checkpoint"]) == (5, 1, "step_000000004.pt")
    assert list(found["variants"]) == ["unchanged", "top", "bulk", "random"]
    assert len(found["variants"]["top"]["loss"]) == 3
    out, err = capsys.readouterr()
    assert "mine, step 5 (from checkpoint step_000000004.pt, 1 step replayed): 3 steps, top 2 of 3,040" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    for name, variant in found["variants"].items():
        assert float(rows[name][2]) == pytest.approx(variant["probe_loss"][-1], abs=1e-4)
        assert float(rows[name][4]) == pytest.approx(variant["induction_accuracy"][-1], abs=1e-3)
    assert found["sentence"] in out
    assert str(data) in out
    assert "step 13/13" in err  # one replayed, four variants of three


def test_every_spelling_and_output_elsewhere(copy, capsys):
    before = contents(copy)
    flags = ("--n-steps=2", "--k=1", "--refresh", "0", "--measure-interval", "1", "--seed", "3", "--quiet")
    assert run("--run", str(copy), "--step=4", *flags, "--output", "elsewhere/probe.json") == 0
    assert capsys.readouterr().err == ""
    assert contents(copy) == before
    assert sorted(path.name for path in Path("elsewhere").iterdir()) == ["probe.json", "probe.png"]
    settings = json.loads(Path("elsewhere/probe.json").read_text())["settings"]
    assert settings == {"n_steps": 2, "k": 1, "refresh": 0, "measure_interval": 1, "seed": 3}


def test_from_start_helps_where_no_checkpoint_is_left(copy, capsys):
    assert run("--run", str(copy), "--step", "2", *QUICK, "--from-start", "--quiet") == 0
    assert "from the initialisation, 2 steps replayed" in capsys.readouterr().out


def test_help_is_readable_and_names_every_flag(capsys):
    from spectral.cli import PROBE_STEP_FLAGS

    with pytest.raises(SystemExit) as ended:
        run("--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name in PROBE_STEP_FLAGS:
        assert f"--{name}" in text
    assert "(default: 100)" in text
    assert "spectral probe-step --run runs/demo --step 500" in text


def _no_training_settings(folder):
    (folder / "config.json").write_text('{"eigen_interval": 1, "seed": 0}')


def _newer_settings(folder):
    config = json.loads((folder / "config.json").read_text()) | {"unheard_of": 1}
    (folder / "config.json").write_text(json.dumps(config))


def _other_format(folder):
    from spectral.storage import load_checkpoint, save_checkpoint

    path = folder / "checkpoints" / "step_000000004.pt"
    save_checkpoint(path, load_checkpoint(path) | {"format": 99})


def _other_settings(folder):
    config = json.loads((folder / "config.json").read_text()) | {"lr": 0.5}
    (folder / "config.json").write_text(json.dumps(config))


def _damaged(folder):
    (folder / "checkpoints" / "step_000000004.pt").write_bytes(b"")


def _elsewhere_trained(folder):
    config = json.loads((folder / "config.json").read_text()) | {"device": "cuda"}
    (folder / "config.json").write_text(json.dumps(config))


def _file_in_the_way(folder):
    (folder / "probe_steps").write_text("")


MISTAKES = [
    ("--run nowhere --step 4", None, "nowhere does not exist; check the path"),
    ("--run . --step 4", None, "is no run folder"),
    ("--step 4", None, "the following arguments are required: --run; see --help"),
    ("--run runs/mine", None, "the following arguments are required: --step; see --help"),
    ("--run runs/mine --step x", None, "--step: invalid int value: 'x'"),
    ("--run runs/mine --step 4 --stray 1", None, "--stray"),
    ("--run runs/mine --step -1", None, "--step -1; steps count from 0"),
    ("--run runs/mine --step 9", None, "--step 9 lies beyond the end of runs/mine, which has 8 steps; give one from 0"),
    ("--run runs/mine --step 3", None, "no checkpoint at or before step 3 (the oldest is of step 4); choose --step 4"),
    ("--run runs/mine --step 3", None, "add --from_start to repeat the run"),
    ("--run runs/mine --step 4 --k 3041", None, "--k 3041 is larger than the 3,040 parameters of runs/mine; lower it"),
    ("--run runs/mine --step 4 --k 0", None, "--k 0; it must be at least 1"),
    ("--run runs/mine --step 4 --n_steps 0", None, "--n_steps 0; it must be at least 1"),
    ("--run runs/mine --step 4 --refresh -1 --n_steps 0", None, "--refresh -1; it must be at least 0"),
    ("--run runs/mine --step 4 --measure_interval 0", None, "--measure_interval 0; it must be at least 1"),
    ("--run runs/mine --step 4 --device gpu", None, "--device 'gpu' is unknown; use auto, cpu, cuda or cuda:N"),
    ("--run runs/mine --step 4 --output runs", None, "--output runs cannot be the JSON file; give a file name"),
    ("--run runs/mine --step 4 --output x.png", None, "--output x.png cannot be the JSON file"),
    (
        "--run runs/mine --step 4",
        _no_training_settings,
        "does not say how to train (no 'data'); give a run of train.py",
    ),
    ("--run runs/mine --step 4", _newer_settings, "unknown setting 'unheard_of'"),
    ("--run runs/mine --step 4", _other_format, "is no checkpoint of this suite"),
    ("--run runs/mine --step 4", _other_settings, "belongs to another configuration"),
    ("--run runs/mine --step 5", _damaged, "no checkpoint at or before step 5 (1 damaged); choose --step 8 or later"),
    (
        "--run runs/mine --step 4",
        _file_in_the_way,
        "runs/mine/probe_steps cannot be written; choose another place with --output",
    ),
]


@pytest.mark.parametrize(("words", "spoil", "message"), MISTAKES)
def test_a_mistake_ends_in_one_line_and_harms_nothing(copy, capsys, words, spoil, message):
    if spoil is not None:
        spoil(copy)
    before = contents(".")
    options = () if "--k" in words or "--n_steps" in words else ("--k", "1")
    assert run(*words.split(), *options, "--quiet") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert contents(".") == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_run_of_another_device_says_what_to_add(copy, capsys):
    _elsewhere_trained(copy)
    assert run("--run", str(copy), "--step", "4") == 2
    assert "trained with --device cuda, which is not here; add --device cpu" in capsys.readouterr().err


def test_the_module_is_a_command_too(finished):
    done = subprocess.run(
        [sys.executable, "-m", "spectral.cli", "probe-step", "--run", str(finished), "--step", "99"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: --step 99 lies beyond the end of .*\n", done.stderr)
