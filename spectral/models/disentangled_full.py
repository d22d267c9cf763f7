"""The full variant of the disentangled transformer: layer 1 attends by content as well, and has values and a LayerNorm.

Source: Chen, Sheen, Wang and Yang 2024, arXiv 2409.10559, appendix.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectral.models.disentangled import DisentangledTransformer, Window, head_subsets, subset_products

Normaliser = Literal["plain", "standard"]

DIAGONAL = 1e-6  # score with which a token attends to itself
SIMILARITY_EPS = 1e-6  # smallest denominator of the standard normaliser


class FullDisentangledTransformer(DisentangledTransformer):
    """The full variant: layer 1 also attends by content, has a value matrix and a LayerNorm in place of the norm.

        scores = X W_Q W_K^T X^T + B, B = w on the window, 1e-6 on the diagonal, -inf elsewhere
        v^h = LayerNorm(softmax(scores) X W_V), one affine LayerNorm with eps 1e-5 shared by all heads

    The inner products may be negative and longer than 1. `normaliser`:

        plain:    s_l = sum_S p_S F_S(l)
        standard: s_l = sum_S c_S^2 F_S(l) / max(1e-6, n_query n_key), with n_query^2 = sum_S c_S^2 prod |v_query^h|^2
                  and n_key^2 the same of the key, plus the share of the residual stream
                  sum_R c_R^2 prod_{h in R} |v_key^h|^2 over the subsets R of at most degree - 1 heads

    Attributes:
        W_Q, W_K, W_V: [head, vocab, vocab], a constant times the identity at the start.
        norm: the LayerNorm.
        c_residual: [subset of at most degree - 1 heads] coefficients c_R; only with the standard normaliser.
    """

    token_symmetric = False
    sees_itself = True

    def __init__(
        self,
        *,
        vocab_size: int,
        n_heads: int = 3,
        window_length: int | None = None,
        window: Window = "own",
        degree: int = 2,
        w_plus: float = 1.0,
        w_minus: float = 0.01,
        c_init: float = 0.01,
        a_init: float = 0.01,
        qk_init: float = 0.01,
        v_init: float = 0.01,
        normaliser: Normaliser = "plain",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        """Build the model; arguments as in `DisentangledTransformer`, and the factors of W_Q, W_K and of W_V."""
        super().__init__(
            vocab_size=vocab_size,
            n_heads=n_heads,
            window_length=window_length,
            window=window,
            degree=degree,
            w_plus=w_plus,
            w_minus=w_minus,
            c_init=c_init,
            a_init=a_init,
            dtype=dtype,
        )
        if normaliser not in ("plain", "standard"):
            msg = f"normaliser={normaliser!r} is unknown; use plain or standard"
            raise ValueError(msg)
        if normaliser == "standard" and degree < 1:
            msg = "normaliser='standard' with degree=0 has no residual subset; use plain or degree >= 1"
            raise ValueError(msg)
        self.normaliser = normaliser
        identity = torch.eye(vocab_size, dtype=dtype).repeat(n_heads, 1, 1)
        self.W_Q = nn.Parameter(qk_init * identity)
        self.W_K = nn.Parameter(qk_init * identity)
        self.W_V = nn.Parameter(v_init * identity)
        self.norm = nn.LayerNorm(vocab_size, dtype=dtype)
        residual = head_subsets(n_heads, max(degree - 1, 0))
        self.register_buffer("residual_subsets", residual, persistent=False)
        self.residual_subsets: Tensor
        if normaliser == "standard":
            self.c_residual = nn.Parameter(torch.full((len(residual),), c_init, dtype=dtype))

    def copies(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch head row vocab"]:
        """Return v of every row, the query last."""
        x = self._with_query(tokens)[:, None]
        n_rows = x.shape[2]
        itself = torch.eye(n_rows, dtype=torch.bool, device=x.device)
        band = self._band(n_rows).masked_fill(itself, DIAGONAL)
        scores = x @ self.W_Q @ self.W_K.mT @ x.mT + band
        copies: Tensor = self.norm(torch.softmax(scores, dim=-1) @ x @ self.W_V)
        return copies

    def window_copies(
        self, windows: Float[Tensor, "window offset vocab"], *, head: int
    ) -> Float[Tensor, "window vocab"]:
        """Return v of one head for one-hot tokens given directly: the row's own, then those at the head's offsets."""
        band = torch.cat([self.w.new_tensor([DIAGONAL]), self.w[head]])
        missing = windows.sum(-1) == 0
        missing[:, 0] = False  # the query row has no token, but attends to itself all the same
        content = torch.einsum("nv,vu,nku->nk", windows[:, 0], self.W_Q[head] @ self.W_K[head].mT, windows)
        pattern = torch.softmax((content + band).masked_fill(missing, -math.inf), dim=-1)
        copies: Tensor = self.norm(torch.einsum("nk,nkv->nv", pattern, windows) @ self.W_V[head])
        return copies

    def similarity(
        self,
        kernels: Float[Tensor, "head ..."],
        query_norms: Float[Tensor, "head ..."],
        key_norms: Float[Tensor, "head ..."],
    ) -> Float[Tensor, "..."]:
        """Return s from the kernels of every head, normalised as `normaliser` says."""
        if self.normaliser == "plain":
            return super().similarity(kernels, query_norms, key_norms)
        square = self.c**2
        query = torch.tensordot(square, subset_products(query_norms, self.subsets), dims=1)
        key = torch.tensordot(square, subset_products(key_norms, self.subsets), dims=1)
        key = key + torch.tensordot(self.c_residual**2, subset_products(key_norms, self.residual_subsets), dims=1)
        above = torch.tensordot(square, subset_products(kernels, self.subsets), dims=1)
        s: Tensor = above / (query * key).sqrt().clamp(min=SIMILARITY_EPS)
        return s
