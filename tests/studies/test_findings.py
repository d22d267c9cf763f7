"""What each claim says of models known by construction, and how verdicts are made."""

import dataclasses
import json
import math

import numpy as np
import pytest
from constructed_models import (
    INDUCTION,
    KNOWING,
    ONE_LAYER_INDUCTION,
    POSITIONAL,
    SPREAD,
    Constructed,
    at_distances,
    measured,
)


def verdicts(evidence):
    from spectral.studies.repeated.findings import judge

    return {finding.claim.name: finding.verdict for finding in judge({one.final.model: [one] for one in evidence})}


def test_without_runs_nothing_is_said():
    assert set(verdicts([]).values()) == {"not measured"}


def test_a_positional_model_is_called_positional_and_one_that_knows_the_period_is_not(evidence_of):
    assert verdicts([evidence_of(POSITIONAL, "1L_fixed")])["one_layer_positional"] == "yes"
    assert verdicts([evidence_of(KNOWING, "1L_fixed")])["one_layer_positional"] == "no"
    # A model that has not learned its own period says nothing.
    assert verdicts([evidence_of(SPREAD, "2L_fixed")])["two_layer_positional"] == "undecided"


def test_a_model_that_is_right_elsewhere_is_only_partly_positional(evidence_of):
    one = evidence_of(POSITIONAL, "1L_fixed")
    accuracy = np.where(one.final.periods == 25, 0.5, one.final.accuracy)
    one = dataclasses.replace(one, final=dataclasses.replace(one.final, accuracy=accuracy))
    assert verdicts([one])["one_layer_positional"] == "partly"


def test_one_layer_that_spreads_is_not_taken_for_induction(evidence_of):
    found = verdicts([evidence_of(SPREAD, "1L_varied")])
    assert found["one_layer_spreads"] == "yes"
    assert found["one_layer_no_induction"] == "yes"
    assert found["one_layer_above_chance"] == "yes"


def test_one_layer_that_matches_content_refutes_the_claims(evidence_of):
    found = verdicts([evidence_of(ONE_LAYER_INDUCTION, "1L_varied")])
    assert found["one_layer_spreads"] == "no"
    assert found["one_layer_no_induction"] == "no"
    assert found["one_layer_above_chance"] == "no"


def test_a_head_at_one_distance_does_not_spread(evidence_of):
    found = verdicts([evidence_of(POSITIONAL, "1L_varied")])
    assert found["one_layer_spreads"] == "partly"  # inside the range, but at one distance of it


def test_an_induction_circuit_holds_what_is_claimed_of_two_layers(evidence_of):
    found = verdicts([evidence_of(INDUCTION, "2L_varied_20000")])
    assert found["induction_in_layer_1"] == "yes"
    assert found["previous_token_in_layer_0"] == "yes"
    assert found["generalises"] == "yes"
    assert found["confused_by_repeated_tokens"] == "yes"


def test_two_layers_without_the_circuit_refute_it(evidence_of):
    flat = Constructed(at_distances(24), [[at_distances(0)] * 2, [None, at_distances(0)]])
    found = verdicts([evidence_of(flat, "2L_varied_20000")])
    assert found["induction_in_layer_1"] == "partly"  # layer 0 has no induction head either
    assert found["previous_token_in_layer_0"] == "no"
    assert found["generalises"] == "undecided"
    assert found["confused_by_repeated_tokens"] == "undecided"


def long_run(evidence_of, final, *, then=INDUCTION, scores=None):
    earlier = [dataclasses.replace(measured(then, "2L_varied_60000"), step=20_000)]
    return evidence_of(final, "2L_varied_60000", step=60_000, earlier=earlier, previous_token=scores)


def test_a_long_run_that_loses_other_lengths_and_its_previous_token_head(evidence_of):
    dissolving = np.stack([np.interp(np.arange(41), [0, 10, 40], [0, 0.8, 0.1]), np.full(41, 0.35)], 1)
    one = long_run(evidence_of, KNOWING, scores=dissolving)
    lost = np.where(one.final.periods > 29, 0.2, np.where(one.final.periods < 20, 0.7, 1.0))
    one = dataclasses.replace(one, final=dataclasses.replace(one.final, accuracy=lost))
    found = verdicts([one])
    assert found["outside_accuracy_falls"] == "yes"
    assert found["falls_more_for_longer"] == "yes"
    assert found["no_longer_confused"] == "yes"
    assert found["previous_token_head_dissolves"] == "yes"


