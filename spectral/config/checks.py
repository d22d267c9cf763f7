"""What is wrong with a configuration: one line per fault, naming the flag and the remedy."""

import dataclasses
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spectral.config.run_config import RunConfig

TEXT_VOCAB_SIZE = 256  # --data text reads bytes
MAX_THREADS = 1024
MAX_SNAPSHOTS = 1_000_000

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
    "density_probes",
    "block_top_k",
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
    "audit_interval",
    "track_preconditioned",
    "track_ggn",
    "density_steps",
    "trace_products",
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
_TEXT_LISTS = ("block_spectra",)


def type_faults(config: "RunConfig") -> list[str]:
    """Return one line per field that holds a value of another type, for example from an edited config.json."""
    faults = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kind = str if field.default is None else type(field.default)
        fits = type(value) is kind or (value is None and field.default is None)
        wanted = _KINDS[kind]
        if kind is tuple:
            item_kind = str if field.name in _TEXT_LISTS else int
            fits = fits and all(type(item) is item_kind for item in value)
            wanted = "a list of names" if item_kind is str else wanted
        if not fits:
            faults.append(f"--{field.name} is {value!r}; give {wanted}")
    return faults


def range_faults(config: "RunConfig") -> list[str]:
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
        "control": ("none", "no_repeats", "shuffled_targets"),
        "optimizer": ("adamw", "sgd"),
        "hessian_dtype": ("float32", "float64"),
        "eigen_backend": ("spectral", "scipy", "pyhessian"),
        "compile": ("auto", "on", "off"),
        "causal": ("checkpoints", "snapshots", "never"),
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            faults.append(f"--{name} is {getattr(config, name)!r}; use one of {', '.join(allowed)}")
    return faults


def combination_faults(config: "RunConfig") -> list[str]:
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
    elif config.control != "none":
        faults.append(f"--control {config.control} needs --data repeated, not {config.data}; drop one of them")
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
    faults.extend(_curvature_faults(config))
    if config.stop_after_transition and not (config.detect and config.eigen_interval):
        faults.append("--stop_after_transition needs --detect true and a positive --eigen_interval")
    if config.densify == "auto" and not (config.detect and config.eigen_interval > 1):
        faults.append("--densify auto needs --detect true and an --eigen_interval of at least 2")
    return faults


def _curvature_faults(config: "RunConfig") -> list[str]:
    faults = []
    if config.track_preconditioned and config.optimizer != "adamw":
        faults.append(
            f"--track_preconditioned needs the second moments of --optimizer adamw, not {config.optimizer}; drop it"
        )
    if config.eigen_backend != "spectral" and config.max_products:
        faults.append(
            f"--max_products is kept by --eigen_backend spectral only, not by {config.eigen_backend}; drop it"
        )
    if config.eigen_backend == "pyhessian":
        for name, conflict in (
            ("eigen_microbatch_size", config.eigen_microbatch_size > 0),
            ("hessian_dtype", config.hessian_dtype != "float32"),
            ("compile", config.compile == "on"),
        ):
            if conflict:
                faults.append(
                    f"--{name} {getattr(config, name)} is impossible with --eigen_backend pyhessian, which takes the "
                    "whole probe in float32 by its own products; drop it, or use --eigen_backend spectral"
                )
    if len(set(config.block_spectra)) != len(config.block_spectra):
        faults.append(f"--block_spectra is {' '.join(config.block_spectra)}; give every name once")
    return faults


def _pattern_faults(config: "RunConfig") -> list[str]:
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


def _ngram_faults(config: "RunConfig") -> list[str]:
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
