"""`spectral train-gih`: what it stores and prints, that a kill costs nothing, and how it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SMALL = ("--n_sample", "120", "--n_validation", "20", "--seq_length", "30", "--generalisation_chains", "20")
SHORT = (*SMALL, "--n_epochs", "6", "5", "4", "--hessian_points", "2", "--quiet")


def run(*words):
    from spectral.cli import main

    return main(["train-gih", *words])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from spectral.cli import main

    folder = tmp_path_factory.mktemp("gih_runs")
    assert main(["train_gih", *SHORT, "--runs-dir", str(folder), "--run-name", "done"]) == 0
    return folder / "done"


def results(folder):
    from spectral.gih import GIHResults

    return GIHResults(folder)


def test_every_row_of_a_run_is_stored_as_it_was_measured(finished):
    from spectral.gih import GIHConfig, GIHRun

    stored = results(finished)
    assert stored.status == "finished"
    rows = list(GIHRun(stored.config).measurements())
    assert stored.config == GIHConfig.from_dict(json.loads((finished / "config.json").read_text()))
    assert stored.read("stage").tolist() == [row.stage for row in rows]
    for name in ("time", "a", "sum_squares", "train_nll", "validation_double_softmax", "accuracy"):
        assert stored.read(name).tolist() == [getattr(row, name) for row in rows]
    for name in ("w", "c", "shares", "own_offset", "forces"):
        np.testing.assert_array_equal(stored.read(name), np.stack([getattr(row, name).numpy() for row in rows]))
    measured = [row.eigenvalues is not None for row in rows]
    assert sum(measured) == 6
    np.testing.assert_array_equal(~np.isnan(stored.read("eigenvalues")).any(1), measured)


def test_the_file_explains_itself(finished):
    import xarray

    with xarray.open_dataset(finished / "results.h5", engine="h5netcdf") as dataset:
        assert dataset["shares"].dims == ("row", "subset")
        assert dataset["subset"].values.tolist() == ["000", "001", "010", "011", "100", "101", "110"]
        assert dataset["shares"].attrs["chance"] == pytest.approx(1 / 7)
        assert dataset["eigenvalues"].attrs["units"] == "nats / parameter_unit^2"
        assert dataset["offset"].values.tolist() == [[1, 2, 3], [2, 3, 4], [3, 4, 5]]
        assert dataset["train_double_softmax"].attrs["chance"] == pytest.approx(np.log(3))
        assert dataset["validation_nll"].attrs["ceiling"] == dataset["reference_nll"].sel(reference="bayes")
        assert all({"units", "long_name"} <= set(variable.attrs) for variable in dataset.data_vars.values())
        assert dataset["generalisation_double_softmax"].dims == ("alpha", "length")
        assert dataset.attrs["information_set"] == "[1, 2]"


def test_a_table_of_the_rows_has_named_columns(finished):
    table = results(finished).to_dataframe()
    assert table.index.names == ["stage", "time"]
    assert table.loc[(0, 0.0), "shares[110]"] == pytest.approx(1 / 7)
    assert table.loc[(2, 4.0), "a"] > table.loc[(2, 0.0), "a"]
    assert table.loc[(0, 0.0), "w[1,0]"] == 3.0


def test_it_tells_what_was_found(finished, capsys):
    assert run("--resume", str(finished)) == 0
    out = capsys.readouterr().out
    assert "is finished already" in out
    assert "information set [1, 2]" in out
    assert "Bayes" in out
    verdicts = json.loads((finished / "transitions.json").read_text())
    assert [stage["train"] for stage in verdicts["stages"]] == ["c", "w", "a"]
    assert set(verdicts["stages"][1]["signals"]) >= {"loss"}


def test_plain_lines_tell_the_progress(capsys):
    assert run(*SMALL, "--n_epochs", "30", "--train", "c", "--run_name", "told") == 0
    lines = capsys.readouterr().err.splitlines()
    assert "parents [1, 2], 3 heads, information set [1, 2]" in lines[0]
    assert lines[1] == "stage 1 of 1: c, 30 epochs at lr 1"
    assert any(line.startswith("step 30/30  loss 0.") for line in lines)
    assert run(*SHORT, "--run_name", "quiet") == 0
    assert capsys.readouterr().err == ""


def same_file(one, other):
    a, b = results(one).to_xarray(), results(other).to_xarray()
    assert set(a.variables) == set(b.variables)
    for name in a.variables:
        np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=str(name))


@pytest.mark.parametrize(
    "options", [(), pytest.param(("--optim", "adam", "--lr", "0.01", "--batch_size", "40"), marks=pytest.mark.slow)]
)
def test_killed_twice_and_resumed_equals_uninterrupted(options):
    words = (*SMALL, "--n_epochs", "5", "100", "5", "--hessian_points", "0", "--quiet", *options)
    assert run(*words, "--run_name", "whole") == 0
    folder = Path("runs/killed")
    first = start(*words, "--run_name", "killed")
    wait_for(first, lambda: commits(folder) >= 2)
    kill(first)
    assert results(folder).status == "died"
    again = start("--resume", str(folder), "--quiet")
    n = commits(folder)
    wait_for(again, lambda: commits(folder) >= n + 2)
    kill(again)
    last = start("--resume", str(folder), "--quiet")
    assert last.wait(60) == 0, Path("stderr").read_text()
    kinds = [json.loads(line)["kind"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert kinds.count("resume") == 2
    same_file("runs/whole", folder)
    assert results(folder).status == "finished"


def test_an_interrupted_run_is_saved_in_the_middle_of_a_stage():
    process = start(*SMALL, "--n_epochs", "20000", "--train", "w", "--hessian_points", "0", "--run_name", "cut")
    folder = Path("runs/cut")
    wait_for(process, lambda: commits(folder) >= 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert "go on with: spectral train-gih --resume runs/cut" in Path("stderr").read_text()
    assert results(folder).status == "interrupted"
    assert results(folder).read("time")[-1] < 20_000


def start(*words):
    script = (
        "import sys, spectral.gih.session as session; session.COMMIT_SECONDS = 0.05; "
        "from spectral.cli import train_gih; sys.exit(train_gih(sys.argv[1:]))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads())}
    with open("stderr", "w") as told:
        return subprocess.Popen(
            [sys.executable, "-c", script, *words], env=environment, stderr=told, stdout=subprocess.DEVNULL
        )


def threads():
    import torch

    return torch.get_num_threads()


def commits(folder):
    events = folder / "events.jsonl"
    return events.read_text().count('"checkpoint"') if events.exists() else 0


def wait_for(process, ready):
    until = time.monotonic() + 60
    while not ready():
        assert process.poll() is None, Path("stderr").read_text()
        assert time.monotonic() < until
        time.sleep(0.01)


def kill(process):
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (("--parents", "1", "6"), ["--parents [6] lie outside"]),
        (("--low_degree", "4"), ["--low_degree is 4 with 3 heads"]),
        (("--low-degree", "4"), ["--low_degree is 4 with 3 heads"]),
        (("--alpha", "0"), ["--alpha is 0.0", "above 0"]),
        (("--alpha=-1",), ["--alpha is -1.0"]),
        (("--alpha", "much"), ["--alpha", "'much'"]),
        (("--seq_length", "4"), ["--seq_length is 4, shorter than the windows"]),
        (("--lr", "0"), ["so it trains nothing"]),
        (("--train", "c", "--n_epochs", "0"), ["needs either epochs or flow_time"]),
        (("--train", "x", "--n_epochs", "5"), ["--train names x"]),
        (("--loss", "mse"), ["--loss", "double_softmax", "nll"]),
        (("--n_head", "2"), ["unknown flag --n_head; did you mean --n_heads?"]),
        (("--preset", "gih"), ["--preset 'gih' is unknown", "gih_three_stage"]),
        (("--preset", ""), ["--preset is empty"]),
        (("--config", "missing.yaml"), ["missing.yaml cannot be read"]),
        (("--run_name", "../up"), ["cannot name a folder"]),
        (("--resume", "nowhere"), ["nowhere does not exist"]),
        (("--n_epochs", "5", "5"), ["2 entries for 3 stages"]),
        (("3",), ["3"]),
    ],
)
def test_a_mistake_ends_in_one_line_and_code_2(words, texts, capsys):
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert all(text in err for text in texts), err
    assert not Path("runs").exists()


def test_a_resumed_run_keeps_its_settings(finished, capsys):
    before = (finished / "results.h5").read_bytes()
    assert run("--resume", str(finished), "--alpha", "0.2") == 2
    assert "--alpha 0.2 differs from the 0.1" in capsys.readouterr().err
    assert run("--resume", str(finished), "--alpha", "0.1") == 0
    assert (finished / "results.h5").read_bytes() == before


def test_an_earlier_run_is_not_overwritten_by_accident(finished, capsys):
    words = ("--runs_dir", str(finished.parent), "--run_name", "done")
    before = (finished / "results.h5").read_bytes()
    assert run(*SHORT, *words) == 2
    assert "is not empty" in capsys.readouterr().err
    assert run(*SHORT, *words, "--overwrite", "--alpha", "0") == 2
    assert (finished / "results.h5").read_bytes() == before


def test_a_file_beats_a_preset_and_a_flag_beats_both(capsys):
    Path("mine.yaml").write_text("n_epochs: [7, 8, 9]\nalpha: 0.3\nlr: 1e5\n")
    assert run("--preset", "gih_three_stage_sharp", "--config", "mine.yaml", "--alpha", "0.4", "--dry_run") == 0
    out = capsys.readouterr().out
    assert "alpha: 0.4" in out
    assert "c, 7 epochs at lr 100000" in out
    assert "about" in out
    assert not Path("runs").exists()
    Path("bad.yaml").write_text("alpha: [1, 2]\nhead: 3\n")
    assert run("--config", "bad.yaml") == 2
    assert "unknown setting 'head'" in capsys.readouterr().err


def test_a_stored_configuration_repeats_the_run(finished):
    assert run("--config", str(finished / "config.json"), "--run_name", "again", "--quiet") == 0
    same_file(finished, Path("runs/again"))


def test_diverging_training_keeps_what_it_committed(capsys):
    words = (*SMALL, "--train", "a", "--n_epochs", "50", "--lr", "1e308", "--run_name", "wild", "--quiet")
    assert run(*words) == 2
    # Whether the update or the spectrum meets it first depends on when a row is due.
    assert re.search("diverged|is not finite; lower the learning rate", capsys.readouterr().err)
    assert results("runs/wild").status == "failed"
    assert len(results("runs/wild").read("a")) >= 1


def test_a_run_of_train_py_is_no_run_of_train_gih(capsys):
    from spectral.cli import train

    assert (
        train(["--preset", "tiny", "--num_steps", "2", "--eigen_interval", "2", "--run_name", "other", "--quiet"]) == 0
    )
    capsys.readouterr()
    assert run("--resume", "runs/other") == 2
    assert "is no run of train-gih" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["detect", "show", "export --format csv"])
def test_commands_for_other_runs_say_what_this_one_is(finished, command, capsys):
    from spectral.cli import main

    name, *more = command.split()
    assert main([name, str(finished), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds a run of train-gih; draw it with visualize_results.py" in line