def test_a_long_run_that_keeps_everything(evidence_of):
    steady = np.stack([np.linspace(0, 0.8, 41), np.full(41, 0.05)], 1)
    found = verdicts([long_run(evidence_of, INDUCTION, scores=steady)])
    assert found["outside_accuracy_falls"] == "no"
    assert found["falls_more_for_longer"] == "undecided"
    assert found["no_longer_confused"] == "no"
    assert found["previous_token_head_dissolves"] == "no"
    never = verdicts([long_run(evidence_of, KNOWING, then=KNOWING, scores=np.full((41, 2), 0.1))])
    assert never["previous_token_head_dissolves"] == "undecided"
    assert never["no_longer_confused"] == "undecided"


def test_a_long_run_without_the_checkpoint_in_between_decides_nothing(evidence_of):
    one = evidence_of(INDUCTION, "2L_varied_60000", step=60_000)
    found = verdicts([one])
    assert found["outside_accuracy_falls"] == found["no_longer_confused"] == "undecided"


def claim_of(*ranges):
    from spectral.studies.repeated.claims import Claim, Condition

    conditions = [
        Condition(text=f"value {i}", measure=lambda one, i=i: one[i], at_least=low, at_most=high, premise=premise)
        for i, (low, high, premise) in enumerate(ranges)
    ]
    return Claim(name="made_up", text="Something", model="1L_fixed", conditions=tuple(conditions))


def verdict(claim, *values):
    from spectral.studies.repeated.findings import Finding, Judgement

    judgements = [
        Judgement(seed=seed, step=1, values=tuple(zip(claim.conditions, map(float, numbers), strict=True)))
        for seed, numbers in enumerate(values)
    ]
    return Finding(claim=claim, judgements=tuple(judgements)).verdict


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([(1, 1, 0)], "yes"),
        ([(1, 1, 0), (1, 1, 0)], "yes"),
        ([(1, 1, 0), (1, 0, 0)], "partly"),  # one condition fails in one seed
        ([(1, 0, 0)], "partly"),
        ([(1, 0, 9), (1, 0, 9)], "no"),
        ([(1, 1, 0), (1, 0, 9)], "partly"),
        ([(0, 1, 0)], "undecided"),
        ([(0, 0, 9), (0, 0, 9)], "undecided"),
        ([(0, 1, 0), (1, 1, 0)], "partly"),  # the premise fails in one seed
        ([(0, 1, 0), (1, 0, 9)], "no"),
        ([(math.nan, 1, 0)], "undecided"),
        ([(1, math.nan, math.nan)], "no"),
        ([], "not measured"),
    ],
)
def test_verdicts(values, wanted):
    claim = claim_of((0.5, None, True), (0.5, None, False), (None, 0.5, False))
    assert verdict(claim, *values) == wanted


def test_what_is_only_reported_decides_nothing():
    claim = claim_of((0.5, None, False), (None, None, False))
    assert verdict(claim, (1, 5.0)) == "yes"
    assert verdict(claim, (1, math.nan)) == "yes"
    assert verdict(claim, (0, 5.0)) == "no"


def test_thresholds_in_words():
    from spectral.studies.repeated.findings import threshold

    claim = claim_of((0.95, None, True), (0.02, 0.3, False), (None, None, False))
    assert [threshold(condition) for condition in claim.conditions] == [
        "presupposed: at least 0.95",
        "at least 0.02 and at most 0.3",
        "not judged",
    ]


def test_in_step_means_that_a_multiple_of_the_trained_period_fits():
    from spectral.studies.repeated.claims import in_step

    assert [period for period in range(10, 40) if in_step(period, 20, 80)] == [10, 12, 15, 20, 30]


def test_every_claim_is_about_a_model_and_judged_by_something():
    from spectral.studies.repeated.claims import CLAIMS
    from spectral.studies.repeated.plan import MODELS

    assert {claim.model for claim in CLAIMS} == set(MODELS)
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert any(condition.judged for condition in claim.conditions), claim.name


def test_the_json_file_holds_what_was_found(evidence_of):
    from spectral.studies.repeated.findings import judge, to_json

    evidence = {"1L_fixed": [evidence_of(POSITIONAL, "1L_fixed"), evidence_of(POSITIONAL, "1L_fixed", seed=1)]}
    content = json.loads(json.dumps(to_json(judge(evidence), evidence, scale=0.5, n_sequences=16), allow_nan=False))
    first = content["findings"][0]
    assert (first["claim"], first["verdict"], first["n_seeds"]) == ("one_layer_positional", "yes", 2)
    assert [run["seed"] for run in first["runs"]] == [0, 1]
    assert first["runs"][0]["conditions"][0]["value"] == 1.0
    assert content["runs"][1]["final"]["periods"] == list(range(10, 40))
    assert content["runs"][0]["final"]["content_match"][0][1] is None
    assert content["scale"] == 0.5
