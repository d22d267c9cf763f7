"""Snapshots of the demo model before, in and after the transition, for the benchmarks; trained on the spot."""

from dataclasses import dataclass

import torch

from spectral.behaviour import induction_accuracy
from spectral.config import RunConfig, load_preset
from spectral.data import DataSource
from spectral.models import Transformer, next_token_loss
from spectral.training.setup import make_optimizer

ACCURACIES = {"before": 0.1, "in": 0.5, "after": 0.95}  # induction accuracy at which a snapshot is taken


@dataclass
class Snapshot:
    """A model at one moment of its training, and the batch its Hessian is taken on."""

    name: str
    step: int
    accuracy: float
    model: Transformer
    tokens: torch.Tensor


def demo_snapshots(*, preset: str = "demo", seed: int = 0, probe_size: int = 32) -> list[Snapshot]:
    """Train the preset and keep the weights when induction accuracy first passes each of `ACCURACIES`."""
    config = RunConfig(**{**load_preset(preset), "seed": seed, "eigen_probe_size": probe_size})
    source = DataSource(config, "cpu")
    model = Transformer.from_config(config)
    optimizer = make_optimizer(config, model)
    probe = source.behaviour_probe
    kept: list[Snapshot] = []
    waiting = dict(ACCURACIES)
    for step in range(config.num_steps):
        if step % 10 == 0:
            with torch.no_grad():
                accuracy = float(induction_accuracy(model(probe.tokens), probe.tokens, probe.predictable))
            for name, level in list(waiting.items()):
                if accuracy >= level:
                    del waiting[name]
                    copy = Transformer.from_config(config)
                    copy.load_state_dict(model.state_dict())
                    kept.append(Snapshot(name, step, accuracy, copy, source.curvature_probe.tokens))
            if not waiting:
                break
        loss = next_token_loss(model, source.batch(step).tokens)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
    return kept
