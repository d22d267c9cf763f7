"""Induction or a fixed look back: the label that goes with a dated transition."""

import numpy as np
import pytest

from spectral.detection.mechanism import judge_mechanism

NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "fractions", "label", "head"),
    [
        ([[0.0, 0.1], [0.9, 0.2]], [[NAN, NAN], [0.95, 0.0]], "induction", (1, 0)),
        ([[0.95, 0.9], [0.9, 0.92]], [[0.01, 0.0], [0.0, 0.02]], "positional", (1, 1)),
        ([[0.95, 0.9], [0.9, 0.92]], [[0.01, 0.4], [0.0, 0.02]], "mixed", (0, 1)),
        ([[0.95, 0.0], [0.31, 0.1]], [[0.01, 1.0], [0.9, 1.0]], "induction", (1, 0)),
        ([[0.05, 0.0], [0.28, 0.1]], [[NAN, NAN], [1.0, NAN]], "none", (1, 0)),
        ([[0.5, 0.0], [NAN, 0.1]], [[NAN, NAN], [NAN, NAN]], "unknown", (0, 0)),
    ],
)
def test_the_label_follows_the_formed_heads(scores, fractions, label, head):
    found = judge_mechanism(np.array(scores), np.array(fractions), step=7)
    assert (found.label, found.step, (found.layer, found.head)) == (label, 7, head)
    assert found.induction_score == np.array(scores)[head]


def test_scores_that_were_not_measured_say_unknown():
    found = judge_mechanism(np.full((2, 2), NAN), np.full((2, 2), NAN), step=0)
    assert found.label == "unknown"
    assert found.to_dict()["layer"] is None
