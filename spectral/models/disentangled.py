"""The disentangled transformer: two attention layers that learn a generalised induction head.

Layer 1 has one relative-position head per parent to be found, which copies past tokens; a polynomial feature selector
compares the copies of the query with those of every key, one feature per subset of heads; layer 2 is one head with one
scalar weight that averages the tokens whose features agree. All quantities that a theory speaks of are parameters of
their own: `w` (where a head looks), `c` (which subset of heads counts), `a` (how sharply layer 2 attends).

Everything here is dense, one L x L attention matrix per head, and follows the formulas term by term;
`spectral.gih.engine` computes the same function from counts, and is tested against this module.

Source: Chen, Sheen, Wang and Yang 2024, "Unveiling Induction Heads: Provable Training Dynamics and Feature Learning in
Transformers", arXiv 2409.10559.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from torch.nn import functional as F

Window = Literal["own", "common"]

NORM_EPS = 1e-7


def head_subsets(n_heads: int, degree: int) -> Bool[Tensor, "subset head"]:
    """Return all subsets of at most `degree` heads, the empty one first.

    Row order: as binary numbers with head 1 in front: 000, 001, 010, 011, 100, 101, 110 for 3 heads and degree 2.
    Number of rows: sum over j <= degree of C(n_heads, j).

    Raises:
        ValueError: no heads, or a degree outside 0..n_heads.
    """
    if n_heads < 1:
        msg = f"n_heads={n_heads}; give at least 1 head"
        raise ValueError(msg)
    if not 0 <= degree <= n_heads:
        msg = f"degree={degree} with n_heads={n_heads}; a subset has 0 to {n_heads} heads, choose such a degree"
        raise ValueError(msg)
    bits = torch.arange(2**n_heads)[:, None] >> torch.arange(n_heads - 1, -1, -1) & 1
    return bits[bits.sum(1) <= degree].bool()


def window_offsets(n_heads: int, window_length: int, window: Window) -> Int64[Tensor, "head offset"]:
    """Return how far back every entry of `w` looks.

    `own`: head h sees the offsets h .. h + window_length - 1; `common`: every head sees 1 .. window_length. In both the
    target offset of head h is h.

    Raises:
        ValueError: a window that is empty, or common windows that leave a head without its target offset.
    """
    if window not in ("own", "common"):
        msg = f"window={window!r} is unknown; use own or common"
        raise ValueError(msg)
    if window_length < 1:
        msg = f"window_length={window_length}; a head sees at least 1 offset"
        raise ValueError(msg)
    if window == "common" and n_heads > window_length:
        msg = f"n_heads={n_heads} heads with the common window 1..{window_length}: head {n_heads} has no offset of its "
        raise ValueError(msg + "own; give window_length >= n_heads or window='own'")
    first = torch.arange(1, n_heads + 1) if window == "own" else torch.ones(n_heads, dtype=torch.long)
    return first[:, None] + torch.arange(window_length)


class DisentangledTransformer(nn.Module):
    """The simplified model: trainable are the relative-position weights, the subset coefficients and one scalar.

    With X the one-hot tokens and a zero row (the query) behind them, rows l = 1 .. L + 1:

        sigma^h_{l,k} = softmax over k of w^h_k, k in window(h), k < l
        v^h_l = u / (|u| + 1e-7), u = sum_k sigma^h_{l,k} x_{l-k} (zero where no offset is valid)
        F_S(l) = prod_{h in S} max(0, <v^h_{L+1}, v^h_l>), F of the empty subset = 1
        p_S = c_S^2 / sum c^2, s_l = sum_S p_S F_S(l)
        A = softmax over l = 1 .. L of a s_l, y = sum_l A_l x_l

    The loss does not change with the length of c, nor when a constant is added to the weights of one head, so these
    directions carry no gradient: c . dL/dc = 0 and sum_k dL/dw^h_k = 0.

    Attributes:
        w: [head, offset] relative-position scores.
        c: [subset] coefficients of the subsets in `subsets`.
        a: [] weight of layer 2.
        subsets: [subset, head] see `head_subsets`.
        offsets: [head, offset] see `window_offsets`.
        token_symmetric: renaming the tokens of a sequence renames the output and changes nothing else.
    """

    token_symmetric = True
    sees_itself = False

    def __init__(
        self,
        *,
        vocab_size: int,
        n_heads: int = 3,
        window_length: int | None = None,
        window: Window = "own",
        degree: int = 2,
        w_plus: float = 3.0,
        w_minus: float = 0.1,
        c_init: float = 0.01,
        a_init: float = 0.01,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        """Build the model; the initial values are constants, nothing is drawn.

        Args:
            vocab_size: S, number of tokens.
            n_heads: H, heads of layer 1.
            window_length: M, offsets per head; None = n_heads.
            window: `own` or `common`.
            degree: D, largest subset of heads.
            w_plus: initial score of the target offset (head h: offset h).
            w_minus: initial score of every other offset.
            c_init: initial value of every coefficient, not 0.
            a_init: initial value of `a`.
            dtype: of the parameters; gradients of 1e-5 beside losses of 1 need float64.
        """
        super().__init__()
        if vocab_size < 2:
            msg = f"vocab_size={vocab_size}; give at least 2 tokens"
            raise ValueError(msg)
        if not math.isfinite(c_init) or c_init == 0:
            msg = f"c_init={c_init}; the selector divides by sum c^2, give a finite value other than 0"
            raise ValueError(msg)
        subsets = head_subsets(n_heads, degree)
        offsets = window_offsets(n_heads, n_heads if window_length is None else window_length, window)
        self.vocab_size, self.n_heads, self.degree, self.window = vocab_size, n_heads, degree, window
        self.window_length = offsets.shape[1]
        target = offsets == torch.arange(1, n_heads + 1)[:, None]
        # Not torch.where on two numbers, which rounds them to float32.
        self.w = nn.Parameter(torch.full(target.shape, w_minus, dtype=dtype).masked_fill(target, w_plus))
        self.c = nn.Parameter(torch.full((len(subsets),), c_init, dtype=dtype))
        self.a = nn.Parameter(torch.tensor(a_init, dtype=dtype))
        self.register_buffer("subsets", subsets, persistent=False)
        self.register_buffer("offsets", offsets, persistent=False)
        self.subsets: Tensor
        self.offsets: Tensor

    @property
    def subset_names(self) -> list[str]:
        """Return the subsets as digit strings, head 1 in front, for example 110."""
        return ["".join("1" if member else "0" for member in row) for row in self.subsets.tolist()]

    def subset_shares(self) -> Float[Tensor, " subset"]:
        """Return p_S = c_S^2 / sum c^2, which sum to 1."""
        square = self.c**2
        return square / square.sum()

    def forward(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch vocab"]:
        """Return the predicted probabilities of the token that follows the last position.

        Positions without a predecessor are keys too. The rows sum to 1.
        """
        return (self.attention(tokens)[:, None] @ self._one_hot(tokens)).squeeze(1)

    def attention(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position"]:
        """Return where the query attends in layer 2."""
        v = self.copies(tokens)
        query, keys = v[:, :, -1:], v[:, :, :-1]
        kernels = (query * keys).sum(-1).clamp(min=0)
        query_norms = (query**2).sum(-1).expand_as(kernels)
        s = self.similarity(kernels.transpose(0, 1), query_norms.transpose(0, 1), (keys**2).sum(-1).transpose(0, 1))
        return torch.softmax(self.a * s, dim=-1)

    def copies(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch head row vocab"]:
        """Return v of every row, the query last."""
        x = self._with_query(tokens)
        band = self._band(x.shape[1])
        return _direction(_softmax_or_zero(band) @ x[:, None])

    def similarity(
        self,
        kernels: Float[Tensor, "head ..."],
        query_norms: Float[Tensor, "head ..."],
        key_norms: Float[Tensor, "head ..."],
    ) -> Float[Tensor, "..."]:
        """Return s from the kernels max(0, <v_query, v_key>) of every head.

        The squared lengths of the copies are for variants that normalise by them.
        """
        del query_norms, key_norms
        s: Tensor = torch.tensordot(self.subset_shares(), subset_products(kernels, self.subsets), dims=1)
        return s

    def window_copies(
        self, windows: Float[Tensor, "window offset vocab"], *, head: int
    ) -> Float[Tensor, "window vocab"]:
        """Return v of one head for one-hot tokens at its offsets, given directly; a missing token is a zero row."""
        weight = (self.w[head] - self.w[head].detach().max()).exp()
        u = windows.mT @ weight
        total = u.sum(-1, keepdim=True)
        # A window without a token is zero over zero; both the value and its derivatives are to be 0.
        return _direction(u / torch.where(total > 0, total, 1.0))

    def _one_hot(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens.long(), self.vocab_size).to(self.w.dtype)

    def _with_query(self, tokens: Tensor) -> Tensor:
        return F.pad(self._one_hot(tokens), (0, 0, 0, 1))

    def _band(self, n_rows: int) -> Float[Tensor, "head row row"]:
        """Return w on its diagonals, -inf elsewhere."""
        row = torch.arange(n_rows, device=self.w.device)
        distance = row[:, None] - row
        # One term per offset: heads, rows and columns at which the distance is that offset.
        hit = distance == self.offsets[:, :, None, None]
        scores = (hit * self.w[:, :, None, None]).sum(1)
        return scores.masked_fill(~hit.any(1), -math.inf)


def subset_products(
    values: Float[Tensor, "head ..."], subsets: Bool[Tensor, "subset head"]
) -> Float[Tensor, "subset ..."]:
    """Return the product of the values over the heads of every subset; 1 for the empty one.

    Plain products: a logarithm of zero kernels would have to be guarded.
    """
    products = []
    for row in subsets.tolist():
        product = torch.ones_like(values[0])
        for value in (values[head] for head, member in enumerate(row) if member):
            product = product * value
        products.append(product)
    return torch.stack(products)


def _softmax_or_zero(scores: Tensor) -> Tensor:
    """Return the softmax over the last axis, 0 in rows that are all -inf."""
    valid = (scores > -math.inf).any(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(~valid, 0.0), dim=-1) * valid


def _direction(u: Tensor) -> Tensor:
    """Return u / (|u| + 1e-7), with zero derivatives at u = 0 in place of undefined ones."""
    square = (u**2).sum(-1, keepdim=True)
    length = torch.where(square > 0, square, 1.0).sqrt()
    return u / (length + NORM_EPS)
