"""What a model sees: generators of training data, and held-out probes."""

from spectral.data.batch import TokenBatch
from spectral.data.ngram import (
    MarkovBatch,
    context_codes,
    dirichlet,
    entropy_rate,
    markov_chains,
    stationary_distribution,
)
from spectral.data.patterns import planted_patterns
from spectral.data.probes import (
    attention_probe,
    behaviour_probe,
    curvature_probe,
    period_probe,
    period_range,
    repeat_probe,
)
from spectral.data.repeated import repeated_blocks
from spectral.data.source import DataSource
from spectral.data.text import ByteCorpus, repeats_last_successor

__all__ = [
    "ByteCorpus",
    "DataSource",
    "MarkovBatch",
    "TokenBatch",
    "attention_probe",
    "behaviour_probe",
    "context_codes",
    "curvature_probe",
    "dirichlet",
    "entropy_rate",
    "markov_chains",
    "period_probe",
    "period_range",
    "planted_patterns",
    "repeat_probe",
    "repeated_blocks",
    "repeats_last_successor",
    "stationary_distribution",
]
