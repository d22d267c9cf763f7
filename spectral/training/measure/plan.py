"""On which sequences a run is measured, fixed before its first snapshot."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from spectral.behaviour import ngram_references
from spectral.config import RunConfig
from spectral.data import DataSource, ProbeBatch, TokenBatch, chain_probe

PATTERN_BYTES = 64 * 2**20  # attention patterns of one probe, held while its scores are taken
PROBE_SEQUENCES = 16  # of every probe but `repeat`; it holds the price of all of them near that of `repeat` alone
LEAST_SEQUENCES = 4  # however large their patterns are
REFERENCE_BYTES = 32 * 2**20  # predictions of the reference observers, held for the whole run
MOST_COPIES = 8  # later copies are seen by the sequences with the shortest blocks alone
ALIGNED_BEFORE, ALIGNED_AFTER = 16, 32


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbePlan:
    """The sequences behind every number of `/behaviour`, `/circuits` and `/causal`.

    Attributes:
        behaviour: the behaviour probe.
        icl_positions: logit indices (t1, t2) of the in-context learning score.
        probes: kind of circuit probe -> the sequences that are scored; `repeat` and `no_repeat` are always there.
        control: more sequences of `no_repeat`, the scored ones first: over them the mean of a removed head is taken.
        periods: block length -> sequences on which its accuracy is measured.
        attention: the one sequence whose attention patterns are stored, or None.
        n_copies: copies of the blocks of `repeat` that are told apart, the first included; 0 where nothing is repeated.
        aligned: (before, after), predictions on both sides of the start of the repeat.
        references: observer -> its log predictions for the first sequences of the behaviour probe; empty unless the
            data are Markov chains.
    """

    behaviour: TokenBatch
    icl_positions: tuple[int, int]
    probes: Mapping[str, ProbeBatch]
    control: ProbeBatch
    periods: Mapping[int, ProbeBatch]
    attention: ProbeBatch | None
    n_copies: int
    aligned: tuple[int, int]
    references: Mapping[str, Float64[Tensor, "batch position vocab"]]

    @classmethod
    def of(cls, config: RunConfig, source: DataSource) -> "ProbePlan":
        """Choose the sequences of a run, as few as keep patterns and predictions inside their limits."""
        most = max(LEAST_SEQUENCES, PATTERN_BYTES // (4 * config.n_layers * config.n_heads * config.seq_length**2))
        few = min(most, PROBE_SEQUENCES)
        drawn = source.circuit_probes
        repeat = drawn["repeat"].first(most)
        assert repeat.offset is not None  # blocks of one length each
        copies = repeat.copy_index[repeat.predictable]
        n_copies = min(MOST_COPIES, int(copies.max()) + 1) if copies.numel() else 0
        earliest, n_predictions = int(repeat.offset.min()), repeat.predictable.shape[1]
        return cls(
            behaviour=source.behaviour_probe,
            icl_positions=source.icl_positions,
            probes={kind: repeat if kind == "repeat" else probe.first(few) for kind, probe in drawn.items()},
            control=drawn["no_repeat"].first(most),
            periods={period: probe.first(few) for period, probe in source.period_probes.items()},
            attention=source.attention_probe,
            n_copies=n_copies if n_copies > 1 else 0,
            aligned=(min(ALIGNED_BEFORE, earliest), max(0, min(ALIGNED_AFTER, n_predictions - earliest))),
            references=_references(config, source.device),
        )

    def layout(self, config: RunConfig) -> dict[str, Any]:
        """Return the fields of `RunLayout` that say what is measured on the probes."""
        return {
            "probe_periods": tuple(self.periods),
            "attention_positions": 0 if self.attention is None else self.attention.tokens.shape[1],
            "probe_kinds": tuple(self.probes),
            "n_copies": self.n_copies,
            "aligned_before": self.aligned[0],
            "aligned_after": self.aligned[1],
            "references": tuple(self.references),
            "learned_positions": config.seq_length if config.positions == "learned" else 0,
            "ln_treatment": "folded" if config.layer_norm else "none",
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what goes to `/probes`: tokens of every probe and the masks that say something about them."""
        found: dict[str, Tensor] = {}
        for name, batch in self._batches().items():
            found[f"{name}_tokens"] = batch.tokens
            found[f"{name}_predictable"] = batch.predictable
            if name.startswith("period_"):
                continue  # the period says everything else
            for field in ("boundary", "ambiguous"):
                mask = getattr(batch, field, None)
                if mask is not None and bool(mask.any()):
                    found[f"{name}_{field}"] = mask
            if f"{name}_ambiguous" in found and isinstance(batch, ProbeBatch):
                found[f"{name}_competitor"] = batch.competitor
            for field in ("start", "offset", "copy_index"):
                value = getattr(batch, field, None)
                if value is not None and bool((value >= 0).any()):
                    found[f"{name}_{field}"] = value
        if self.attention is not None:
            found["attention_tokens"] = self.attention.tokens[0]
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    def array_attributes(self) -> dict[str, dict[str, Any]]:
        """Return the attributes of the token arrays: how many sequences are scored, a hash over tokens and masks."""
        attributes = {}
        for name, batch in self._batches().items():
            scored = len(self.probes[name]) if name in self.probes else len(batch)
            attributes[f"probes/{name}_tokens"] = {"n_scored": scored, "probe_sha256": batch.sha256()}
        return attributes

    def _batches(self) -> dict[str, TokenBatch]:
        return {
            "behaviour": self.behaviour,
            **self.probes,
            "no_repeat": self.control,
            **{f"period_{period}": probe for period, probe in self.periods.items()},
        }


def _references(config: RunConfig, device: torch.device) -> dict[str, Tensor]:
    """Return the log predictions of every observer of the first sequences of the behaviour probe."""
    per_sequence = 5 * 8 * config.seq_length * config.vocab_size
    chains = chain_probe(config, max(1, min(PROBE_SEQUENCES, REFERENCE_BYTES // per_sequence)))
    if chains is None:
        return {}
    # On the host: it is done once, and counting along a sequence has no deterministic kernel on a GPU.
    found = ngram_references(
        chains.tokens,
        n_states=config.vocab_size,
        alpha=config.ngram_alpha,
        parents=config.ngram_parents,
        tables=chains.tables,
    )
    return {name: reference.to(device) for name, reference in found.items()}
