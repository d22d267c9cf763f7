"""What the training loop costs over a bare PyTorch loop of the same model, with measurement off.

    python -m benchmarks.loop_overhead [--steps 300] [--rounds 5]

Both loops train the demo model on the same batches; they alternate, and the median ratio of a pair is printed. The bare
loop draws its batch, does forward, backward, clipping and the optimizer step, and nothing else.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from spectral.config import RunConfig, load_preset
from spectral.data import DataSource
from spectral.models import Transformer, next_token_loss
from spectral.storage import RunDirectory
from spectral.training import Trainer
from spectral.training.setup import make_optimizer


def bare(config: RunConfig) -> float:
    """Return the seconds of a bare loop."""
    source = DataSource(config, "cpu")
    model = Transformer.from_config(config)
    optimizer = make_optimizer(config, model)
    started = time.perf_counter()
    for step in range(config.num_steps):
        loss = next_token_loss(model, source.batch(step).tokens)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
    return time.perf_counter() - started


def ours(config: RunConfig, folder: Path) -> float:
    """Return the seconds of the suite's loop, with logging and checkpoints, without snapshots."""
    with RunDirectory.create(folder, config.to_dict()) as directory:
        trainer = Trainer(config, directory)
        started = time.perf_counter()
        trainer.run()
        return time.perf_counter() - started


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    settings = load_preset("demo") | {"num_steps": arguments.steps, "eigen_interval": 0, "checkpoint_interval": 0}
    config = RunConfig(**settings)
    ratios, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        bare(RunConfig(**(settings | {"num_steps": 20})))  # warm up
        for i in range(arguments.rounds):
            reference = bare(config)
            measured = ours(config, Path(folder) / str(i))
            ratios.append(measured / reference)
            seconds.append((reference, measured))
    per_step = [1e3 * value / arguments.steps for value in map(statistics.median, zip(*seconds, strict=True))]
    print(f"bare loop {per_step[0]:.2f} ms a step, suite {per_step[1]:.2f} ms a step")
    print(
        f"overhead: median {statistics.median(ratios) - 1:+.1%}, range {min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%}"
    )


if __name__ == "__main__":
    main()
