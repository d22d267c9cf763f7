"""What the study measures of a trained model: at its end, at its checkpoints, and what its run stored on the way."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor, nn

from spectral.behaviour import ambiguity_scores, boundary_accuracy, induction_accuracy
from spectral.circuits import attention_scores, content_match_fraction
from spectral.config import RunConfig
from spectral.data import ProbeBatch, TokenBatch, circuit_probe, repeated_blocks, repeated_token_blocks
from spectral.models import Transformer
from spectral.randomness import torch_generator
from spectral.storage import list_checkpoints, load_checkpoint, open_run
from spectral.studies.plan import Job
from spectral.studies.repeated.plan import LONG_RUN
from spectral.training.measure import evaluating

PERIODS = tuple(range(10, 40))
SHORT, LONG = tuple(range(10, 20)), tuple(range(30, 40))
"""Block lengths that no model is trained on, on both sides."""
PROFILE_PERIODS = (15, 25, 35)
MAP_PERIODS = (15, 20, 25, 30, 35)
DOUBLED_PERIOD = 25

HEAD_SCORES = (
    "induction_score",
    "previous_token_score",
    "duplicate_token_score",
    "first_token_score",
    "current_token_score",
)
CURVES = (
    "behaviour/induction_accuracy_period",
    "circuits/induction_score",
    "circuits/induction_score_corrected",
    "circuits/previous_token_score",
    "circuits/previous_token_score_corrected",
    "circuits/duplicate_token_score",
    "circuits/duplicate_token_score_corrected",
    "circuits/first_token_score",
)
_MOST_PATTERNS = 32  # sequences whose attention patterns are held at once; a sixth of a megabyte a head each


@dataclass(frozen=True, kw_only=True, eq=False)
class DoubledAccuracy:
    """Accuracy on blocks of distinct tokens but one, which occurs twice with different successors.

    Attributes:
        ambiguous: on that token; matching one token and counting alike gives about 1/4, chance is 1/V.
        other: on the others.
    """

    ambiguous: float
    other: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurements:
    """One model at one moment. Accuracies are shares of right predictions, in [0, 1]; chance is 1/V.

    Attributes:
        model: one of `MODELS`.
        seed: of the run.
        step: updates completed.
        trained: shortest and longest block of the training.
        periods: block lengths of `accuracy`.
        accuracy: on blocks of independent tokens, from the second copy on. Matching one token and counting its
            occurrences alike gives `equal_count_ceiling`.
        accuracy_distinct: on blocks of distinct tokens; matching one token gives 1.
        boundary_accuracy: at the first token of the first repeat, training periods; induction cannot know it.
        doubled: by range of block lengths, `inside` the training range and `longer` (30 to 39).
        scores: corrected head scores on repeated distinct tokens, training periods: 0 uniform attention, 1 perfect.
        induction_random_gap: the corrected induction score on copies at distances never trained.
        induction_shuffled: the same on copies whose segments come in another order.
        content_match: `content_match_fraction` of the three; NaN for heads of low score.
        offset_profile: mean attention of the last quarter of the queries by distance (0 = own position), on inputs of
            `PROFILE_PERIODS`.
        offset_chance: the same of uniform attention, at any one distance.
        maps: attention on one sequence of each of `MAP_PERIODS`, and on one whose block holds a token twice.
        doubled_places: where that token stands.
    """

    model: str
    seed: int
    step: int
    trained: tuple[int, int]
    periods: Int64[np.ndarray, " period"]
    accuracy: Float64[np.ndarray, " period"]
    accuracy_distinct: Float64[np.ndarray, " period"]
    boundary_accuracy: float
    doubled: dict[str, DoubledAccuracy]
    scores: dict[str, Float64[np.ndarray, "layer head"]]
    induction_random_gap: Float64[np.ndarray, "layer head"]
    induction_shuffled: Float64[np.ndarray, "layer head"]
    content_match: Float64[np.ndarray, "layer head"]
    offset_profile: Float64[np.ndarray, "profile layer head distance"]
    offset_chance: float
    maps: Float32[np.ndarray, "map layer head query key"]
    doubled_places: tuple[int, ...]

    @property
    def inside(self) -> tuple[int, ...]:
        """Block lengths of the training."""
        return tuple(range(self.trained[0], self.trained[1] + 1))

    def mean_accuracy(self, periods: Sequence[int]) -> float:
        """Return the accuracy on independent tokens, averaged over some of `periods`; NaN for none of them."""
        chosen = np.isin(self.periods, list(periods))
        return float(self.accuracy[chosen].mean()) if chosen.any() else float("nan")

    def attention_at(self, distances: Sequence[int]) -> Float64[np.ndarray, "profile layer head"]:
        """Return how much of each head's attention lies on some distances, corrected: 0 uniform, 1 all of it."""
        chance = self.offset_chance * len(distances)
        mass = np.asarray(self.offset_profile[..., list(distances)].sum(-1))
        return (mass - chance) / (1 - chance)


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What is known of one finished run.

    Attributes:
        path: run folder.
        final: the model at its end.
        earlier: the model at its checkpoints before the end, by step; only of the long run.
        steps: of the snapshots.
        curves: by name of a dataset in `CURVES`, over the snapshots.
        probe_periods: block lengths of `behaviour/induction_accuracy_period`.
    """

    path: Path
    final: Measurements
    earlier: tuple[Measurements, ...]
    steps: Int64[np.ndarray, " snapshot"]
    curves: dict[str, np.ndarray]
    probe_periods: tuple[int, ...]

    def at(self, step: int) -> Measurements | None:
        """Return the model at a checkpoint, or None where that moment was not measured."""
        return next((one for one in (*self.earlier, self.final) if one.step == step), None)


def measure_run(job: Job, *, n_sequences: int, tell: Callable[[str], None] = lambda _: None) -> Evidence:
    """Measure a finished run: its final model, the checkpoints of a long run, and its stored curves.

    Args:
        job: the run.
        n_sequences: held-out sequences behind every number.
        tell: receives a line per model measured.

    Raises:
        CheckpointError, ResultsFileError: a damaged file.
    """
    run = open_run(job.path)
    config = RunConfig.from_dict(job.settings)

    def measure(path: Path, step: int) -> Measurements:
        state = load_checkpoint(path)
        model = Transformer.from_config(config)
        model.load_state_dict(state.get("model", state))
        tell(f"measuring {job.name}, step {step:,}")
        return measure_model(model, config, name=job.model, step=step, n_sequences=n_sequences)

    checkpoints = list_checkpoints(job.path / "checkpoints") if job.model == LONG_RUN else []
    earlier = tuple(
        measure(path, step)
        for step, path in checkpoints
        # Besides the regular ones there may be one of a detected transition.
        if 0 < step < config.num_steps and step % config.checkpoint_interval == 0
    )
    return Evidence(
        path=job.path,
        final=measure(job.path / "model_final.pt", config.num_steps),
        earlier=earlier,
        steps=run.steps,
        curves={name: np.asarray(run.read(name), dtype=np.float64) for name in CURVES},
        probe_periods=run.layout.probe_periods,
    )


@torch.no_grad()
def measure_model(model: nn.Module, config: RunConfig, *, name: str, step: int, n_sequences: int) -> Measurements:
    """Measure one model on held-out sequences, a function of `config.seed` alone.

    Args:
        model: has `forward_with_patterns`; called in eval mode and left in the mode it came in.
        config: sizes and training periods.
        name: recorded as `model`.
        step: recorded.
        n_sequences: sequences of every probe.
    """
    probes = _Probes(config, n_sequences)
    with evaluating(model):
        attention = {kind: _score_heads(model, probes.circuit(kind)) for kind in ("repeat", "random_gap")}
        shuffled = _score_heads(model, probes.circuit("shuffled_segments"))["induction_score"]
        repeat, gap = attention["repeat"], attention["random_gap"]["induction_score"]
        inside = range(config.min_period, config.max_period + 1)
        boundary = probes.blocks("boundary", config.min_period, config.max_period)
        doubled = probes.doubled("map", (DOUBLED_PERIOD,), batch_size=1)
        map_tokens = [probes.distinct(f"map/{period}", period, batch_size=1).tokens for period in MAP_PERIODS]
        return Measurements(
            model=name,
            seed=config.seed,
            step=step,
            trained=(config.min_period, config.max_period),
            periods=np.array(PERIODS),
            accuracy=np.array([_accuracy(model, probes.blocks(f"period/{p}", p, p)) for p in PERIODS]),
            accuracy_distinct=np.array([_accuracy(model, probes.distinct(f"distinct/{p}", p)) for p in PERIODS]),
            boundary_accuracy=float(boundary_accuracy(model(boundary.tokens), boundary.tokens, boundary.boundary)),
            doubled={
                "inside": _doubled_accuracy(model, probes.doubled("doubled/inside", inside)),
                "longer": _doubled_accuracy(model, probes.doubled("doubled/longer", LONG)),
            },
            scores=repeat,
            induction_random_gap=gap,
            induction_shuffled=shuffled,
            content_match=_content_match(gap, repeat["induction_score"], shuffled),
            offset_profile=np.stack(
                [
                    _offset_profile(model, probes.distinct(f"profile/{period}", period, batch_size=_MOST_PATTERNS))
                    for period in PROFILE_PERIODS
                ]
            ),
            offset_chance=float((1 / (_last_queries(config.seq_length) + 1)).mean()),
            maps=_patterns(model, torch.cat([*map_tokens, doubled.tokens])).float().numpy(),
            doubled_places=_doubled_places(doubled),
        )


class _Probes:
    """Held-out sequences of a study, each kind from a stream of its own."""

    def __init__(self, config: RunConfig, n_sequences: int) -> None:
        self._config, self._n = config, n_sequences

    def circuit(self, kind: str) -> ProbeBatch:
        probe = circuit_probe(dataclasses.replace(self._config, behaviour_probe_size=self._n), kind)
        assert probe is not None  # all sizes of the study leave room for every kind
        return probe

    def blocks(self, name: str, low: int, high: int) -> TokenBatch:
        return self._repeated(name, low, high, self._n, distinct=False)

    def distinct(self, name: str, period: int, *, batch_size: int | None = None) -> TokenBatch:
        return self._repeated(name, period, period, batch_size or self._n, distinct=True)

    def doubled(self, name: str, periods: Sequence[int], *, batch_size: int | None = None) -> ProbeBatch:
        return repeated_token_blocks(
            batch_size=batch_size or self._n,
            seq_length=self._config.seq_length,
            vocab_size=self._config.vocab_size,
            periods=list(periods),
            generator=torch_generator(self._config.seed, f"study/{name}"),
        )

    def _repeated(self, name: str, low: int, high: int, n: int, *, distinct: bool) -> TokenBatch:
        return repeated_blocks(
            batch_size=n,
            seq_length=self._config.seq_length,
            vocab_size=self._config.vocab_size,
            min_period=low,
            max_period=high,
            distinct_tokens=distinct,
            generator=torch_generator(self._config.seed, f"study/{name}"),
            device="cpu",
        )


def _accuracy(model: nn.Module, batch: TokenBatch) -> float:
    return float(induction_accuracy(model(batch.tokens), batch.tokens, batch.predictable))


def _doubled_accuracy(model: nn.Module, probe: ProbeBatch) -> DoubledAccuracy:
    scores = ambiguity_scores(model(probe.tokens), probe.tokens, probe.predictable, probe.ambiguous, probe.competitor)
    return DoubledAccuracy(ambiguous=float(scores["ambiguous_accuracy"]), other=float(scores["unambiguous_accuracy"]))


def _score_heads(model: nn.Module, probe: ProbeBatch) -> dict[str, Float64[np.ndarray, "layer head"]]:
    """Return the corrected scores, averaged over parts of the probe small enough to hold their patterns."""
    parts = [
        attention_scores(_patterns(model, tokens), tokens, queries=predictable)
        for tokens, predictable in zip(
            probe.tokens.split(_MOST_PATTERNS), probe.predictable.split(_MOST_PATTERNS), strict=True
        )
    ]
    weights = [[part[name].n_pairs for part in parts] for name in HEAD_SCORES]
    return {
        name: np.average([part[name].corrected.numpy() for part in parts], axis=0, weights=weight)
        for name, weight in zip(HEAD_SCORES, weights, strict=True)
    }


def _content_match(gap: np.ndarray, repeat: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    fraction = content_match_fraction(
        torch.from_numpy(gap), torch.from_numpy(repeat), corrected_shuffled=torch.from_numpy(shuffled)
    )
    return fraction.numpy()


def _offset_profile(model: nn.Module, batch: TokenBatch) -> Float64[np.ndarray, "layer head distance"]:
    """Return the mean attention by distance from the query, over the last quarter of the queries."""
    pattern = _patterns(model, batch.tokens).double().mean(0)
    queries = _last_queries(batch.tokens.shape[1])
    distances = np.arange(queries[0])
    profile = [pattern[..., torch.from_numpy(queries), torch.from_numpy(queries - d)].mean(-1) for d in distances]
    return torch.stack(profile, -1).numpy()


def _last_queries(n_positions: int) -> Int64[np.ndarray, " query"]:
    return np.arange(n_positions - n_positions // 4, n_positions)


def _patterns(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return attention [batch, layer, head, query, key]."""
    pattern: Tensor = model.forward_with_patterns(tokens)[1]  # type: ignore[operator]
    return pattern


def _doubled_places(probe: ProbeBatch) -> tuple[int, ...]:
    tokens, at = probe.tokens[0], probe.ambiguous[0].nonzero()[0, 0]
    return tuple(int(place) for place in (tokens == tokens[at]).nonzero()[:, 0])
