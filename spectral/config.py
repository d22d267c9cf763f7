"""One frozen configuration for one run.

`RunConfig` holds every setting under the name of its command line flag. Building one validates it: all faults are
reported together in one `ConfigError`, each naming the flag and the remedy. Presets are YAML files in
`spectral/presets/` that set some of the fields.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from spectral.errors import ConfigError

PRESET_FOLDER = Path(__file__).parent / "presets"

DataKind = Literal["repeated", "patterns", "ngram", "text"]
Positions = Literal["learned", "rotary", "none"]

TEXT_VOCAB_SIZE = 256  # --data text reads bytes
MAX_THREADS = 1024
MAX_SNAPSHOTS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes.

    Attributes:
        data: what to train on. `repeated`: blocks of random tokens repeated to the end of the sequence.
            `patterns`: token patterns planted several times in random tokens. `ngram`: Markov chains, one
            transition table per sequence. `text`: bytes of your own files (needs `text_path`).
        vocab_size: number of tokens; 256 with `data text`.
        seq_length: tokens per sequence.
        n_sequences: size of the training set; batches repeat in order after n_sequences / batch_size steps.
            0 = every batch is new.
        min_period: shortest block of `data repeated`, in tokens; 0 = seq_length / 16.
        max_period: longest block of `data repeated`; equal to min_period = one fixed period. 0 = seq_length / 4.
        period_per: draw one period per `sequence` or one per `batch`.
        max_prefix: up to this many random tokens before the first block (`data repeated`); -1 = seq_length / 4.
        n_patterns: different patterns per sequence (`data patterns`).
        min_pattern_length: shortest pattern, in tokens (`data patterns`).
        max_pattern_length: longest pattern, in tokens (`data patterns`).
        n_repeats_per_seq: most occurrences of one pattern in a sequence; each occurs at least twice
            (`data patterns`).
        ngram_parents: lags that the next token depends on, for example `[1]` for a bigram chain or `[1, 3]`
            (`data ngram`).
        ngram_alpha: Dirichlet concentration of every row of the transition table (`data ngram`).
        text_path: a file or a folder, read as bytes (`data text`).
        n_layers: transformer blocks.
        n_heads: attention heads per block; must divide d_model.
        d_model: width of the residual stream.
        d_ff: hidden width of the MLP in every block; 0 = attention only.
        positions: `learned` position embeddings, `rotary` queries and keys, or `none`.
        layer_norm: LayerNorm before attention, before the MLP and before the unembedding.
        dropout: probability of dropping attention weights and block outputs while training.
        init_embedding_std: standard deviation of W_E and W_pos at initialisation. With 0.02 most runs sit in a
            positional plateau for a long time; 0.2 forms induction heads early.
        init_weight_std: standard deviation of all other weight matrices; 0 = 1/sqrt(fan in).
        num_steps: optimizer steps.
        batch_size: sequences per step.
        optimizer: `adamw` or `sgd` (momentum = beta1).
        lr: learning rate (peak, when a schedule is used).
        weight_decay: decoupled weight decay (adamw), L2 penalty (sgd).
        beta1: first-moment decay of AdamW, momentum of SGD.
        beta2: second-moment decay of AdamW.
        grad_clip: largest global gradient norm; 0 = no clipping.
        use_lr_schedule: cosine decay to 10 % of lr after a linear warm-up.
        warmup_steps: steps of linear warm-up when the schedule is used.
        eigen_interval: measure curvature, circuits and behaviour every this many steps; 0 = never.
        track_top_k_eigenvalues: how many of the largest Hessian eigenvalues to compute.
        track_negative_eigenvalues: how many of the most negative ones.
        eigen_rtol: relative error at which a top eigenvalue counts as certified.
        max_products: most Hessian-vector products per snapshot; 0 = three times the default basis size.
        eigen_probe_size: held-out sequences on which the Hessian is taken.
        eigen_microbatch_size: sequences per Hessian product pass, bounds memory; 0 = all at once, which is faster.
        hessian_dtype: `float32`, or `float64` for a lower noise floor at about twice the price.
        behaviour_probe_size: held-out sequences for losses, accuracies and head scores.
        probe_periods: block lengths at which induction accuracy is measured; empty = chosen around the
            training periods, inside and outside of them.
        attention_positions: store the attention patterns of one probe sequence of at most this many tokens;
            0 = do not store any.
        log_interval: write training loss and gradient norm every this many steps.
        checkpoint_interval: save a checkpoint every this many steps; 0 = only at the end.
        keep_checkpoints: how many recent checkpoints to keep; 0 = all.
        detect: run the transition detector online and at the end.
        significance: false-alarm level of a detected transition.
        stop_after_transition: end the run this many steps after a confirmed transition; 0 = never.
        seed: of initialisation, data, probes and Lanczos starts, each through its own stream.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        n_threads: CPU threads of PyTorch; 0 = PyTorch's choice. Results are bit-identical for equal counts.
    """

    # data
    data: DataKind = "repeated"
    vocab_size: int = 50
    seq_length: int = 256
    n_sequences: int = 0
    min_period: int = 0
    max_period: int = 0
    period_per: Literal["sequence", "batch"] = "sequence"
    max_prefix: int = -1
    n_patterns: int = 5
    min_pattern_length: int = 2
    max_pattern_length: int = 10
    n_repeats_per_seq: int = 5
    ngram_parents: tuple[int, ...] = (1,)
    ngram_alpha: float = 0.1
    text_path: str | None = None
    # model
    n_layers: int = 2
    n_heads: int = 8
    d_model: int = 64
    d_ff: int = 0
    positions: Positions = "rotary"
    layer_norm: bool = True
    dropout: float = 0.0
    init_embedding_std: float = 0.2
    init_weight_std: float = 0.0
    # optimisation
    num_steps: int = 20_000
    batch_size: int = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    grad_clip: float = 1.0
    use_lr_schedule: bool = False
    warmup_steps: int = 100
    # measurement
    eigen_interval: int = 100
    track_top_k_eigenvalues: int = 10
    track_negative_eigenvalues: int = 3
    eigen_rtol: float = 1e-3
    max_products: int = 0
    eigen_probe_size: int = 32
    eigen_microbatch_size: int = 0
    hessian_dtype: Literal["float32", "float64"] = "float32"
    behaviour_probe_size: int = 64
    probe_periods: tuple[int, ...] = ()
    attention_positions: int = 64
    # logging and detection
    log_interval: int = 50
    checkpoint_interval: int = 1_000
    keep_checkpoints: int = 2
    detect: bool = True
    significance: float = 0.01
    stop_after_transition: int = 0
    # machine
    seed: int = 0
    device: str = "auto"
    n_threads: int = 0

    def __post_init__(self) -> None:
        """Check every field and every combination; raise one `ConfigError` that lists all faults."""
        for name in ("ngram_parents", "probe_periods"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for field in dataclasses.fields(self):
            if isinstance(field.default, float) and type(getattr(self, field.name)) is int:
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        # A value of a wrong type cannot be compared, so the other checks have to wait.
        faults = _type_faults(self)
        if not faults:
            self._choose_periods()
            faults = [*_range_faults(self), *_combination_faults(self)]
        if faults:
            raise ConfigError(faults)

    def _choose_periods(self) -> None:
        """Fill in the block lengths that were left to the sequence length, so that every length has fitting ones."""
        length = max(self.seq_length, 3)
        low, high, prefix = self.min_period, self.max_period, self.max_prefix
        if high == 0:
            high = max(length // 4, low, 1)
        if low == 0:
            low = min(max(length // 16, 2), high)
        if prefix == -1:
            prefix = max(min(length // 4, length - high - 2), 0)
        for name, value in (("min_period", low), ("max_period", high), ("max_prefix", prefix)):
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunConfig":
        """Build a config from `to_dict` output; an unknown name raises `ConfigError`."""
        unknown = sorted(set(values) - set(FIELD_NAMES))
        if unknown:
            raise ConfigError([f"unknown setting {name!r}; remove it" for name in unknown])
        given: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
        return cls(**given)

    def digest(self) -> str:
        """Return a SHA-256 over the settings, so that a checkpoint can tell which run it belongs to."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def resolved_probe_periods(self) -> tuple[int, ...]:
        """Block lengths of the period probes: as given, or inside and on both sides of the training range."""
        if self.probe_periods:
            return self.probe_periods
        low, high = (self.min_period, self.max_period) if self.data == "repeated" else (4, self.seq_length // 4)
        wanted = {low // 2, (3 * low) // 4, low, (low + high) // 2, high, (5 * high) // 4, (3 * high) // 2}
        # Up to three quarters of the sequence: enough of a second copy to judge by.
        return tuple(sorted(p for p in wanted if 2 <= p <= (3 * self.seq_length) // 4)) or (
            max(2, self.seq_length // 2),
        )

    def snapshot_steps(self) -> list[int]:
        """Return the steps at which snapshots are taken: every eigen_interval from 0 on, and the last step."""
        if self.eigen_interval == 0:
            return []
        steps = list(range(0, self.num_steps + 1, self.eigen_interval))
        return steps if steps[-1] == self.num_steps else [*steps, self.num_steps]


FIELD_NAMES: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(RunConfig))

_POSITIVE = (
    "seq_length",
    "min_period",
    "max_period",
    "n_patterns",
    "min_pattern_length",
    "max_pattern_length",
    "n_layers",
    "n_heads",
    "d_model",
    "num_steps",
    "batch_size",
    "eigen_probe_size",
    "behaviour_probe_size",
    "log_interval",
)
_NOT_NEGATIVE = (
    "n_sequences",
    "max_prefix",
    "d_ff",
    "warmup_steps",
    "eigen_interval",
    "track_top_k_eigenvalues",
    "track_negative_eigenvalues",
    "max_products",
    "eigen_microbatch_size",
    "attention_positions",
    "checkpoint_interval",
    "keep_checkpoints",
    "stop_after_transition",
    "n_threads",
    "weight_decay",
    "grad_clip",
    "init_weight_std",
)


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a list of whole numbers",
}


def _type_faults(config: RunConfig) -> list[str]:
    """Return one line per field that holds a value of another type, for example from an edited config.json."""
    faults = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kind = str if field.default is None else type(field.default)
        fits = type(value) is kind or (value is None and field.default is None)
        if fits and kind is tuple:
            fits = all(type(item) is int for item in value)
        if not fits:
            faults.append(f"--{field.name} is {value!r}; give {_KINDS[kind]}")
    return faults


def _range_faults(config: RunConfig) -> list[str]:
    """Return one line per field whose value alone is impossible."""
    faults = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            faults.append(f"--{field.name} is {value}; give a finite number")
    for name in _POSITIVE:
        if getattr(config, name) < 1:
            faults.append(f"--{name} is {getattr(config, name)}; it must be at least 1")
    for name in _NOT_NEGATIVE:
        if getattr(config, name) < 0:
            faults.append(f"--{name} is {getattr(config, name)}; it must not be negative")
    if config.vocab_size < 2:
        faults.append(f"--vocab_size is {config.vocab_size}; at least 2 tokens are needed to predict anything")
    for name in ("beta1", "beta2", "dropout"):
        value = getattr(config, name)
        if not 0 <= value < 1:
            faults.append(f"--{name} is {value}; it must lie in [0, 1)")
    for name in ("lr", "init_embedding_std", "ngram_alpha"):
        if not getattr(config, name) > 0:
            faults.append(f"--{name} is {getattr(config, name)}; it must be positive")
    for name in ("eigen_rtol", "significance"):
        if not 0 < getattr(config, name) < 1:
            faults.append(f"--{name} is {getattr(config, name)}; it must lie between 0 and 1")
    if config.n_repeats_per_seq < 2:
        faults.append(f"--n_repeats_per_seq is {config.n_repeats_per_seq}; a pattern must occur at least twice")
    if config.n_threads > MAX_THREADS:
        faults.append(f"--n_threads is {config.n_threads}; give at most {MAX_THREADS}, or 0 for PyTorch's choice")
    if config.seed < 0:
        faults.append(f"--seed is {config.seed}; it must not be negative")
    device, _, index = config.device.partition(":")
    if device not in ("auto", "cpu", "cuda") or (index and (device != "cuda" or not index.isdigit())):
        faults.append(f"--device is {config.device!r}; use auto, cpu, cuda or cuda:N")
    choices = {
        "data": ("repeated", "patterns", "ngram", "text"),
        "positions": ("learned", "rotary", "none"),
        "period_per": ("sequence", "batch"),
        "optimizer": ("adamw", "sgd"),
        "hessian_dtype": ("float32", "float64"),
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            faults.append(f"--{name} is {getattr(config, name)!r}; use one of {', '.join(allowed)}")
    return faults


def _combination_faults(config: RunConfig) -> list[str]:
    """Return one line per combination of settings that cannot be run."""
    faults = []
    if config.n_heads > 0 and config.d_model % config.n_heads:
        faults.append(
            f"--n_heads {config.n_heads} does not divide --d_model {config.d_model}; "
            f"try --n_heads {_nearest_divisor(config.d_model, config.n_heads)}"
        )
    elif config.positions == "rotary" and config.n_heads > 0 and (config.d_model // config.n_heads) % 2:
        faults.append(
            f"--positions rotary needs an even head width, not {config.d_model // config.n_heads}; "
            "change --d_model or --n_heads"
        )
    if config.seq_length < 3:
        faults.append(f"--seq_length is {config.seq_length}; at least 3 tokens are needed to repeat anything")
    if config.eigen_interval > config.num_steps >= 1:
        faults.append(
            f"--eigen_interval {config.eigen_interval} is larger than --num_steps {config.num_steps}; "
            "lower it, or give 0 to switch measuring off"
        )
    elif config.eigen_interval > 0 and config.num_steps // config.eigen_interval > MAX_SNAPSHOTS:
        faults.append(
            f"--eigen_interval {config.eigen_interval} would take {config.num_steps // config.eigen_interval:,} "
            f"snapshots in --num_steps {config.num_steps}; raise it so that there are at most {MAX_SNAPSHOTS:,}"
        )
    if config.data == "repeated":
        if config.min_period > config.max_period:
            faults.append(
                f"--min_period {config.min_period} is larger than --max_period {config.max_period}; swap them"
            )
        elif config.max_prefix + config.max_period + 2 > config.seq_length:
            faults.append(
                f"--max_prefix {config.max_prefix} + --max_period {config.max_period} leaves nothing to predict in "
                f"--seq_length {config.seq_length}; give at least {config.max_prefix + config.max_period + 2} tokens"
            )
    if config.data == "patterns":
        faults.extend(_pattern_faults(config))
    if config.data == "ngram":
        faults.extend(_ngram_faults(config))
    if config.data == "text":
        if not config.text_path:
            faults.append("--data text needs --text_path FILE_OR_FOLDER")
        if config.vocab_size != TEXT_VOCAB_SIZE:
            faults.append(f"--data text reads bytes; give --vocab_size {TEXT_VOCAB_SIZE}, not {config.vocab_size}")
    elif config.text_path:
        faults.append(f"--text_path is only read with --data text, not with --data {config.data}; drop one of them")
    for period in config.probe_periods:
        if not 2 <= period <= config.seq_length - 2:
            faults.append(
                f"--probe_periods holds {period}; periods must lie between 2 and {config.seq_length - 2} "
                f"at --seq_length {config.seq_length}"
            )
    if len(set(config.probe_periods)) != len(config.probe_periods):
        faults.append(f"--probe_periods is {list(config.probe_periods)}; give every period once")
    if config.eigen_interval and config.track_top_k_eigenvalues + config.track_negative_eigenvalues < 1:
        faults.append(
            "--track_top_k_eigenvalues and --track_negative_eigenvalues are both 0; "
            "ask for at least one, or switch measuring off with --eigen_interval 0"
        )
    if config.stop_after_transition and not (config.detect and config.eigen_interval):
        faults.append("--stop_after_transition needs --detect true and a positive --eigen_interval")
    return faults


def _pattern_faults(config: RunConfig) -> list[str]:
    if config.min_pattern_length < 2:
        return [f"--min_pattern_length is {config.min_pattern_length}; a pattern needs at least 2 tokens"]
    if config.min_pattern_length > config.max_pattern_length:
        return [
            f"--min_pattern_length {config.min_pattern_length} is larger than --max_pattern_length "
            f"{config.max_pattern_length}; swap them"
        ]
    needed = 2 * config.n_patterns * config.max_pattern_length
    if needed > config.seq_length:
        return [
            f"two occurrences of {config.n_patterns} patterns of {config.max_pattern_length} tokens need {needed} "
            f"tokens, --seq_length is {config.seq_length}; lower --n_patterns or --max_pattern_length"
        ]
    return []


def _ngram_faults(config: RunConfig) -> list[str]:
    parents = config.ngram_parents
    if not parents or min(parents) < 1 or len(set(parents)) != len(parents):
        return [f"--ngram_parents is {list(parents)}; give different lags of at least 1, for example [1]"]
    if max(parents) + 1 >= config.seq_length:
        return [f"--ngram_parents reaches back {max(parents)} tokens; --seq_length must be longer"]
    entries = config.batch_size * config.vocab_size ** (len(parents) + 1)
    if entries > 2**28:
        return [
            f"the transition tables of one batch would hold {entries:.1e} numbers; "
            "lower --vocab_size, --batch_size or the number of --ngram_parents"
        ]
    return []


def _nearest_divisor(number: int, wanted: int) -> int:
    """Return the divisor of `number` that lies nearest to `wanted`."""
    if number < 1:
        return 1
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return min([*small, *(number // d for d in small)], key=lambda d: abs(d - wanted))


def preset_names() -> list[str]:
    """Return the names that `--preset` accepts."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """Return the settings of one preset; an unknown name raises `ConfigError` that lists the known ones."""
    if name not in preset_names():
        raise ConfigError([f"--preset {name!r} is unknown; use one of {', '.join(preset_names())}"])
    return read_settings(PRESET_FOLDER / f"{name}.yaml")


def read_settings(path: Path) -> dict[str, Any]:
    """Read settings from a YAML or JSON file.

    Raises:
        ConfigError: the file is missing, is no mapping, or holds a name that is no setting.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"--config {path} cannot be read ({error}); give a YAML or JSON file"]) from None
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise ConfigError([f"--config {path} is not valid YAML or JSON ({where}); correct it"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"--config {path} must map setting names to values, not hold a {type(values).__name__}"])
    unknown = sorted(str(name) for name in values if name not in FIELD_NAMES)
    if unknown:
        raise ConfigError([f"--config {path} holds the unknown setting {name!r}; remove it" for name in unknown])
    empty = [name for name, value in values.items() if value is None and name != "text_path"]
    if empty:
        raise ConfigError([f"--{name} has no value in --config {path}; give one or remove it" for name in empty])
    return values
