"""A small decoder-only transformer whose weights carry the names of the field.

Row vectors act from the left (`x @ W`), heads are kept apart (`W_Q[head, d_model, d_head]`), and attention is written
out wherever something is measured: the fused kernels of `scaled_dot_product_attention` have no second derivative, on
CPU and on GPU, and return no attention pattern. Updates need neither, so in training mode the fused kernel is used: it
computes the same function without storing the patterns, 2.2 times as fast a step at 256 tokens on CPU.

Block: x + attention(LN(x)), then, with d_ff > 0, x + mlp(LN(x)); at the end LN and W_U. There are no biases in the
attention and no bias at the unembedding, so that QK and OV circuits are the whole story.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from spectral.config import RunConfig
from spectral.randomness import torch_generator

Tokens = Int[Tensor, "batch position"] | tuple[Int[Tensor, "batch position"], Int[Tensor, "batch position_minus_one"]]
"""Sequences whose own next tokens are to be predicted, or sequences with other targets."""


class Attention(nn.Module):
    """Causal multi-head attention with separate weights per head.

    Attributes:
        W_Q, W_K, W_V: [head, d_model, d_head].
        W_O: [head, d_head, d_model].
    """

    def __init__(self, *, d_model: int, n_heads: int, seq_length: int, rotary: bool, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.d_head = d_model // n_heads
        self.W_Q = nn.Parameter(torch.empty(n_heads, d_model, self.d_head))
        self.W_K = nn.Parameter(torch.empty(n_heads, d_model, self.d_head))
        self.W_V = nn.Parameter(torch.empty(n_heads, d_model, self.d_head))
        self.W_O = nn.Parameter(torch.empty(n_heads, self.d_head, d_model))
        self.dropout = dropout
        # An added mask, not masked_fill: one fused kernel less in every one of the three derivative passes.
        mask = torch.full((seq_length, seq_length), -math.inf).triu(1)
        self.register_buffer("mask", mask, persistent=False)
        self.mask: Tensor
        self.rotary = rotary
        if rotary:
            cos, sin = rotary_angles(seq_length, self.d_head)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
            self.cos: Tensor
            self.sin: Tensor

    def forward(
        self, x: Float[Tensor, "batch position d_model"], *, need_pattern: bool = True
    ) -> tuple[Float[Tensor, "batch position d_model"], Float[Tensor, "batch head position position"] | None]:
        """Return what the heads write to the residual stream, and the attention pattern [batch, head, query, key].

        With `need_pattern=False` in training mode the pattern is None, and the result can be differentiated only once.
        """
        batch, position, d_model = x.shape
        # Queries, keys and values in one product: on small models the number of kernels is the price.
        W_QKV = torch.cat([self.W_Q, self.W_K, self.W_V]).transpose(0, 1).reshape(d_model, -1)
        qkv = (x.reshape(batch * position, d_model) @ W_QKV).view(batch, position, 3, self.n_heads, self.d_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.rotary:
            q, k = self._rotate(q), self._rotate(k)
        pattern = None
        if self.training and not need_pattern:
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout, is_causal=True)
        else:
            scores = (q / math.sqrt(self.d_head)) @ k.transpose(-1, -2) + self.mask[:position, :position]
            pattern = torch.softmax(scores, dim=-1)
            mixed = (F.dropout(pattern, self.dropout, self.training) if self.dropout else pattern) @ v
        mixed = mixed.transpose(1, 2).reshape(batch * position, self.n_heads * self.d_head)
        written = mixed @ self.W_O.reshape(self.n_heads * self.d_head, d_model)
        return written.view(batch, position, d_model), pattern

    def _rotate(self, x: Float[Tensor, "batch head position d_head"]) -> Float[Tensor, "batch head position d_head"]:
        """Rotate pairs (i, i + d_head/2) by position times frequency."""
        position = x.shape[-2]
        first, second = x.chunk(2, dim=-1)
        return x * self.cos[:position] + torch.cat([-second, first], dim=-1) * self.sin[:position]


class MLP(nn.Module):
    """Two linear maps with a GELU between them; W_in [d_model, d_ff], W_out [d_ff, d_model].

    GELU and not ReLU, because a Hessian of a piecewise linear network leaves out what its kinks contribute.
    """

    def __init__(self, *, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(d_model, d_ff))
        self.b_in = nn.Parameter(torch.zeros(d_ff))
        self.W_out = nn.Parameter(torch.empty(d_ff, d_model))
        self.b_out = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Float[Tensor, "batch position d_model"]) -> Float[Tensor, "batch position d_model"]:
        """Apply the MLP at every position."""
        return F.gelu(x @ self.W_in + self.b_in) @ self.W_out + self.b_out


class Block(nn.Module):
    """Attention and, when d_ff > 0, an MLP, each reading a normalised residual stream and adding to it."""

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        d_ff: int,
        seq_length: int,
        rotary: bool,
        layer_norm: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(d_model) if layer_norm else nn.Identity()
        self.attn = Attention(d_model=d_model, n_heads=n_heads, seq_length=seq_length, rotary=rotary, dropout=dropout)
        self.ln2 = nn.LayerNorm(d_model) if layer_norm and d_ff else nn.Identity()
        self.mlp = MLP(d_model=d_model, d_ff=d_ff) if d_ff else None
        self.dropout = dropout

    def forward(
        self, x: Float[Tensor, "batch position d_model"], *, need_pattern: bool = True
    ) -> tuple[Float[Tensor, "batch position d_model"], Float[Tensor, "batch head position position"] | None]:
        """Return the new residual stream and the attention pattern (see `Attention.forward`)."""
        written, pattern = self.attn(self.ln1(x), need_pattern=need_pattern)
        x = x + self._drop(written)
        if self.mlp is not None:
            x = x + self._drop(self.mlp(self.ln2(x)))
        return x, pattern

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Transformer(nn.Module):
    """Decoder-only transformer; attention-only unless d_ff > 0.

    Attributes:
        W_E: [vocab, d_model] token embedding.
        W_pos: [seq_length, d_model] learned positions, or None.
        blocks: list of `Block`; `blocks[l].attn.W_Q` is [head, d_model, d_head].
        ln_final: LayerNorm before the unembedding, or identity.
        W_U: [d_model, vocab] unembedding, not tied to W_E.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        seq_length: int,
        n_layers: int = 2,
        n_heads: int = 4,
        d_model: int = 64,
        d_ff: int = 0,
        positions: str = "learned",
        layer_norm: bool = True,
        dropout: float = 0.0,
        init_embedding_std: float = 0.2,
        init_weight_std: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if d_model % n_heads:
            msg = f"n_heads={n_heads} does not divide d_model={d_model}; choose a divisor"
            raise ValueError(msg)
        if positions not in ("learned", "rotary", "none"):
            msg = f"positions={positions!r} is unknown; use learned, rotary or none"
            raise ValueError(msg)
        if positions == "rotary" and (d_model // n_heads) % 2:
            msg = f"d_model={d_model} and n_heads={n_heads} give heads of odd width; rotary positions rotate pairs"
            raise ValueError(msg)
        self.vocab_size, self.seq_length = vocab_size, seq_length
        self.n_layers, self.n_heads, self.d_model, self.d_head = n_layers, n_heads, d_model, d_model // n_heads
        self.dropout = dropout
        self.W_E = nn.Parameter(torch.empty(vocab_size, d_model))
        self.W_pos = nn.Parameter(torch.empty(seq_length, d_model)) if positions == "learned" else None
        self.blocks = nn.ModuleList(
            Block(
                d_model=d_model,
                n_heads=n_heads,
                d_ff=d_ff,
                seq_length=seq_length,
                rotary=positions == "rotary",
                layer_norm=layer_norm,
                dropout=dropout,
            )
            for _ in range(n_layers)
        )
        self.ln_final = nn.LayerNorm(d_model) if layer_norm else nn.Identity()
        self.W_U = nn.Parameter(torch.empty(d_model, vocab_size))
        self._initialise(init_embedding_std, init_weight_std, generator)

    @classmethod
    def from_config(cls, config: RunConfig) -> "Transformer":
        """Build the model of a run; its weights are a function of `config.seed` alone."""
        return cls(
            vocab_size=config.vocab_size,
            seq_length=config.seq_length,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            d_model=config.d_model,
            d_ff=config.d_ff,
            positions=config.positions,
            layer_norm=config.layer_norm,
            dropout=config.dropout,
            init_embedding_std=config.init_embedding_std,
            init_weight_std=config.init_weight_std,
            generator=torch_generator(config.seed, "model"),
        )

    def forward(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position vocab"]:
        """Return logits; the logits at position t predict token t + 1."""
        return self._run(tokens, patterns=None)

    def forward_with_patterns(
        self, tokens: Int[Tensor, "batch position"]
    ) -> tuple[Float[Tensor, "batch position vocab"], Float[Tensor, "batch layer head position position"]]:
        """Return logits and the attention patterns [batch, layer, head, query, key] of the same pass."""
        patterns: list[Tensor] = []
        logits = self._run(tokens, patterns=patterns)
        return logits, torch.stack(patterns, dim=1)

    def _run(self, tokens: Tensor, patterns: list[Tensor] | None) -> Tensor:
        position = tokens.shape[1]
        if position > self.seq_length:
            msg = f"{position} tokens given to a model of seq_length {self.seq_length}; shorten the sequences"
            raise ValueError(msg)
        # F.embedding and not W_E[tokens]: its backward adds rows in one fixed order on CPU.
        x = F.embedding(tokens, self.W_E)
        if self.W_pos is not None:
            x = x + self.W_pos[:position]
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x, pattern = block(x, need_pattern=patterns is not None)
            if patterns is not None:
                patterns.append(pattern)
        logits: Tensor = self.ln_final(x) @ self.W_U
        return logits

    def head_weights(self) -> dict[str, Float[Tensor, "layer head _ _"]]:
        """Return W_Q, W_K, W_V [layer, head, d_model, d_head] and W_O [layer, head, d_head, d_model], detached."""
        names = ("W_Q", "W_K", "W_V", "W_O")
        return {name: torch.stack([getattr(block.attn, name).detach() for block in self.blocks]) for name in names}

    @torch.no_grad()
    def _initialise(self, embedding_std: float, weight_std: float, generator: torch.Generator | None) -> None:
        for name, parameter in self.named_parameters():
            kind = name.rsplit(".", 1)[-1]
            if not kind.startswith("W_"):
                continue  # LayerNorm gains are 1 and biases 0 already
            if kind in ("W_E", "W_pos"):
                std = embedding_std
            else:
                # Fan in of a head matrix is its second to last axis; W_O sums over heads and d_head.
                fan_in = self.d_model if kind == "W_O" else parameter.shape[-2]
                std = weight_std or 1.0 / math.sqrt(fan_in)
            parameter.normal_(0.0, std, generator=generator)


def rotary_angles(
    seq_length: int, d_head: int, *, base: float = 10_000.0
) -> tuple[Float[Tensor, "position d_head"], Float[Tensor, "position d_head"]]:
    """Return cosine and sine tables of rotary position embeddings (Su et al. 2021, RoFormer).

    Angle of pair i at position t: t * base^(-2i / d_head), i = 0 .. d_head/2 - 1, repeated for both halves.
    """
    frequency = base ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle = torch.arange(seq_length, dtype=torch.float64)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().float(), angle.sin().float()


def next_token_loss(model: nn.Module, tokens: Tokens) -> Float[Tensor, ""]:
    """Return the mean cross-entropy in nats of predicting token t + 1 from tokens 0..t, over all positions.

    Args:
        model: tokens -> logits [batch, position, vocab].
        tokens: [batch, position], or a pair of these and the targets [batch, position-1] to predict instead.
    """
    return next_token_criterion(next_token_logits(model, tokens), tokens)


def next_token_logits(model: nn.Module, tokens: Tokens) -> Float[Tensor, "batch position_minus_one vocab"]:
    """Return the logits at every position that has a next token; see `next_token_loss`."""
    logits: Tensor = model(tokens if isinstance(tokens, Tensor) else tokens[0])[:, :-1]
    return logits


def next_token_criterion(logits: Float[Tensor, "batch position_minus_one vocab"], tokens: Tokens) -> Float[Tensor, ""]:
    """Return the mean cross-entropy in nats of `next_token_logits` against what they predict."""
    targets = tokens[:, 1:] if isinstance(tokens, Tensor) else tokens[1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
