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
from spectral.data.probe_sequences import (
    ProbeBatch,
    no_repeat_sequences,
    random_gaps,
    repeated_token_blocks,
    shuffled_segments,
)
from spectral.data.probes import (
    CIRCUIT_PROBES,
    attention_probe,
    behaviour_probe,
    chain_probe,
    circuit_probe,
    curvature_probe,
    period_probe,
    period_range,
    repeat_probe,
)
from spectral.data.repeated import repeated_blocks
from spectral.data.source import DataSource
from spectral.data.text import ByteCorpus, repeats_last_successor
from spectral.data.word_law import (
    chain_entropy_rate,
    longer_words,
    occupation_law,
    occupation_laws_by_start,
    word_rows,
)

__all__ = [
    "CIRCUIT_PROBES",
    "ByteCorpus",
    "DataSource",
    "MarkovBatch",
    "ProbeBatch",
    "TokenBatch",
    "attention_probe",
    "behaviour_probe",
    "chain_entropy_rate",
    "chain_probe",
    "circuit_probe",
    "context_codes",
    "curvature_probe",
    "dirichlet",
    "entropy_rate",
    "longer_words",
    "markov_chains",
    "no_repeat_sequences",
    "occupation_law",
    "occupation_laws_by_start",
    "period_probe",
    "period_range",
    "planted_patterns",
    "random_gaps",
    "repeat_probe",
    "repeated_blocks",
    "repeated_token_blocks",
    "repeats_last_successor",
    "shuffled_segments",
    "stationary_distribution",
    "word_rows",
]
