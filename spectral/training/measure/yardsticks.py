"""Chance levels, ceilings and nulls of a run's probes and sizes, as attributes of its datasets.

Chance is what uniform attention and uniform logits score on the very sequences that the model is scored on, computed by
the same functions; so are the definitions.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from spectral.behaviour import equal_count_ceiling, induction_accuracy, reference_losses
from spectral.circuits import argmax_scores
from spectral.config import RunConfig
from spectral.data import ProbeBatch, TokenBatch
from spectral.result import MetricResult
from spectral.training.measure.causes import ARGMAX
from spectral.training.measure.outputs import behaviour_results, probe_results
from spectral.training.measure.patterns import SCORES, STORED, SUCCESSORS, pattern_results, uniform_pattern
from spectral.training.measure.plan import ProbePlan
from spectral.training.measure.values import listed_yardsticks, yardsticks
from spectral.training.measure.weights import maximum_nulls, weight_nulls

Attributes = dict[str, dict[str, Any]]

_RATIOS = ("ov_copying_score", "qk_matching_score", "k_composition_matching")
_COMPOSITIONS = ("q_composition", "k_composition", "v_composition")


def probe_attributes(config: RunConfig, plan: ProbePlan) -> Attributes:
    """Return the attributes of `/behaviour` and `/circuits` that the layout alone does not fix."""
    return {**_patterns(plan), **_outputs(config, plan), **_behaviour(config, plan), **_weights(config)}


def causal_attributes(plan: ProbePlan) -> Attributes:
    """Return the attributes of `/causal` that the layout alone does not fix."""
    probe = plan.probes["repeat"].to("cpu")
    scores = argmax_scores(uniform_pattern(probe), probe.tokens)
    return {f"causal/{name}": yardsticks(scores[name]) for name in ARGMAX}


def _patterns(plan: ProbePlan) -> Attributes:
    found: dict[str, dict[str, MetricResult]] = {}
    for kind, probe in plan.probes.items():
        on_host = probe.to("cpu")
        found[kind] = pattern_results(kind, uniform_pattern(on_host), on_host)
    attributes = {f"circuits/probe_{name}": listed_yardsticks([found[kind][name] for kind in found]) for name in SCORES}
    attributes |= {f"circuits/{name}": yardsticks(found["repeat"][name]) for name in STORED}
    if "repeated_tokens" in found:
        attributes |= {f"circuits/{name}": yardsticks(found["repeated_tokens"][name]) for name in SUCCESSORS}
    return attributes


def _outputs(config: RunConfig, plan: ProbePlan) -> Attributes:
    found: dict[str, dict[str, MetricResult]] = {}
    for kind, probe in plan.probes.items():
        on_host = probe.to("cpu")
        found[kind] = probe_results(kind, _uniform_logits(config, on_host), on_host, plan)
    accuracies = [results["induction_accuracy_probe"] for results in found.values()]
    # The masks know what an ideal circuit can reach; NaN where tokens recur by chance or nothing is predictable.
    ceilings = [probe.ceiling for probe in plan.probes.values()]
    attributes: Attributes = {
        "behaviour/induction_accuracy_probe": listed_yardsticks(accuracies) | {"ceiling": ceilings}
    }
    for results in found.values():
        attributes |= {
            f"behaviour/{name}": yardsticks(result)
            for name, result in results.items()
            if name != "induction_accuracy_probe"
        }
    by_period = []
    for batch in plan.periods.values():
        on_host = batch.to("cpu")
        by_period.append(induction_accuracy(_uniform_logits(config, on_host), on_host.tokens, on_host.predictable))
    if by_period:
        attributes["behaviour/induction_accuracy_period"] = listed_yardsticks(by_period) | {
            "chance": 1 / config.vocab_size,
            "ceiling": [probe.ceiling for probe in plan.periods.values()],
        }
    return attributes


def _behaviour(config: RunConfig, plan: ProbePlan) -> Attributes:
    on_host = dataclasses.replace(plan, behaviour=plan.behaviour.to("cpu"))
    scores = behaviour_results(_uniform_logits(config, on_host.behaviour), on_host)
    attributes: Attributes = {f"behaviour/{name}": yardsticks(result) for name, result in scores.items()}
    t1, t2 = plan.icl_positions
    attributes["behaviour/icl_score"] |= {"t1": t1, "t2": t2, "window": 1}
    if config.data == "repeated":
        # A random prefix only moves the first token that can be known, as a longer first block would.
        unknown = [
            prefix + period
            for prefix in range(config.max_prefix + 1)
            for period in range(config.min_period, config.max_period + 1)
            if prefix + period < config.seq_length
        ]
        levels = reference_losses(vocab_size=config.vocab_size, seq_length=config.seq_length, periods=unknown)
        periods = range(config.min_period, config.max_period + 1)
        levels["context_copy"] = math.log(sum(periods) / len(periods))
        attributes["behaviour/loss"] = {f"reference_{name}": level for name, level in levels.items()}
        ceilings = [equal_count_ceiling(config.vocab_size, period) for period in periods]
        attributes["behaviour/induction_accuracy"]["equal_count_ceiling"] = sum(ceilings) / len(ceilings)
    return attributes | _references(config, plan)


def _references(config: RunConfig, plan: ProbePlan) -> Attributes:
    """Return the chance levels of the distances to every observer: those of a model with uniform logits."""
    if not plan.references:
        return {}
    losses, entropies = [], []
    for reference in plan.references.values():
        log_probabilities = reference[:, :-1].cpu()
        targets = plan.behaviour.tokens[: len(reference), 1:, None].cpu()
        losses.append(float(-log_probabilities.gather(-1, targets).mean()))
        entropies.append(float(torch.special.entr(log_probabilities.exp()).sum(-1).mean()))
    uniform, n_sequences = math.log(config.vocab_size), len(next(iter(plan.references.values())))
    return {
        "behaviour/excess_loss": {
            "chance": [uniform - loss for loss in losses],
            "reference_loss": losses,
            "n_sequences": n_sequences,
        },
        "behaviour/reference_kl": {
            "chance": [uniform - entropy for entropy in entropies],
            "n_sequences": n_sequences,
        },
    }


def _weights(config: RunConfig) -> Attributes:
    """Return baselines and nulls of random Gaussian heads of this run's dimensions, folded as the run's weights are."""
    null, largest = weight_nulls(config), maximum_nulls(config)
    attributes: Attributes = {
        f"circuits/{name}": {"null_mean": null[name].mean, "null_sd": null[name].sd, "null_draws": null[name].n_draws}
        for name in (*_RATIOS, *_COMPOSITIONS)
    }
    for name, maximum in largest.items():
        attributes[f"circuits/{name}"] |= {
            "max_null_q95": maximum.q95,
            "max_null_q99": maximum.q99,
            "max_null_draws": maximum.n_draws,
        }
    # Centring takes one direction away from what heads can read and write.
    width = config.d_model - config.layer_norm
    if width:
        for name in _COMPOSITIONS:
            attributes[f"circuits/{name}"] |= {"chance": width**-0.5, "baseline": width**-0.5}
            overlap = f"circuits/{name[0]}_subspace_overlap"
            attributes[overlap] = {"chance": min(1.0, config.d_head / width)}
    for name in _COMPOSITIONS:
        if name in largest and null[name].sd:
            z = {key: (getattr(largest[name], key) - null[name].mean) / null[name].sd for key in ("q95", "q99")}
            attributes[f"circuits/{name}_z"] = {f"max_null_{key}": value for key, value in z.items()}
    return attributes


def _uniform_logits(config: RunConfig, batch: TokenBatch | ProbeBatch) -> Tensor:
    return torch.zeros(*batch.tokens.shape, config.vocab_size)
