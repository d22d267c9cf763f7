"""The `/causal` rows of one run: what the outputs lose without a head, and who writes the right answer."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectral.behaviour import induction_accuracy, induction_loss
from spectral.circuits import (
    ABLATION_MODES,
    ablation_effects,
    argmax_scores,
    direct_logit_attribution,
    head_logit_copying,
    induction_mismatch_null,
    mean_head_values,
)
from spectral.models import Transformer
from spectral.result import MetricResult
from spectral.training.measure.evaluating import evaluating
from spectral.training.measure.plan import ProbePlan
from spectral.training.measure.values import value_of
from spectral.training.row import Row

ARGMAX = ("induction_argmax", "previous_token_argmax", "duplicate_token_argmax")
_METRICS: dict[str, Callable[[Tensor, Tensor, Tensor], MetricResult]] = {
    "induction_loss": induction_loss,
    "induction_accuracy": induction_accuracy,
}
_FEWEST_FOR_MISMATCH = 3


class CausalMeter:
    """Measures causes on the `repeat` probe, with means over `no_repeat`.

    Args:
        plan: the sequences of the run.
        model: of the run's sizes; only its parts are looked at.

    Attributes:
        components: what writes to the logits.
    """

    def __init__(self, plan: ProbePlan, model: Transformer) -> None:
        self.plan = plan
        with evaluating(model):
            self.components = direct_logit_attribution(model, plan.probes["repeat"].tokens[:1]).components

    def layout(self) -> dict[str, Any]:
        """Return the fields of `RunLayout` that say what is measured."""
        return {"ablation_modes": ABLATION_MODES, "components": self.components}

    @torch.no_grad()
    def measure(self, model: Transformer) -> Row:
        """Measure one row.

        Args:
            model: of the run's sizes; left as it is.

        Raises:
            NonFiniteError: patterns or logits hold NaN or infinity.
        """
        started = time.perf_counter()
        with evaluating(model):
            row = self._ablations(model) | self._attribution(model) | self._patterns(model)
        row["causal/seconds"] = time.perf_counter() - started
        return row

    def _ablations(self, model: Transformer) -> Row:
        probe = self.plan.probes["repeat"]

        def on_probe(metric: Callable[[Tensor, Tensor, Tensor], MetricResult]) -> Callable[[Tensor], MetricResult]:
            return lambda logits: metric(logits, probe.tokens, probe.predictable)

        effects = ablation_effects(
            model,
            probe.tokens,
            {name: on_probe(metric) for name, metric in _METRICS.items()},
            means=mean_head_values(model, self.plan.control.tokens),
        )
        redundancy = effects.redundancy()
        row: Row = {}
        for name in _METRICS:
            row[f"causal/clean_{name}"] = effects.clean[name]
            row[f"causal/remove_one_{name}"] = effects.remove_one[name]
            row[f"causal/keep_only_{name}"] = effects.keep_only[name]
            row[f"causal/remove_layer_{name}"] = effects.remove_layer[name]
            row[f"causal/redundancy_{name}"] = redundancy[name]
        return row

    def _attribution(self, model: Transformer) -> Row:
        probe = self.plan.probes["repeat"]
        return {
            "causal/logit_attribution": direct_logit_attribution(model, probe.tokens).mean(probe.predictable),
            "causal/head_logit_copying": value_of(head_logit_copying(model, self.plan.control.tokens)),
        }

    def _patterns(self, model: Transformer) -> Row:
        probe = self.plan.probes["repeat"]
        _, pattern = model.forward_with_patterns(probe.tokens)
        scores = argmax_scores(pattern, probe.tokens)
        row: Row = {f"causal/{name}": value_of(scores[name]) for name in ARGMAX}
        if len(probe) >= _FEWEST_FOR_MISMATCH:
            mean, sd = induction_mismatch_null(pattern, probe.tokens)
            row |= {"causal/induction_mismatch_null": mean, "causal/induction_mismatch_null_sd": sd}
        return row
