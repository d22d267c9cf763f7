"""How attention heads behave and what their weights are built for, as pure functions on tensors.

Attention patterns, chance = uniform attention (`MetricResult` over the head axes):

| name | range | chance | reads |
| --- | --- | --- | --- |
| `induction_score` | [0, 1] | mean n / (q + 1) | mass on keys that follow earlier occurrences of the token |
| `previous_token_score` | [0, 1] | mean 1 / (q + 1) | mass on the key before |
| `duplicate_token_score` | [0, 1] | mean n / (q + 1) | mass on earlier occurrences of the token |
| `first_token_score` | [0, 1] | mean 1 / (q + 1) | mass on position 0 |
| `current_token_score` | [0, 1] | mean 1 / (q + 1) | mass on the own position |
| `attention_entropy` | [0, 1] | 1 | spread of a row; 0 = one-hot |
| `content_match_fraction` | [0, 1] | 0 | share of an induction score that survives unseen gaps |

Weights, chance = independent Gaussian weights (`weight_score_null`; float64 tensors, NaN where undefined):

| name | range | chance | reads |
| --- | --- | --- | --- |
| `ov_copying_score` | [-1, 1] | 0 | +1 the head copies, -1 it suppresses |
| `qk_matching_score` | [-1, 1] | 0 | +1 a token attends to itself |
| `k_composition_matching` | [-1, 1] | 0 | +1 keys are matched through an earlier head |
| `ov_top1_copying` | [0, 1] | 1 / vocab | share of tokens whose own logit is raised most |
| `q_composition`, `k_composition`, `v_composition` | [0, 1] | 1 / sqrt(d_model) | how much of one head another reads |

`attention_scores` and `weight_scores` compute everything a snapshot stores at once. Causal patterns and row-vector
weights throughout; under LayerNorm use weights from `fold_layer_norm`.
"""

from spectral.circuits.attention import (
    attention_entropy,
    attention_scores,
    content_match_fraction,
    current_token_score,
    duplicate_token_score,
    first_token_score,
    induction_score,
    previous_token_score,
)
from spectral.circuits.nulls import NullMoments, weight_score_null
from spectral.circuits.weights import (
    eigenvalue_score,
    fold_layer_norm,
    k_composition,
    k_composition_matching,
    ov_copying_score,
    ov_eigenvalues,
    ov_top1_copying,
    q_composition,
    qk_eigenvalues,
    qk_matching_score,
    v_composition,
    weight_scores,
)
from spectral.result import MetricResult

__all__ = [
    "MetricResult",
    "NullMoments",
    "attention_entropy",
    "attention_scores",
    "content_match_fraction",
    "current_token_score",
    "duplicate_token_score",
    "eigenvalue_score",
    "first_token_score",
    "fold_layer_norm",
    "induction_score",
    "k_composition",
    "k_composition_matching",
    "ov_copying_score",
    "ov_eigenvalues",
    "ov_top1_copying",
    "previous_token_score",
    "q_composition",
    "qk_eigenvalues",
    "qk_matching_score",
    "v_composition",
    "weight_score_null",
    "weight_scores",
]
