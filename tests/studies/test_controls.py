"""The controls study: its kinds of runs, what it reads from a run, and what it counts."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

STEPS = np.arange(0, 2001, 40)


def rise(at, width=100.0, low=0.02, high=0.98):
    return low + (high - low) / (1 + np.exp(-4 * (STEPS - at) / width))


def outcome_of(model="matched", seed=0, *, midpoint=500.0, accuracy_at=500.0, label="induction", alarms=(), **verdict):
    """Return a run whose signals are made up: behaviour and circuits step at `midpoint`, or nothing does."""
    from spectral.detection import detect_run
    from spectral.detection.mechanism import Mechanism
    from spectral.studies.controls.outcomes import Outcome, half_crossing

    rng = np.random.default_rng(seed)

    def noisy(curve):
        return curve + 0.01 * rng.standard_normal(len(STEPS))

    flat = np.full(len(STEPS), 0.5)
    shift = verdict.get("spectrum_lead", 0.0)
    signals = {
        "induction_loss": noisy(flat if midpoint is None else -rise(midpoint)),
        "induction_score": noisy(flat if midpoint is None else rise(midpoint)),
        "gradient_alignment": noisy(flat if midpoint is None else rise(midpoint - shift)),
    }
    families = {"induction_loss": "behaviour", "induction_score": "circuits", "gradient_alignment": "spectrum"}
    accuracy = np.full(len(STEPS), 0.02) if accuracy_at is None else rise(accuracy_at)
    return Outcome(
        path=Path(f"runs/{model}_seed{seed}"),
        model=model,
        seed=seed,
        num_steps=2000,
        verdict=detect_run(STEPS, signals, families, log_axis=False),
        spectrum=detect_run(STEPS, signals, families, select_families=["spectrum"], log_axis=False),
        mechanism=Mechanism(label=label),
        alarms=tuple(alarms),
        half_crossing=half_crossing(STEPS, accuracy),
        steps=STEPS,
        accuracy=accuracy,
        induction_score=accuracy,
        largest_eigenvalue=np.linspace(-1, 3, len(STEPS)),
    )


@pytest.fixture(scope="module")
def outcomes():
    from spectral.studies.controls.outcomes import Alarm

    return {
        "matched": [
            outcome_of(seed=0, alarms=[Alarm(step=600.0, midpoint=510.0)], spectrum_lead=80.0),
            outcome_of(seed=1, midpoint=700.0, accuracy_at=800.0, spectrum_lead=120.0),
        ],
        "no_repeats": [
            outcome_of("no_repeats", 0, midpoint=900.0, accuracy_at=None, label="none"),
            outcome_of("no_repeats", 3, midpoint=None, accuracy_at=None, label="none"),
        ],
        "one_layer": [outcome_of("one_layer", 0, midpoint=300.0, accuracy_at=None, label="none")],
    }


def test_each_kind_differs_from_the_demo_by_what_it_says():
    from spectral.config import RunConfig, load_preset
    from spectral.studies.controls.plan import KINDS, ControlsPlan

    plan = ControlsPlan()
    demo = RunConfig.from_dict(load_preset("demo"))
    assert plan.job("matched", 0).config == demo
    for model, kind in KINDS.items():
        job = plan.job(model, 3)
        changed = {name: v for name, v in job.config.to_dict().items() if v != demo.to_dict()[name]}
        assert changed == kind.changes | {"seed": 3}
        assert {"lr", "optimizer", "control", "batch_size", "positions"} <= set(job.settings)
        json.dumps(job.settings)
    assert len(plan.jobs()) == 20
    assert [len(plan.job(model, 0).config.snapshot_steps()) for model in KINDS] == [51] * 5


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        (np.concatenate([np.zeros(10), np.ones(41)]), 380.0),  # between snapshots 9 and 10
        (np.clip((STEPS - 400) / 800, 0, 1), 800.0),
        (np.linspace(0, 0.19, 51), None),
        (np.full(51, np.nan), None),
    ],
)
def test_the_half_crossing_lies_where_the_curve_does(accuracy, expected):
    from spectral.studies.controls.outcomes import half_crossing

    found = half_crossing(STEPS, accuracy)
    assert found is None if expected is None else found == pytest.approx(expected, abs=1e-9)


def test_a_spike_at_the_end_does_not_move_the_final_level():
    from spectral.studies.controls.outcomes import half_crossing

    curve = rise(600.0, width=200.0)
    spoiled = curve.copy()
    spoiled[-1] = 0.0
    assert half_crossing(STEPS, spoiled) == pytest.approx(half_crossing(STEPS, curve), rel=1e-3)


def test_findings_count_what_the_runs_show(outcomes):
    from spectral.studies.controls.findings import judge

    found = {finding.text: finding for finding in judge(outcomes)}
    detected = found["Where induction heads can form, a transition is detected"]
    assert (detected.answer, detected.rate.hits, detected.rate.n) == ("yes", 2, 2)
    (within,) = [finding for text, finding in found.items() if text.startswith("Its midpoint")]
    assert (within.answer, within.runs) == ("no", ("matched_seed1",))  # 100 of 2,000 steps are 5 %
    silent = found["Where nothing can be learned, no transition is detected"]
    assert (silent.answer, silent.rate.hits, silent.rate.n, silent.runs) == ("no", 1, 2, ("no_repeats_seed0",))
    unlabelled = found["Where no induction head can form, nothing is labelled induction"]
    assert (unlabelled.answer, unlabelled.rate.n) == ("yes", 3)
    (positional,) = [finding for text, finding in found.items() if "labelled positional" in text]
    assert positional.answer == "not measured"


def test_summaries_give_errors_delays_and_leads(outcomes):
    from spectral.studies.controls.findings import describe, judge, summarise

    matched, one_layer, no_repeats = summarise(outcomes)
    assert (one_layer.model, no_repeats.model) == ("one_layer", "no_repeats")
    assert matched.errors == pytest.approx([0.0, -0.05], abs=0.006)
    assert matched.delays[0] == pytest.approx(0.05, abs=0.005)
    assert math.isnan(matched.delays[1])
    assert (matched.within.hits, matched.within.n) == (1, 2)
    leads = {(lead.first, lead.second): lead for lead in matched.leads}
    assert leads["spectrum", "behaviour"].median == pytest.approx(-100, abs=15)
    assert leads["spectrum", "behaviour"].p_value == 0.5  # two runs of one sign
    assert no_repeats.detected.interval == pytest.approx((0.0945, 0.9055), abs=0.001)
    text = describe(judge(outcomes), [matched, one_layer, no_repeats])
    assert (
        "no           1 of 2    Where nothing can be learned, no transition is detected; not in no_repeats_seed0"
        in text
    )
    assert "matched: 2 of 2 detected; formed: 2 induction; midpoint error" in text


def test_page_json_and_figure_hold_the_numbers(outcomes):
    from spectral.studies.controls.figures import every_run
    from spectral.studies.controls.findings import judge, summarise, to_json
    from spectral.studies.controls.page import render_page

    findings, summaries = judge(outcomes), summarise(outcomes)
    content = json.loads(json.dumps(to_json(findings, summaries, outcomes, 1.0), allow_nan=False))
    assert content["runs"][0]["run"] == "runs/matched_seed0"
    assert content["runs"][0]["error"] == pytest.approx(0.0, abs=0.006)
    assert content["kinds"][0]["delays"][1] is None
    page = render_page(findings, summaries, outcomes, b"picture", scale=1.0)
    assert "1 of 2 [0.095, 0.91]" in page
    assert "Not trained, so nothing is said about them: shuffled_targets, fixed_period" in page
    assert not re.search(r"https?://", page)
    figure = every_run(outcomes)
    accuracy = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(accuracy.get_ydata(), outcomes["matched"][0].accuracy)
    assert len(figure.axes) == 9


def test_alarms_told_twice_count_once(tmp_path):
    from spectral.studies.controls.outcomes import Alarm, read_alarms

    event = {"kind": "detector", "event": "transition_confirmed", "step": 880.0, "midpoint": 500.0}
    others = [{"kind": "resume"}, event | {"event": "confirmed"}, event | {"step": 920.0}]
    lines = [json.dumps(one) for one in [event, *others, event]]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    found = read_alarms(tmp_path)
    assert found == (Alarm(step=880.0, midpoint=500.0), Alarm(step=920.0, midpoint=500.0))


def test_the_command_trains_judges_and_writes(tmp_path, capsys):
    from spectral.cli import main

    where = ["--output", str(tmp_path / "study"), "--scale", "0.001", "--jobs", "1"]
    assert main(["study", "controls", "--models", "no_repeats", "--seeds", "1", *where, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^yes +1 of 1 +Where nothing can be learned, no transition is detected$", out, flags=re.MULTILINE)
    assert "not measured" in out
    assert {path.name for path in (tmp_path / "study").iterdir()} == {"index.html", "findings.json", "figures", "runs"}
    content = json.loads((tmp_path / "study/findings.json").read_text())
    assert [(run["kind"], run["reason"]) for run in content["runs"]] == [
        ("no_repeats", "too_few_snapshots"),
    ]
    before = (tmp_path / "study/index.html").read_bytes()
    assert main(["study", "controls", *where, "--page_only", "--quiet"]) == 0
    assert (tmp_path / "study/index.html").read_bytes() == before
    assert "Steps are multiplied by 0.001" in before.decode()
