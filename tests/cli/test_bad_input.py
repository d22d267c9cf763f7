"""A user's mistake ends in exit code 2 and one line that names the flag and the remedy; nothing is harmed."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SMALL = [
    "--preset",
    "tiny",
    "--n_threads",
    "1",
    "--num_steps",
    "4",
    "--eigen_interval",
    "2",
    "--checkpoint_interval",
    "2",
    "--quiet",
]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    from spectral.cli import train

    folder = tmp_path_factory.mktemp("cli_runs")
    assert train([*SMALL, "--runs_dir", str(folder), "--run_name", "finished"]) == 0
    return folder / "finished"


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs" / "mine")


@pytest.fixture
def refuse(capsys):
    """Run a command that must be refused and return its line."""

    def run(*arguments):
        from spectral.cli import train

        capsys.readouterr()
        assert train(list(arguments)) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert len(lines[0]) > 20
        return lines[0]

    return run


def _contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


MISTAKES = [
    ("--n_heads 3 --d_model 16", "--n_heads 3 does not divide --d_model 16; try --n_heads 2"),
    ("--d_model 1000000007", "--d_model 1000000007; try --n_heads 1"),
    ("--eigen_interval 50", "--eigen_interval 50 is larger than --num_steps 4; lower it"),
    (
        "--optimizer sgd --track_preconditioned 2",
        "--track_preconditioned needs the second moments of",
    ),
    ("--eigen_rtol 1e-6", "--eigen_rtol 1e-06 is below what float32 products can show; give at least 1.5e-05 or add"),
    ("--eigen_rtol 1e-15 --hessian_dtype float64", "below what float64 products can show; give at least 2.8e-14"),
    (
        "--eigen_backend pyhessian --eigen_microbatch_size 2",
        "--eigen_microbatch_size 2 is impossible with",
    ),
    ("--eigen_backend pyhessian --hessian_dtype float64", "--hessian_dtype float64 is impossible with --eigen_backend"),
    ("--eigen_backend pyhessian --compile on", "--compile on is impossible with --eigen_backend pyhessian"),
    ("--eigen_backend scipy --max_products 9", "--max_products is kept by --eigen_backend spectral only, not by scipy"),
    ("--eigen_backend arpack", "--eigen_backend is 'arpack'; give one of spectral, scipy, pyhessian"),
    ("--compile maybe", "--compile is 'maybe'; give one of auto, on, off"),
    ("--block_spectra L7", "--block_spectra 'L7' is no block of this model; known: layers, heads, embedding"),
    ("--block_spectra L0 L0", "--block_spectra is L0 L0; give every name once"),
    ("--block_spectra 3", "--block_spectra is '3'"),
    ("--audit_interval -1", "--audit_interval is -1; it must not be negative"),
    ("--density_probes 0", "--density_probes is 0; it must be at least 1"),
    ("--max_period 400", "--max_period 400 leaves nothing to predict in --seq_length 24"),
    ("--min_period 9", "--min_period 9 is larger than --max_period 8; swap them"),
    ("--vocab_size 1", "--vocab_size is 1; at least 2"),
    ("--preset nope", "--preset 'nope' is unknown; use one of"),
    ("--preset=", "--preset is empty"),
    ("--config=", "--config is empty"),
    ("--resume=", "--resume is empty"),
    ("--config nope.yaml", "--config nope.yaml cannot be read"),
    ("--num_steps 0", "--num_steps is 0; it must be at least 1"),
    ("--num_steps -5", "--num_steps is -5"),
    ("--num_steps=-5", "--num_steps is -5"),
    ("--num_steps 1e3", "--num_steps is '1000.0'; give a whole number"),
    ("--num_steps 10.5", "--num_steps is '10.5'; give a whole number"),
    ("--num_steps abc", "--num_steps is 'abc'; give a whole number"),
    ("--num_steps", "--num_steps has no value; give one"),
    ("--num_steps 1000000000000 --eigen_interval 1", "--eigen_interval 1 would take"),
    ("--batch_size null", "--batch_size is 'None'; give a whole number"),
    ("--lr nan", "--lr is 'nan'; give a number"),
    ("--lr .nan", "--lr is nan; give a finite number"),
    ("--lr .inf", "--lr is inf; give a finite number"),
    ("--lr inf", "--lr is 'inf'; give a number"),
    ("--lr 0", "--lr is 0.0; it must be positive"),
    ("--lr -1", "--lr is -1.0; it must be positive"),
    ("--lr fast", "--lr is 'fast'; give a number"),
    ("--grad_clip -1", "--grad_clip is -1.0; it must not be negative"),
    ("--dropout 1", "--dropout is 1.0; it must lie in [0, 1)"),
    ("--seed -1", "--seed is -1"),
    ("--n_threads 100000000000", "--n_threads is 100000000000; give at most"),
    ("--use_lr_schedule maybe", "--use_lr_schedule is 'maybe'; give true or false"),
    ("--optimizer adam", "--optimizer is 'adam'; give one of adamw, sgd"),
    ("--probe_periods", "--probe_periods has no value; give one"),
    ("--probe_periods x", "--probe_periods is 'x'"),
    ("--probe_periods 8 8", "--probe_periods is [8, 8]; give every period once"),
    ("--probe_periods 100", "--probe_periods holds 100; periods must lie between 2 and 22"),
    ("--eigen_interva 3", "unknown flag --eigen_interva; did you mean --eigen_interval?"),
    ("--learning-rates 3", "unknown flag --learning_rates"),
    ("stray", "stray"),
    ("--run_name a/b", "--run_name 'a/b' cannot name a folder; use letters"),
    ("--run_name ..", "--run_name '..' cannot name a folder"),
    ("--run_name=", "--run_name '' cannot name a folder"),
    ("--run_name", "--run_name: expected one argument"),
    ("--device gpu", "--device is 'gpu'; use auto, cpu, cuda or cuda:N"),
    ("--device cuda:99", "--device cuda:99"),
    ("--n_sequences 4", "--n_sequences 4 does not fill one batch; raise it to at least --batch_size 8"),
    ("--track_top_k_eigenvalues 100000", "--track_top_k_eigenvalues 100000 and"),
    ("--track_top_k_eigenvalues 0 --track_negative_eigenvalues 0", "are both 0; ask for at least one"),
    ("--stop_after_transition 5 --detect false", "--stop_after_transition needs --detect true"),
    ("--data text --vocab_size 256", "--data text needs --text_path"),
    ("--data text --vocab_size 256 --text_path nope", "nope"),
    ("--data text --vocab_size 256 --text_path empty.txt", "empty.txt"),
    ("--data text --vocab_size 256 --text_path short.txt", "short.txt"),
    ("--data text --text_path short.txt", "--text_path short.txt holds 3 bytes"),
    ("--data text --text_path short.txt --vocab_size 50", "--vocab_size 256"),
    ("--text_path short.txt", "--text_path is only read with --data text"),
    ("--config broken.yaml", "--config broken.yaml is not valid YAML"),
    ("--config list.yaml", "--config list.yaml must map setting names to values"),
    ("--config unknown.yaml", "--config unknown.yaml holds the unknown setting 'learning_rate'; remove it"),
    ("--config typed.yaml", "--num_steps is 'many'; give a whole number"),
    ("--config bool.yaml", "--n_layers is 'True'; give a whole number"),
    ("--config null.yaml", "--lr has no value in --config null.yaml; give one"),
    ("--config .", "--config . cannot be read"),
    ("--config binary.yaml", "--config binary.yaml cannot be read"),
    ("--quiet=1", "--quiet"),
    ("--resume nowhere", "nowhere does not exist"),
    ("--resume .", "is no run folder"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[words.replace("/", "|") for words, _ in MISTAKES])
def test_a_mistake_is_named_and_nothing_is_written(refuse, tmp_path, words, message):
    if "cuda" in words and torch.cuda.is_available() and torch.cuda.device_count() > 99:
        pytest.skip("that many devices")
    files = {
        "empty.txt": "",
        "short.txt": "abc",
        "broken.yaml": "a: [1\nb: }",
        "list.yaml": "- 1\n- 2",
        "unknown.yaml": "learning_rate: 3",
        "typed.yaml": "num_steps: many",
        "bool.yaml": "n_layers: true",
        "null.yaml": "lr:",
    }
    for name, text in files.items():
        Path(name).write_text(text)
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    before = _contents(tmp_path)
    assert message in refuse(*SMALL, *words.split())
    assert _contents(tmp_path) == before
    assert not Path("runs").exists()


def test_all_faults_are_told_at_once(refuse):
    line = refuse("--lr", "-1", "--vocab_size", "1", "--n_heads", "7")
    assert all(flag in line for flag in ("--lr", "--vocab_size", "--n_heads"))


def test_a_mistake_spares_the_run_that_it_was_to_overwrite(refuse, copy):
    before = _contents(copy)
    for words in ("--n_sequences 4", "--track_top_k_eigenvalues 9999", "--data text --vocab_size 256 --text_path no"):
        refuse(*SMALL, "--run_name", "mine", "--overwrite", *words.split())
    assert _contents(copy) == before


def test_an_existing_run_is_kept_unless_overwritten(refuse, copy):
    before = _contents(copy)
    line = refuse(*SMALL, "--run_name", "mine")
    assert all(flag in line for flag in ("--overwrite", "--run_name", "--resume"))
    assert _contents(copy) == before
    from spectral.cli import train

    assert train([*SMALL, "--run_name", "mine", "--overwrite", "--seed", "5"]) == 0
    assert json.loads((copy / "config.json").read_text())["seed"] == 5


def test_overwrite_deletes_no_folder_that_is_no_run(refuse, tmp_path):
    (tmp_path / "runs" / "thesis").mkdir(parents=True)
    (tmp_path / "runs" / "thesis" / "chapter1.tex").write_text("years of work")
    refuse(*SMALL, "--run_name", "thesis", "--overwrite")
    assert (tmp_path / "runs" / "thesis" / "chapter1.tex").read_text() == "years of work"


def test_a_run_in_use_is_neither_resumed_nor_overwritten(refuse, copy):
    from spectral.storage import RunDirectory

    with RunDirectory.open(copy, for_writing=True):
        before = _contents(copy)
        assert "is in use by process" in refuse("--resume", str(copy))
        assert "is in use by process" in refuse(*SMALL, "--run_name", "mine", "--overwrite")
        assert _contents(copy) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--num_steps 8", "--num_steps 8 differs from the 4"),
        ("--seed 7", "--seed 7 differs from the 0"),
        ("--preset demo", "differs from"),
        ("--run_name other", "--run_name has no meaning together with --resume"),
        ("--overwrite", "--overwrite has no meaning together with --resume"),
        ("--dry_run", "--dry_run has no meaning together with --resume"),
    ],
)
def test_a_resumed_run_keeps_its_settings(refuse, copy, words, message):
    before = (copy / "results.h5").read_bytes()
    assert message in refuse("--resume", str(copy), *words.split())
    assert (copy / "results.h5").read_bytes() == before


def _cut(path):
    path.write_bytes(path.read_bytes()[:3000])


def _foreign(path):
    import h5py

    path.unlink()
    with h5py.File(path, "w") as file:
        file["x"] = 1


@pytest.mark.parametrize(
    "spoil", [_cut, _foreign, lambda path: path.write_bytes(b""), lambda path: path.write_text("x")]
)
def test_spoiled_results_are_refused_on_resume(refuse, copy, spoil):
    spoil(copy / "results.h5")
    assert "results.h5" in refuse("--resume", str(copy))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"n_layers": "two"}', '{"unheard_of": 1}'])
def test_a_spoiled_configuration_is_refused_on_resume(refuse, copy, text):
    (copy / "config.json").write_text(text)
    refuse("--resume", str(copy))


def test_a_run_of_another_device_says_where_it_can_go_on(refuse, copy):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    config = json.loads((copy / "config.json").read_text()) | {"device": "cuda"}
    (copy / "config.json").write_text(json.dumps(config))
    line = refuse("--resume", str(copy))
    assert "--device cuda" in line
    assert "--device cpu" in line


def test_a_diverging_run_stops_and_keeps_its_rows(capsys):
    from spectral import open_run
    from spectral.cli import train

    flags = ["--lr", "1e9", "--grad_clip", "0", "--log_interval", "1", "--num_steps", "20"]
    assert train([*SMALL, *flags, "--run_name", "wild"]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: step ")
    assert "not finite" in line
    assert "--lr" in line
    assert "\n" not in line
    with open_run("runs/wild") as run:
        assert run.status == "failed"
        assert run.steps[0] == 0
        assert (run.read("hessian/eigenvalues")[0] > 0).any()
    assert json.loads(Path("runs/wild/events.jsonl").read_text().splitlines()[-2])["kind"] == "error"


@pytest.mark.parametrize("limit", [100_000, 300_000])
def test_a_full_disk_ends_in_a_message_and_committed_rows_stay(tmp_path, limit):
    from spectral import open_run

    flags = ["--num_steps", "60", "--log_interval", "1", "--eigen_interval", "10", "--run_name", "full"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *SMALL, *flags],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert "free some space" in lines[-1]
    if (tmp_path / "runs" / "full" / "results.h5").exists():
        with open_run(tmp_path / "runs" / "full") as run:
            assert run.status in ("failed", "died")
            assert run.steps.tolist() == list(range(0, 10 * len(run.steps), 10))
            again = subprocess.run(
                [sys.executable, str(ROOT / "train.py"), "--resume", "runs/full", "--quiet"],
                capture_output=True,
                text=True,
            )
        assert again.returncode == 0, again.stderr
