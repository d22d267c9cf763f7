"""A synthetic run: two layers of four heads, a sigmoid transition at step 500 of 1000, every value known."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest

matplotlib.use("Agg")

STEPS = range(0, 1001, 20)
MIDPOINT, WIDTH = 500.0, 100.0
N_PARAMETERS = 5_000
PROBES = ("repeat", "random_gap", "repeated_tokens", "no_repeat")
PROBE_CEILINGS = (1.0, 1.0, 0.9, float("nan"))
COMPONENTS = ("embedding", *(f"L{layer}H{head}" for layer in range(2) for head in range(4)), "ln_final.bias")
CAUSAL_STEPS = (0, 500, 1000)
INDUCTION_HEAD, PREVIOUS_HEAD = (1, 2), (0, 1)
TOKENS = [3, 9, 1, 7] * 4
BLOCKS = ("W_E", "W_pos", "L0.W_Q", "L0.W_K", "L0.W_V", "L0.W_O", "L1.W_Q", "L1.W_K", "L1.W_V", "L1.W_O", "W_U")


def synthetic_snapshot(layout, step, rng):
    """Return what one snapshot of the synthetic run stores."""
    import numpy as np

    s = 1 / (1 + np.exp(-np.log(9) * 2 * (step - MIDPOINT) / WIDTH))  # 10 % at onset, 90 % at end
    early = np.exp(-step / 60)
    n_layers, n_heads, d_head, k = layout.n_layers, layout.n_heads, layout.d_head, layout.n_top

    def near(value, shape=(), sd=0.01):
        return value + sd * rng.standard_normal(shape)

    heads = (n_layers, n_heads)
    induction, previous = near(0.04, heads), near(0.08, heads)
    induction[INDUCTION_HEAD] += 0.9 * s
    induction[1, 0] += 0.3 * s
    previous[PREVIOUS_HEAD] += 0.88 / (1 + np.exp(-(step - 430) / 25))
    copying, matching = near(0.0, heads, 0.06), near(0.0, heads, 0.06)
    copying[INDUCTION_HEAD] += 0.85 * s
    pair = (*heads, *heads)
    composition, k_matching = near(0.18, pair, 0.008), near(0.0, pair, 0.08)
    composition[(*PREVIOUS_HEAD, *INDUCTION_HEAD)] += 0.2 * s
    k_matching[(*PREVIOUS_HEAD, *INDUCTION_HEAD)] += 0.8 * s
    composition[1], k_matching[1] = np.nan, np.nan
    composition[:, :, 0], k_matching[:, :, 0] = np.nan, np.nan
    eigen = near(0.0, (*heads, d_head, 2), 0.4)
    eigen[(*INDUCTION_HEAD, slice(None), 0)] += 4 * s
    top = (6 + 30 * s * (1 - s) + 4 * s) * 0.72 ** np.arange(k) + 12 * early
    share = np.minimum(0.5, 0.35 * s * (1 - s) * 4 + 0.02) * 0.6 ** np.arange(k)
    mass = rng.dirichlet(np.r_[6 * (1 - s) + 0.5, np.full(9, 0.5 + s), 4], (k,))
    positions = np.arange(layout.seq_length - 1)
    late = 1 / (1 + np.exp(-(positions - 12) / 3))
    length = layout.attention_positions
    uniform = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]
    pattern = np.tile(uniform, (*heads, 1, 1))
    shifted = np.eye(length, k=-1) + np.eye(length) * (np.arange(length) == 0)[:, None]
    tokens = np.array(TOKENS[:length])
    match = np.tril(tokens[:, None] == np.roll(tokens, 1)[None], 0) * (np.arange(length) > 0)[None]
    match = np.where(match.sum(1, keepdims=True) > 0, match / np.maximum(match.sum(1, keepdims=True), 1), uniform)
    pattern[INDUCTION_HEAD] = s * match + (1 - s) * uniform
    pattern[PREVIOUS_HEAD] = s * shifted + (1 - s) * uniform
    ln_v = np.log(layout.vocab_size)
    content = np.full(heads, np.nan)
    if s > 0.3:
        content[INDUCTION_HEAD], content[1, 0] = 0.95 * s, 0.1
    z = (composition - 0.18) / 0.008
    return {
        "step": step,
        "behaviour/loss": near(ln_v * (1 - 0.55 * s) + 0.4 * early),
        "behaviour/induction_loss": near(ln_v * (1 - 0.93 * s) + 0.4 * early),
        "behaviour/induction_accuracy": np.clip(near(0.06 + 0.9 * s), 0, 1),
        "behaviour/random_accuracy": np.clip(near(1 / layout.vocab_size, sd=0.003), 0, 1),
        "behaviour/in_context_probability": np.clip(near(0.3 + 0.2 * (1 - early) + 0.45 * s), 0, 1),
        "behaviour/loss_by_position": near(ln_v * (1 - 0.9 * s * late) + 0.4 * early, (len(positions),)),
        "behaviour/induction_accuracy_period": np.clip(
            near(0.05 + s * np.array([0.5, 0.9, 0.94, 0.9, 0.6]), (5,)), 0, 1
        ),
        "behaviour/induction_accuracy_probe": np.array([0.06 + 0.9 * s, 0.05 + 0.7 * s, 0.05 + 0.6 * s, np.nan]),
        "hessian/eigenvalues": top,
        "hessian/negative_eigenvalues": -np.array([1.5, 0.9, 0.4])[: layout.n_negative] * (0.3 + 4 * s * (1 - s)),
        "hessian/error_bounds": 0.02 * top * np.linspace(0.1, 1.5, k),
        "hessian/negative_error_bounds": np.full(layout.n_negative, 0.02),
        "hessian/residuals": 0.02 * top,
        "hessian/converged": np.where((np.arange(k) == k - 1) & (step % 100 == 0), 0, 1),
        "hessian/negative_converged": np.ones(layout.n_negative),
        "hessian/gradient_alignment": share,
        "hessian/gradient_alignment_total": share.cumsum(),
        "hessian/eigenvector_overlap": np.full(k, np.nan) if step == 0 else np.clip(near(0.9 - s * (1 - s), k), 0, 1),
        "hessian/block_mass": mass,
        "hessian/trace": near(80 + 60 * s, sd=3),
        "hessian/trace_standard_error": 4.0,
        "hessian/noise_floor": 2e-5,
        "circuits/induction_score": np.clip(induction, 0, 1),
        "circuits/previous_token_score": np.clip(previous, 0, 1),
        "circuits/duplicate_token_score": np.clip(near(0.05, heads), 0, 1),
        "circuits/ov_copying_score": copying,
        "circuits/qk_matching_score": matching,
        "circuits/ov_eigenvalues": eigen,
        "circuits/k_composition": composition,
        "circuits/k_composition_matching": k_matching,
        "circuits/attention_pattern": pattern,
        "circuits/content_match_fraction": content,
        "circuits/k_composition_z": z,
        "circuits/q_composition_z": -z,
    }


def synthetic_causes(layout, step):
    """Return one causal row of the synthetic run: the two heads of the circuit are needed, the others are not."""
    import numpy as np

    s = 1 / (1 + np.exp(-np.log(9) * 2 * (step - MIDPOINT) / WIDTH))
    removed = np.full((3, layout.n_layers, layout.n_heads), 0.01 * s)
    removed[(slice(None), *INDUCTION_HEAD)] = 2.0 * s
    removed[(slice(0, 2), *PREVIOUS_HEAD)] = 1.5 * s  # acts through keys: nothing where patterns are kept
    return {
        "step": step,
        "causal/remove_one_induction_loss": removed,
        "causal/keep_only_induction_loss": 2.0 * s - removed,
        "causal/remove_layer_induction_loss": removed.max(-1),
        "causal/logit_attribution": np.linspace(-0.2, 3.0 * s, len(layout.components)),
    }


def synthetic_verdict(*, detected=True):
    """Return the content of transitions.json for the synthetic run."""
    times = {"onset": 450.0, "midpoint": 500.0, "end": 550.0, "interval": [490.0, 510.0], "abruptness": 14.2}
    consensus = {
        "detected": True, "verdict": "abrupt", "reason": None, **times, "p_value": 0.0012,
        "agreeing_signals": {"circuits": ["induction_score"], "behaviour": ["induction_accuracy", "induction_loss"]},
        "false_alarm_level": 0.01, "n_snapshots": 51,
    }  # fmt: skip
    lag = {
        "first": "previous_token_score", "second": "induction_accuracy", "first_family": "circuits",
        "second_family": "behaviour", "difference": -70.0, "interval": [-90.0, -50.0], "resolved": True,
    }  # fmt: skip
    if not detected:
        consensus |= dict.fromkeys(times) | {"detected": False, "verdict": "gradual", "reason": "too_wide"}
        consensus |= {"p_value": 0.2, "agreeing_signals": {}}
    return {
        "schema_version": "1.0",
        "consensus": consensus,
        "signals": {},
        "lead_lag": [lag] if detected else [],
        "false_alarm_level": 0.01,
    }


def make_run(folder, *, steps=STEPS, change=None, status="finished", verdict=None, train=True, config=None, **sizes):
    """Write a synthetic run folder.

    Args:
        folder: of the run.
        steps: of the snapshots; empty for a run without any.
        change: callable that edits the values of a snapshot in place.
        status: `finished`, `failed`, or `running` for a run that nobody finished.
        verdict: content of transitions.json; None writes none.
        train: whether there are training rows.
        config: settings that differ.
        sizes: fields of the layout that differ.
    """
    import numpy as np

    from spectral.config import RunConfig
    from spectral.storage import ResultsWriter, RunDirectory, RunLayout

    settings = RunConfig(
        seq_length=32,
        min_period=6,
        max_period=12,
        max_prefix=0,
        n_heads=4,
        d_model=32,
        num_steps=1000,
        eigen_interval=20,
    ).to_dict() | (config or {})
    fields = {
        "n_layers": 2, "n_heads": 4, "d_head": 8, "n_top": 10, "n_negative": 3, "seq_length": 32, "vocab_size": 50,
        "probe_periods": (3, 6, 9, 12, 15), "block_names": BLOCKS, "attention_positions": 16, "probe_kinds": PROBES,
        "ln_treatment": "folded", "ablation_modes": ("zero", "mean", "pattern_preserving"), "components": COMPONENTS,
    }  # fmt: skip
    layout = RunLayout(**(fields | sizes))
    rng = np.random.default_rng(0)
    attributes = {
        "hessian/gradient_alignment": {"chance": 1 / N_PARAMETERS},
        "behaviour/in_context_probability": {"chance": 0.25},
        "circuits/induction_score": {"chance": 0.11},
        "circuits/ov_copying_score": {"null_sd": 0.1},
        "circuits/k_composition": {"chance": 0.177},
        "circuits/k_composition_z": {"max_null_q95": 3.4},
        "behaviour/induction_accuracy_probe": {"chance": [1 / 50] * 4, "ceiling": list(PROBE_CEILINGS)},
    }
    attributes = {name: found for name, found in attributes.items() if "probe" not in name or layout.probe_kinds}
    with (
        RunDirectory.create(folder, settings) as directory,
        ResultsWriter.create(
            directory.results_path, layout, dataset_attributes=attributes, probes={"attention_tokens": np.array(TOKENS)}
        ) as writer,
    ):
        for step in range(0, 1001 if train else 0, 10):
            s = 1 / (1 + np.exp(-(step - 500) / 23))
            writer.append_train({"step": step, "loss": 3.9 - 2.1 * s + 0.05 * rng.standard_normal()})
        known = {spec for spec in writer._specs}
        for step in steps:
            values = synthetic_snapshot(layout, step, rng)
            if change is not None:
                change(values)
            writer.append_snapshot({name: value for name, value in values.items() if name in known or name == "step"})
            if step in CAUSAL_STEPS and layout.ablation_modes:
                writer.append_causal(synthetic_causes(layout, step))
        writer.set_status(status)
        if verdict is not None:
            directory.write_json("transitions.json", verdict)
    return folder


def spoil(row):
    """Make four values in ten of a row NaN, or infinite at every other snapshot."""
    import numpy as np

    rng = np.random.default_rng(row["step"])
    for name, value in row.items():
        if name != "step" and not name.endswith("converged"):
            array = np.array(value, dtype=float)
            array[rng.random(array.shape) < 0.4] = np.nan if row["step"] % 80 else np.inf
            row[name] = array


@pytest.fixture(scope="session")
def make_synthetic():
    """The writer of synthetic runs, for runs that several tests share."""
    return make_run


@pytest.fixture
def synthetic():
    """The numbers and the writer of the synthetic run."""
    return SimpleNamespace(
        make=make_run,
        spoil=spoil,
        verdict=synthetic_verdict,
        n_parameters=N_PARAMETERS,
        induction_head=INDUCTION_HEAD,
        previous_head=PREVIOUS_HEAD,
        tokens=TOKENS,
        probes=PROBES,
        components=COMPONENTS,
    )


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A finished run with a detected transition; tests only read it."""
    return make_run(tmp_path_factory.mktemp("runs") / "synthetic", verdict=synthetic_verdict())


