"""The code shown to users runs, and what the pages name exists."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def code_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def a_users_world(tmp_path):
    """What the examples take for granted: a model, a loss, batches, and a training step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    batch = (torch.randn(16, 4), torch.randint(0, 3, (16,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def train_one_step():
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()

    return {
        "torch": torch,
        "model": model,
        "loss_fn": loss_fn,
        "batch": batch,
        "probe_batch": batch,
        "num_steps": 3,
        "train_one_step": train_one_step,
    }


@pytest.mark.parametrize("page", ["README.md", "docs/own_model.md"])
def test_every_python_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    world = a_users_world(tmp_path)
    blocks = code_blocks(page)
    assert blocks
    for block in blocks:
        exec(compile("import spectral\n" + block, page, "exec"), world)
    assert (tmp_path / "runs/mine/results.h5").exists()


def test_the_reading_example_runs_on_a_real_run(tmp_path, monkeypatch):
    import spectral.cli

    monkeypatch.chdir(tmp_path)
    flags = ["--preset", "tiny", "--num_steps", "20", "--run_name", "demo", "--quiet"]
    assert spectral.cli.train(flags) == 0
    (block,) = code_blocks("docs/results_file.md")
    exec(compile(block, "docs/results_file.md", "exec"), {})


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith(("http://", "https://")):
            assert ((ROOT / page).parent / target).exists(), target


def test_every_dataset_of_a_run_is_in_the_table_and_the_other_way_round():
    from spectral.storage import RunLayout, dataset_table

    layout = RunLayout(
        n_layers=2, n_heads=2, d_head=2, n_top=2, n_negative=2, seq_length=8, vocab_size=5, probe_periods=(3,),
        block_names=("W_E",), attention_positions=4, n_preconditioned=1, n_ggn=1, density_probes=1, density_steps=2,
        trace_products=2, spectrum_block_names=("L0",), n_block=1, n_copies=3, aligned_before=1, aligned_after=2,
        probe_kinds=("repeat", "random_gap", "shuffled_segments", "repeated_tokens", "no_repeat"),
        references=("uniform",), learned_positions=8, ln_treatment="folded", ablation_modes=("zero",),
        components=("embedding",),
    )  # fmt: skip
    text = (ROOT / "docs/results_file.md").read_text(encoding="utf-8")
    for group in ("train", "behaviour", "circuits", "causal"):  # /hessian sums up the residuals and bounds of both ends
        (row,) = re.findall(rf"^\| `/{group}` \|.*$", text, flags=re.MULTILINE)
        words = re.findall(r"`([\w<>]+)(?:\[[^`]*\])?`", row)
        named = {word.replace("<M>", metric) for word in words for metric in ("induction_loss", "induction_accuracy")}
        stored = {spec.name for spec in dataset_table(layout) if spec.group == group} - {"step", "train_step"}
        stored = {name for name in stored if not name.endswith("_corrected")}
        assert stored <= named, f"/{group}: {sorted(stored - named)}"
        assert named <= stored | {"repeat", "step"}, f"/{group}: {sorted(named - stored)}"


def test_every_flag_named_in_the_readme_exists():
    from spectral.cli import (
        COMMAND_FLAGS,
        DENSIFY_FLAGS,
        DETECT_FLAGS,
        PROBE_STEP_FLAGS,
        STUDY_FLAGS,
        VISUALIZE_FLAGS,
    )
    from spectral.config import FIELD_NAMES

    flags = (COMMAND_FLAGS, DENSIFY_FLAGS, DETECT_FLAGS, PROBE_STEP_FLAGS, STUDY_FLAGS, VISUALIZE_FLAGS)
    known = {*FIELD_NAMES, *(name for command in flags for name in command), "help"}
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for flag in re.findall(r"(?<![\w-])--([a-z][\w-]+)", text):
            assert flag.replace("-", "_") in known, f"{page}: --{flag}"


def test_every_preset_named_in_the_readme_exists_and_the_other_way_round():
    from spectral.config import preset_names

    listed = re.search(r"Presets: (.*?)\. Any setting", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed[1])) == set(preset_names())
