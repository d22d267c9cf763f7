"""What an epoch of the generalised-induction-head experiment costs: the engine beside the dense model, in one run.

    python -m benchmarks.gih [--epochs 300] [--chains 1000000] [--whole]

Prints, for the published setting (9,000 training and 1,000 held-out chains of 100 tokens, three stages): the time of
an epoch of each stage with the engine, of one epoch of the dense model (in pieces of 500 chains, a full L x L attention
matrix per head), and the largest difference of loss and gradients between the two; the whole schedule of 57,000 epochs,
run with `--whole` and extrapolated without; Stage II to gradient-flow time 5e8; and a set of many chains: time to draw
and count, memory, time of an epoch. The public code of the paper takes 0.75 s of compute an epoch on 2 cores.
One thread throughout: the operations are too short to share.
"""

import argparse
import resource
import statistics
import time

import torch

from spectral.gih import (
    CompressedChains,
    Engine,
    GIHConfig,
    GIHRun,
    Stage,
    StageTrainer,
    compress,
    draw_chains,
    load_gih_preset,
)
from spectral.models import DisentangledTransformer, last_token_loss

PUBLIC_CODE_SECONDS = 0.75
PIECE = 500


def epoch_seconds(trainer: StageTrainer, epochs: int) -> float:
    """Return the median seconds of an epoch over ten runs of `epochs` / 10."""
    seconds, step = [], max(1, epochs // 10)
    for i in range(10):
        started = time.perf_counter()
        trainer.advance(trainer.time + step)
        if i:  # the first run warms up
            seconds.append((time.perf_counter() - started) / step)
    return statistics.median(seconds)


def dense_epoch(model: DisentangledTransformer, tokens: torch.Tensor) -> tuple[float, float, list[torch.Tensor]]:
    """Return seconds, loss and gradients of one epoch of the dense model."""
    parameters = list(model.parameters())
    started = time.perf_counter()
    total, gradients = 0.0, [torch.zeros_like(parameter) for parameter in parameters]
    for piece in tokens.split(PIECE):
        loss = last_token_loss(model, piece) * (len(piece) / len(tokens))
        for gradient, part in zip(gradients, torch.autograd.grad(loss, parameters), strict=True):
            gradient += part
        total += loss.item()
    return time.perf_counter() - started, total, gradients


def difference(model: DisentangledTransformer, chains: CompressedChains, loss: float, dense: list[torch.Tensor]) -> str:
    """Return how far the engine's loss and gradients are from the dense ones."""
    ours = Engine(model, chains).training_loss()
    gradients = torch.autograd.grad(ours, list(model.parameters()))
    apart = max(float((g - d).abs().max() / d.abs().max()) for g, d in zip(gradients, dense, strict=True))
    return f"loss apart by {abs(ours.item() - loss):.1e}, gradients by {apart:.1e} of their largest entry"


def stages(epochs: int) -> dict[str, float]:
    """Print and return the seconds of an epoch of each stage."""
    config = GIHConfig.from_dict(load_gih_preset("gih_three_stage"))
    started = time.perf_counter()
    tokens = draw_chains(config).tokens
    model = config.build_model()
    chains = compress(tokens[: config.n_training], model)
    print(f"drawing and counting {config.n_sample} chains: {time.perf_counter() - started:.2f} s")
    print(f"  {chains.votes.nnz} counts ({chains.n_bytes / 1e6:.1f} MB), {chains.members.shape[1]} pairs")
    seconds, loss, gradients = dense_epoch(model, tokens[: config.n_training])
    print(f"dense model: {seconds:.2f} s an epoch; {difference(model, chains, loss, gradients)}")
    found = {}
    for name, stage in zip(("I (c)", "II (w)", "III (a)"), config.stages(), strict=True):
        if name != "I (c)":  # what Stage I selects
            with torch.no_grad():
                model.c.zero_()[model.subset_names.index("110")] = 0.0344
        found[name] = epoch_seconds(StageTrainer(model, chains, stage), epochs)
        print(
            f"stage {name}: {1e3 * found[name]:.2f} ms an epoch, {seconds / found[name]:.0f} times as fast as the "
            f"dense model, {PUBLIC_CODE_SECONDS / found[name]:.0f} times as fast as the public code"
        )
    total = sum(value * stage.epochs for value, stage in zip(found.values(), config.stages(), strict=True))
    print(f"57,000 epochs of the published schedule at these prices: {total:.0f} s")
    flow = StageTrainer(model, chains, Stage(train=("w",), flow_time=5e8))
    started = time.perf_counter()
    flow.advance(5e8)
    print(f"stage II to flow time 5e8: {time.perf_counter() - started:.1f} s")
    return found


def whole() -> None:
    """Run the published schedule with all its measurements."""
    started = time.perf_counter()
    rows = list(GIHRun(GIHConfig.from_dict(load_gih_preset("gih_three_stage"))).measurements())
    print(f"published schedule with {len(rows)} measured rows: {time.perf_counter() - started:.0f} s")


def many(n_chains: int) -> None:
    """Draw, count and train on many chains."""
    config = GIHConfig(n_sample=n_chains, n_validation=0)
    started = time.perf_counter()
    tokens = draw_chains(config).tokens
    drawn = time.perf_counter()
    model = config.build_model()
    chains = compress(tokens, model)
    print(
        f"{n_chains} chains: drawn in {drawn - started:.0f} s, counted in {time.perf_counter() - drawn:.0f} s, ", end=""
    )
    print(f"{chains.votes.nnz} counts, {chains.n_bytes / 2**20:.0f} MiB")
    for name in ("c", "w"):
        if name == "w":
            with torch.no_grad():
                model.c.zero_()[model.subset_names.index("110")] = 0.0344
        seconds = epoch_seconds(StageTrainer(model, chains, Stage(train=(name,), epochs=1)), 10)
        print(f"  training {name}: {1e3 * seconds:.0f} ms an epoch")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  largest memory of the process: {peak:.1f} GiB")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--chains", type=int, default=1_000_000, help="size of the large set; 0 = leave it out")
    parser.add_argument("--whole", action="store_true", help="also run the published schedule, a few minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stages(arguments.epochs)
    if arguments.whole:
        whole()
    if arguments.chains:
        many(arguments.chains)


if __name__ == "__main__":
    main()
