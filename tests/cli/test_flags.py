"""Every documented flag, in every spelling, and which source of a setting wins."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCUMENTED = {
    "vocab_size": 50,
    "seq_length": 256,
    "n_layers": 2,
    "n_heads": 8,
    "num_steps": 20000,
    "eigen_interval": 100,
    "batch_size": 64,
    "track_top_k_eigenvalues": 10,
    "log_interval": 50,
    "checkpoint_interval": 1000,
    "lr": 1e-3,
    "weight_decay": 0.01,
}
WITHOUT_PROMISED_DEFAULT = {
    "beta1": "0.5",
    "beta2": "0.5",
    "grad_clip": "0.5",
    "use_lr_schedule": "true",
    "dropout": "0.5",
    "d_model": "96",
    "d_ff": "3",
    "seed": "4",
    "n_sequences": "640",
    "min_pattern_length": "3",
    "max_pattern_length": "9",
    "n_repeats_per_seq": "4",
    "device": "cpu",
}
OTHER_VALUES = {name: str(value * 2 if isinstance(value, int) else value / 2) for name, value in DOCUMENTED.items()}
FLAGS = OTHER_VALUES | WITHOUT_PROMISED_DEFAULT


def parse(*arguments):
    from spectral.cli import parse_train

    return parse_train(list(arguments))[1]


def dry_run(capsys, *arguments):
    from spectral.cli import train

    assert train([*arguments, "--dry_run"]) == 0
    return capsys.readouterr().out


def test_defaults_are_those_of_the_reference_project():
    config = parse()
    assert {name: getattr(config, name) for name in DOCUMENTED} == DOCUMENTED


@pytest.mark.parametrize(("name", "value"), FLAGS.items(), ids=FLAGS.keys())
def test_every_flag_parses_in_every_spelling(name, value):
    wanted = parse("--" + name, value)
    assert getattr(wanted, name) == yaml.safe_load(value)
    assert wanted != parse()
    for spelling in (
        (f"--{name}={value}",),
        (f"--{name.replace('_', '-')}", value),
        (f"--{name.replace('_', '-')}={value}",),
    ):
        assert parse(*spelling) == wanted


def test_every_setting_is_a_flag(capsys):
    from spectral.cli import train
    from spectral.config import FIELD_NAMES

    with pytest.raises(SystemExit) as ended:
        train(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name in [*FIELD_NAMES, "preset", "config", "resume", "resume_anyway", "run_name", "overwrite", "dry_run"]:
        assert f"--{name}" in text, name
    assert max(map(len, text.splitlines())) <= 250


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--probe_periods", "8", "12"], (8, 12)),
        (["--probe_periods", "8,12"], (8, 12)),
        (["--probe_periods=8,12"], (8, 12)),
        (["--probe_periods", "[8, 12]"], (8, 12)),
        (["--probe-periods=[8,12]"], (8, 12)),
        (["--probe_periods", "8"], (8,)),
        (["--probe_periods=[]"], ()),
    ],
)
def test_a_list_is_written_in_any_usual_way(words, wanted):
    assert parse(*words).probe_periods == wanted
    assert parse(*words, "--seed", "3").seed == 3


@pytest.mark.parametrize(
    "words",
    [
        ["--block_spectra", "layers", "L1H2.QK"],
        ["--block_spectra", "layers,L1H2.QK"],
        ["--block_spectra=layers,L1H2.QK"],
        ["--block-spectra", "[layers, L1H2.QK]"],
        ["--config", "blocks.yaml"],
    ],
)
def test_a_list_of_names_is_written_in_the_same_ways(words):
    Path("blocks.yaml").write_text("block_spectra: [layers, L1H2.QK]\n")
    assert parse(*words, "--seed", "3").block_spectra == ("layers", "L1H2.QK")
    assert parse("--block_spectra=[]").block_spectra == ()


@pytest.mark.parametrize(("word", "wanted"), [("on", "on"), ("off", "off"), ("'on'", "on"), ("auto", "auto")])
def test_on_and_off_are_words_also_in_yaml(word, wanted):
    Path("mine.yaml").write_text(f"compile: {word}\nuse_lr_schedule: on\n")
    config = parse("--config", "mine.yaml")
    assert (config.compile, config.use_lr_schedule) == (wanted, True)
    assert parse("--compile", wanted).compile == wanted


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--use_lr_schedule"], True),
        (["--use-lr-schedule"], True),
        (["--use_lr_schedule", "true"], True),
        (["--use_lr_schedule=false"], False),
        (["--use_lr_schedule", "--seed", "3"], True),
    ],
)
def test_a_switch_stands_alone_or_takes_a_value(words, wanted):
    assert parse(*words).use_lr_schedule is wanted


def test_precedence_is_defaults_preset_file_flags_in_any_order():
    Path("mine.yaml").write_text("num_steps: 70\nlr: 0.5\n")
    parts = [["--preset", "tiny"], ["--config", "mine.yaml"], ["--lr", "0.25"]]
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)):
        config = parse(*(word for i in order for word in parts[i]))
        assert (config.vocab_size, config.num_steps, config.lr, config.beta1) == (16, 70, 0.25, 0.9)


def test_json_is_a_config_file_too():
    Path("mine.json").write_text(json.dumps({"lr": 0.5, "probe_periods": [8, 9]}))
    config = parse("--config", "mine.json")
    assert (config.lr, config.probe_periods) == (0.5, (8, 9))


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "{}"])
def test_a_config_file_may_be_empty(text):
    Path("empty.yaml").write_text(text)
    assert parse("--config", "empty.yaml") == parse()


def test_text_data_brings_its_own_vocabulary():
    Path("book.txt").write_text("x" * 100)
    assert parse("--data", "text", "--text_path", "book.txt").vocab_size == 256


@pytest.mark.parametrize("preset", ["bigram_chain", "demo", "tiny"])
def test_every_preset_is_valid(preset):
    from spectral.config import load_preset, preset_names

    assert preset in preset_names()
    config = parse("--preset", preset)
    for name, value in load_preset(preset).items():
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)


def test_dry_run_shows_everything_and_writes_nothing(tmp_path, capsys):
    text = dry_run(capsys, "--preset", "tiny", "--num_steps", "25")
    settings = yaml.safe_load(text.split("\n\n")[0])
    assert settings == parse("--preset", "tiny", "--num_steps", "25").to_dict()
    assert "parameters: 3,040" in text
    assert "schedule: 25 steps, 4 snapshots at 0, 10, 20, 25" in text
    assert "time: about" in text
    assert list(tmp_path.iterdir()) == []


def test_dry_run_counts_the_products_of_every_chosen_measurement(capsys):
    text = dry_run(capsys, "--preset", "tiny", "--track_ggn", "2", "--density_steps", "20", "--density_probes", "2")
    assert "about 131 a snapshot (eigenvalues 60, audits 6, Gauss-Newton 25, density 40), eager (" in text
    text = dry_run(
        capsys, "--preset", "tiny", "--audit_interval", "0", "--block_spectra", "layers", "--block_top_k", "1"
    )
    assert "about 96 a snapshot (eigenvalues 60, blocks 36), eager (" in text
    assert "Hessian products: about 0 a snapshot" not in dry_run(capsys, "--preset", "tiny", "--eigen_interval", "0")


def test_dry_run_output_is_a_config_file(capsys):
    text = dry_run(capsys, "--preset", "tiny", "--eigen_interval", "0", "--lr", "0.01")
    assert "0 snapshots at none" in text
    Path("again.yaml").write_text(text.split("\n\n")[0])
    assert parse("--config", "again.yaml") == parse("--preset", "tiny", "--eigen_interval", "0", "--lr", "0.01")


def test_main_dispatches(capsys):
    from spectral.cli import main

    assert main(["--help"]) == 0
    assert main([]) == 2
    assert main(["trian"]) == 2
    assert "train, train-gih, visualize" in capsys.readouterr().err
    assert main(["train", "--preset", "tiny", "--dry_run"]) == 0


def test_two_runs_without_a_name_do_not_collide(monkeypatch):
    import datetime as module

    from spectral.cli import train_command

    class Stopped(module.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2025, 1, 2, 3, 4, 5)

    monkeypatch.setattr(train_command.datetime, "datetime", Stopped)
    command = {"run_name": None, "runs_dir": "runs"}
    first = train_command._run_path(command)
    assert first == Path("runs/induction_run_20250102_030405")
    first.mkdir(parents=True)
    assert train_command._run_path(command) != first


def test_script_and_its_flags_in_a_real_process(tmp_path):
    place = ["--runs_dir", str(tmp_path), "--run_name", "real"]
    small = ["--preset", "tiny", "--num-steps=4", "--eigen-interval=2", "--n_threads", "1"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *small, *place],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "real: 4 steps in" in done.stdout
    assert "figures: python visualize_results.py" in done.stdout
    assert "step 4/4" in done.stderr
    assert "lambda_1" in done.stderr
    assert "\r" not in done.stderr


def test_flag_names_are_field_names():
    from spectral.config import FIELD_NAMES, RunConfig

    assert {field.name for field in dataclasses.fields(RunConfig)} == set(FIELD_NAMES) >= set(FLAGS)
