"""The `/behaviour` and `/circuits` rows of every snapshot of one run."""

import time

import numpy as np
import torch

from spectral.behaviour import induction_accuracy
from spectral.config import RunConfig
from spectral.data import DataSource
from spectral.models import Transformer
from spectral.result import MetricResult
from spectral.storage import stores_top1_copying
from spectral.training.measure.evaluating import evaluating
from spectral.training.measure.outputs import behaviour_row, probe_results, probe_row
from spectral.training.measure.patterns import pattern_results, pattern_row
from spectral.training.measure.plan import ProbePlan
from spectral.training.measure.weights import weight_nulls, weight_row
from spectral.training.row import Row


class ProbeMeter:
    """Measures behaviour and circuits of a model on the probes of one run.

    Args:
        config: of the run.
        source: its data.

    Attributes:
        plan: the sequences.
    """

    def __init__(self, config: RunConfig, source: DataSource) -> None:
        self.plan = ProbePlan.of(config, source)
        self._null = weight_nulls(config)
        self._top1 = stores_top1_copying(
            n_layers=config.n_layers, n_heads=config.n_heads, d_head=config.d_head, vocab_size=config.vocab_size
        )

    @torch.no_grad()
    def measure(self, model: Transformer) -> Row:
        """Measure one snapshot: one pass per probe, whose patterns are dropped before the next one.

        Args:
            model: of the run's sizes; left as it is.

        Raises:
            NonFiniteError: weights, patterns or logits hold NaN or infinity.
        """
        started = time.perf_counter()
        plan = self.plan
        with evaluating(model):
            row = behaviour_row(model(plan.behaviour.tokens), plan)
            row["behaviour/induction_accuracy_period"] = np.array(
                [
                    float(induction_accuracy(model(probe.tokens), probe.tokens, probe.predictable))
                    for probe in plan.periods.values()
                ]
            )
            patterns: dict[str, dict[str, MetricResult]] = {}
            outputs: dict[str, dict[str, MetricResult]] = {}
            for kind, probe in plan.probes.items():
                logits, pattern = model.forward_with_patterns(probe.tokens)
                patterns[kind] = pattern_results(kind, pattern, probe)
                outputs[kind] = probe_results(kind, logits, probe, plan)
                del logits, pattern
            row |= pattern_row(patterns) | probe_row(outputs)
            if plan.attention is not None:
                _, pattern = model.forward_with_patterns(plan.attention.tokens)
                row["circuits/attention_pattern"] = pattern[0].cpu().numpy().astype(np.float16)
        row |= weight_row(model, self._null, top1=self._top1)
        row["circuits/seconds"] = time.perf_counter() - started
        return row