@pytest.fixture
def run(run_folder):
    from spectral.storage import open_run

    return open_run(run_folder)


ARTIFACTS = Path(__file__).parents[2] / "artifacts"
"""Where screenshots are kept for people to look at; ignored by git."""


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium: the system's, driven by playwright."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -r requirements-dev.txt")
    with playwright.sync_playwright() as driver:
        # Chromium's own sandbox does not work for root, who runs the tests in containers.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = driver.chromium.launch(executable_path=chromium, args=options)
        yield started
        started.close()


@pytest.fixture
def open_page(browser):
    """Open an address and wait until the page is drawn; it must ask nobody but this machine and log no error."""
    pages, errors, requests = [], [], []

    def go(address, *, wait="all", **options):
        page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
        page.set_default_timeout(120_000)
        page.on(
            "console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: (errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        if wait is not None:
            page.wait_for_selector("body[data-drawn]" if wait == "sight" else f"body[data-drawn={wait}]")
        pages.append(page)
        return page

    yield go
    for page in pages:
        page.close()
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))] == []


@pytest.fixture
def keep_screenshot():
    """Keep a screenshot of a page under a name, to be looked at."""

    def keep(page, name, **options):
        ARTIFACTS.mkdir(exist_ok=True)
        page.screenshot(path=ARTIFACTS / f"{name}.png", **options)

    return keep
