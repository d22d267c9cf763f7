"""One frozen configuration for one run.

`RunConfig` holds every setting under the name of its command line flag. Building one validates it: all faults are
reported together in one `ConfigError`, each naming the flag and the remedy.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from spectral.config.checks import combination_faults, range_faults, type_faults
from spectral.errors import ConfigError

DataKind = Literal["repeated", "patterns", "ngram", "text"]
Positions = Literal["learned", "rotary", "none"]


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
        control: train on what cannot form an induction head (`data repeated`): `no_repeats` = independent tokens,
            `shuffled_targets` = the targets of the batch in random order. Probes of behaviour and circuits still
            repeat blocks, the Hessian is that of the training loss.
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
        audit_interval: solve every this many snapshots a second time from another start and compare, also at the first
            and the last snapshot and when the eigenvalues jump; 0 = never.
        eigen_backend: `spectral`, or for comparison `scipy` (its ARPACK on our products) or `pyhessian` (its power
            iteration); these two certify nothing, so they are not audited and come without error bounds.
        compile: compile the Hessian product, 20 to 60 s once, then about 0.6 of the price each: `on`, `off`, or
            `auto` = when the run is estimated to save more than it costs. The last digits of the eigenvalues differ.
        eigen_probe_size: held-out sequences on which the Hessian is taken.
        eigen_microbatch_size: sequences per Hessian product pass, bounds memory; 0 = all at once, which is faster.
        hessian_dtype: `float32`, or `float64` for a lower noise floor at about twice the price.
        track_preconditioned: how many of the largest eigenvalues of the Hessian preconditioned by Adam; 0 = none.
        track_ggn: how many of the largest eigenvalues of the Gauss-Newton matrix, and its share in the Hessian's; 0 =
            none.
        density_steps: Lanczos steps for the density of all eigenvalues, one product each; 0 = no density.
        density_probes: random starts of the density; for large models one is enough.
        trace_products: products for a trace and a Frobenius norm better than the free estimate; 0 = the free one.
        block_spectra: parameter blocks whose own Hessian's top eigenvalues to compute: `layers`, `heads` (QK and OV of
            each), `embedding`, `unembedding`, or single ones such as `L1`, `L1H2.QK`, `L1H2.W_Q`.
        block_top_k: how many eigenvalues of each of these blocks.
        behaviour_probe_size: held-out sequences for losses, accuracies and head scores.
        probe_periods: block lengths at which induction accuracy is measured; empty = chosen around the
            training periods, inside and outside of them.
        attention_positions: store the attention patterns of one probe sequence of at most this many tokens;
            0 = do not store any.
        causal: remove every head and see what the outputs lose, at `checkpoints` (the first and the last step and every
            checkpoint_interval), at `snapshots`, which costs up to half a snapshot more each time, or `never`.
        log_interval: write training loss and gradient norm every this many steps.
        checkpoint_interval: save a checkpoint every this many steps; 0 = only at the end.
        keep_checkpoints: how many recent checkpoints to keep; 0 = all.
        detect: run the transition detector online and at the end.
        significance: false-alarm level of a detected transition.
        densify: `auto` = ten times as many snapshots for five intervals whenever a signal looks like changing abruptly;
            `off` = regular snapshots only. A finished run can be densified with `spectral densify`.
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
    control: Literal["none", "no_repeats", "shuffled_targets"] = "none"
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
    audit_interval: int = 10
    eigen_backend: Literal["spectral", "scipy", "pyhessian"] = "spectral"
    compile: Literal["auto", "on", "off"] = "auto"
    eigen_probe_size: int = 32
    eigen_microbatch_size: int = 0
    hessian_dtype: Literal["float32", "float64"] = "float32"
    track_preconditioned: int = 0
    track_ggn: int = 0
    density_steps: int = 0
    density_probes: int = 1
    trace_products: int = 0
    block_spectra: tuple[str, ...] = ()
    block_top_k: int = 3
    behaviour_probe_size: int = 64
    probe_periods: tuple[int, ...] = ()
    attention_positions: int = 64
    causal: Literal["checkpoints", "snapshots", "never"] = "checkpoints"
    # logging and detection
    log_interval: int = 50
    checkpoint_interval: int = 1_000
    keep_checkpoints: int = 2
    detect: bool = True
    significance: float = 0.01
    densify: Literal["off", "auto"] = "off"
    stop_after_transition: int = 0
    # machine
    seed: int = 0
    device: str = "auto"
    n_threads: int = 0

    def __post_init__(self) -> None:
        """Check every field and every combination; raise one `ConfigError` that lists all faults."""
        for name in ("ngram_parents", "probe_periods", "block_spectra"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for field in dataclasses.fields(self):
            if isinstance(field.default, float) and type(getattr(self, field.name)) is int:
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        # A value of a wrong type cannot be compared, so the other checks have to wait.
        faults = type_faults(self)
        if not faults:
            self._choose_periods()
            faults = [*range_faults(self), *combination_faults(self)]
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

    def causal_steps(self) -> list[int]:
        """Return the steps at which causes are measured, as planned; none where nothing is measured at all."""
        if self.causal == "never" or self.eigen_interval == 0:
            return []
        if self.causal == "snapshots":
            return self.snapshot_steps()
        steps = list(range(0, self.num_steps + 1, self.checkpoint_interval or self.num_steps))
        return steps if steps[-1] == self.num_steps else [*steps, self.num_steps]


FIELD_NAMES: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(RunConfig))
