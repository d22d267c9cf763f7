"""Sizes and labels of one run, from which its results file is laid out."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

_LABELS = (
    "signals",
    "block_names",
    "probe_periods",
    "spectrum_block_names",
    "probe_kinds",
    "references",
    "ablation_modes",
    "components",
)


@dataclass(frozen=True, kw_only=True)
class RunLayout:
    """Sizes and labels of one run; with the schema version they fix every dataset of its results file.

    A size of 0 (no attention heads, no negative eigenvalues, no probe periods) leaves out the datasets with that axis.

    Attributes:
        n_layers: attention layers.
        n_heads: heads per layer.
        d_head: head width, which is the number of OV and QK eigenvalues per head.
        n_top: eigenvalues from the upper end, axis `rank`.
        n_negative: eigenvalues from the lower end, axis `rank_negative`.
        seq_length: tokens per sequence of the behaviour probe; axis `position` has one entry fewer.
        vocab_size: number of tokens, which sets several chance levels.
        probe_periods: repeat periods of the behaviour probe, axis `period`.
        block_names: parameter blocks, axis `block`.
        signals: what the online detector follows, one dataset each in `/detector`.
        attention_positions: side of the stored attention patterns; 0 stores none.
        n_preconditioned: eigenvalues of the preconditioned Hessian, axis `rank_preconditioned`.
        n_ggn: eigenvalues of the Gauss-Newton matrix, axis `rank_ggn`.
        density_probes: random starts of the spectral density, axis `density_probe`.
        density_steps: quadrature nodes of each, axis `density_step`.
        trace_products: products spent on the trace, which then comes with a Frobenius norm; 0 = the free estimate.
        spectrum_block_names: parameter blocks with a spectrum of their own, axis `spectrum_block`.
        n_block: eigenvalues of each of them, axis `rank_block`.
        probe_kinds: kinds of sequences on which heads and outputs are scored, axis `probe`.
        n_copies: copies of a block that are told apart, the first included; axis `copy` has one entry fewer.
        aligned_before, aligned_after: predictions on both sides of the start of the repeat, axis `aligned_position`.
        references: observers with which the model is compared, axis `reference`.
        learned_positions: position embeddings; 0 = the model has none.
        ln_treatment: LayerNorm in the weights that are scored: `folded`, or `none` in a model without LayerNorm; empty
            in files before schema 1.2, which scored the raw weights.
        ablation_modes: ways in which a head is removed, axis `mode`; without any, `/causal` stays empty.
        components: parts of the model that write to the logits, axis `component`.
    """

    n_layers: int
    n_heads: int
    d_head: int
    n_top: int
    n_negative: int
    seq_length: int
    vocab_size: int
    probe_periods: tuple[int, ...] = ()
    block_names: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    attention_positions: int = 0
    n_preconditioned: int = 0
    n_ggn: int = 0
    density_probes: int = 0
    density_steps: int = 0
    trace_products: int = 0
    spectrum_block_names: tuple[str, ...] = ()
    n_block: int = 0
    probe_kinds: tuple[str, ...] = ()
    n_copies: int = 0
    aligned_before: int = 0
    aligned_after: int = 0
    references: tuple[str, ...] = ()
    learned_positions: int = 0
    ln_treatment: str = ""
    ablation_modes: tuple[str, ...] = ()
    components: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 0:
                msg = f"{field.name}={value} is negative; sizes are 0 or more"
                raise ValueError(msg)
        for name in self.signals:
            if not name or "/" in name or name in {"step", "."}:
                msg = f"signal name {name!r} cannot name a dataset; use a word without '/' other than 'step'"
                raise ValueError(msg)
        for label in _LABELS:
            if len(set(getattr(self, label))) != len(getattr(self, label)):
                msg = f"{label}={getattr(self, label)} holds an entry twice; make them distinct"
                raise ValueError(msg)

    def to_json(self) -> str:
        """Return the layout as one line of JSON, the form stored in the file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "RunLayout":
        """Rebuild a layout from `to_json`; keys of a newer minor version are ignored."""
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in json.loads(text).items()
            if key in known
        }
        return cls(**values)
