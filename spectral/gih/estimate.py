"""What an experiment will cost: a few epochs of each stage, timed."""

import dataclasses
import time

import torch

from spectral.gih.compression import compress
from spectral.gih.config import GIHConfig
from spectral.gih.runner import draw_chains
from spectral.gih.stages import StageTrainer

MOST_CHAINS = 20_000
SECONDS_A_STAGE = 0.5
STANDSTILL = 1e-12  # a learning rate at which nothing moves and nothing diverges


def describe_estimate(config: GIHConfig) -> str:
    """Return the stages of an experiment, its rows and about how long it takes, as a few lines.

    Where there are more than 20,000 training chains, that many are timed and the time is scaled up.
    """
    n = min(config.n_training, MOST_CHAINS)
    small = dataclasses.replace(config, n_sample=n, n_validation=0, batch_size=min(config.batch_size, n))
    model = small.build_model()
    chains = compress(draw_chains(small).tokens, model)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    lines = [f"{n_parameters} parameters, {config.n_training:,} training and {config.n_validation:,} held-out chains"]
    total, n_rows = 0.0, 0
    selected = False
    for i, stage in enumerate(small.stages()):
        if selected:  # what a stage before this one leaves: a single subset
            with torch.no_grad():
                model.c[torch.arange(len(model.c)) != len(model.c) - 1] = 0.0
        selected = selected or stage.train == ("c",)
        epochs = stage.epochs or 500  # about what a flow costs
        timed = dataclasses.replace(stage, epochs=epochs, flow_time=0.0, lr=STANDSTILL)
        seconds = _epoch_seconds(StageTrainer(model, chains, timed))
        seconds *= config.n_training / n * epochs
        rows = len(stage.measured_times())
        total, n_rows = total + seconds, n_rows + rows
        lines.append(f"stage {i + 1}: {'+'.join(stage.train)}, {stage.length}, {rows} rows, about {_human(seconds)}")
    return "\n".join([*lines, f"about {_human(total)} of training, {n_rows} rows to measure besides"])


def _epoch_seconds(trainer: StageTrainer) -> float:
    trainer.advance(1)
    started, first = time.perf_counter(), trainer.time
    while time.perf_counter() - started < SECONDS_A_STAGE and trainer.time < 200:
        trainer.advance(trainer.time + 1)
    return (time.perf_counter() - started) / (trainer.time - first)


def _human(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
