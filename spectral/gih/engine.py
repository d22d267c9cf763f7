"""The disentangled transformer on compressed chains: the same numbers as the dense model, hundreds of times faster.

For every joint pair j of a query window and a key window (see `spectral.gih.compression`):

    s_j = sum_S p_S prod_{h in S} K^h_{m(h, j)},  e_j = exp(a s_j)
    y_b(token) = sum_j n_{b, token, j} e_j / sum_{token'} sum_j n_{b, token', j} e_j

K^h over the pairs of one head, m = `members`, n = `votes`. The sparse product is linear, so gradients are the
transposed product and everything can be differentiated twice: `HessianOperator` works on compressed chains as a batch.

What does not change while a stage trains is computed once: the features F_S while the heads stand still, s while only
`a` moves, and while c stands still subsets and heads without weight are left out altogether.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import sparse
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from spectral.gih.compression import CompressedChains, HeadPairs
from spectral.models import DisentangledTransformer, LastTokenLoss, subset_products
from spectral.models.last_token import PROBABILITY_FLOOR

CACHED_ROWS = 200_000
NEGLIGIBLE_SHARE = 1e-40  # s has entries of order 1, so a share below 1e-17 changes no bit of it


class Engine:
    """Predictions of one model on one set of chains while some of its parameters train.

    Args:
        model: its parameters are read at every call.
        chains: compressed for a model of this shape.
        training: names of the parameters that may change between calls; None = all. The others must not be changed:
            what depends on them alone was computed at the start.

    Raises:
        ValueError: the chains were compressed for a model of another shape, or a name is no parameter.
    """

    def __init__(
        self, model: DisentangledTransformer, chains: CompressedChains, *, training: Collection[str] | None = None
    ) -> None:
        names = dict(model.named_parameters())
        unknown = sorted(set(training or ()) - set(names))
        if unknown:
            msg = f"training={unknown} are no parameters of the model; choose from {', '.join(names)}"
            raise ValueError(msg)
        _require_same_shape(model, chains)
        free = set(names) if training is None else set(training)
        self._model = model
        self._kept = torch.arange(len(model.subsets))
        selector_free = bool(free & {"c", "c_residual"})
        heads_free = bool(free - {"a", "c", "c_residual"})
        # The standard normaliser of the full variant needs every subset for its lengths.
        if not selector_free and getattr(model, "normaliser", "plain") == "plain":
            self._kept = torch.nonzero(model.subset_shares().detach() > NEGLIGIBLE_SHARE).flatten()
            seen = model.subsets[self._kept].any(0).nonzero().flatten().tolist()
            chains = chains.restrict(seen)
        self.chains = chains
        self._votes = SparseMap(chains.votes)
        self._windows = [_distinct_windows(pairs, model) for pairs in chains.heads]
        self._features: Tensor | None = None
        self._similarity: Tensor | None = None
        if not heads_free:
            with torch.no_grad():
                if not selector_free:
                    self._similarity = self._compute_similarity()
                elif self._is_plain:
                    self._features = self._compute_features()

    def probabilities(self) -> Float[Tensor, "sequence vocab"]:
        """Return y of every sequence, differentiable in the model's parameters."""
        token = torch.arange(self.chains.vocab_size)
        return self._shifted().T.gather(1, (token - self.chains.targets[:, None]) % self.chains.vocab_size)

    def losses(self, *, loss: LastTokenLoss = "double_softmax", eps: float = 1e-4) -> Float[Tensor, " sequence"]:
        """Return the loss of every sequence, nats; see `spectral.models.last_token_losses`."""
        return _target_first_losses(self._shifted(), loss, eps)

    def loss(self, *, loss: LastTokenLoss = "double_softmax", eps: float = 1e-4) -> Float[Tensor, ""]:
        """Return the mean loss over the sequences, nats."""
        return self.losses(loss=loss, eps=eps).mean()

    def training_loss(self, *, loss: LastTokenLoss = "double_softmax", eps: float = 1e-4) -> Float[Tensor, ""]:
        """Return `loss` as a node that can be differentiated once only, for a third less time an update."""
        scores = self._model.a * self.similarity()
        value: Tensor = _FusedLoss.apply(scores, self._votes, self.chains.vocab_size, loss, eps)
        return value

    def hits(self) -> Bool[Tensor, " sequence"]:
        """Return whether the target is the most probable token; a tie with another token is no hit."""
        y = self._shifted().detach()
        return y[0] > y[1:].max(0).values

    def forces(self, *, loss: LastTokenLoss = "double_softmax", eps: float = 1e-4) -> Float[Tensor, " subset"]:
        """Return `subset_forces`; needs an engine with `c` among the parameters that train."""
        if not self._is_plain:
            msg = "the standard normaliser has no shares p_S; build the model with normaliser='plain'"
            raise ValueError(msg)
        if len(self._kept) < len(self._model.subsets):
            msg = "subsets without weight were left out of this engine; build it with training=None"
            raise ValueError(msg)
        a = self._model.a.detach()
        if float(a) == 0:
            msg = "a is 0, where the forces on the shares vanish; give a small value such as 0.01"
            raise ValueError(msg)
        with torch.no_grad():
            features = self.features()
        shares = self._model.subset_shares().detach().requires_grad_()
        with torch.enable_grad():
            value = _target_first_losses(self._shifted(shares @ features), loss, eps).mean()
        (gradient,) = torch.autograd.grad(value, shares)
        return -gradient / a

    def similarity(self) -> Float[Tensor, " joint"]:
        """Return s of every joint pair."""
        return self._compute_similarity() if self._similarity is None else self._similarity

    def features(self) -> Float[Tensor, "subset joint"]:
        """Return F_S of every joint pair, for all subsets whose share is not negligible."""
        return self._compute_features() if self._features is None else self._features

    @property
    def _is_plain(self) -> bool:
        return getattr(self._model, "normaliser", "plain") == "plain"

    def _shifted(self, similarity: Tensor | None = None) -> Float[Tensor, "token sequence"]:
        """Return y with the target's probability in row 0."""
        scores = self._model.a * (self.similarity() if similarity is None else similarity)
        # One shift for all sequences: it cancels, and keeps the exponentials finite for any a.
        # Votes are added up in float64 whatever the precision of the model.
        votes = self._votes((scores - scores.detach().max()).exp().double()).view(self.chains.vocab_size, -1)
        return votes / votes.sum(0)

    def _compute_similarity(self) -> Tensor:
        if self._is_plain:
            return self._model.subset_shares()[self._kept] @ self.features()
        kernels, query, key = self._head_products()
        return self._model.similarity(kernels, query, key)

    def _compute_features(self) -> Tensor:
        kernels = self._head_products()[0]
        return subset_products(kernels, self._model.subsets[self._kept])

    def _head_products(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return kernels and squared lengths of the copies, [head, joint] each; heads that are left out have zeros."""
        n_joint = self.chains.members.shape[1]
        rows = [[self._model.w.new_zeros(n_joint)] * 3 for _ in range(self._model.n_heads)]
        for pairs, member, (windows, place) in zip(self.chains.heads, self.chains.members, self._windows, strict=True):
            query, key = self._model.window_copies(windows, head=pairs.head)[place].chunk(2)
            kernel = (query * key).sum(1).clamp(min=0)
            parts = [kernel] if self._is_plain else [kernel, (query**2).sum(1), (key**2).sum(1)]
            rows[pairs.head] = [*(part[member] for part in parts), *rows[pairs.head][len(parts) :]]
        kernels, query_norms, key_norms = (torch.stack(column) for column in zip(*rows, strict=True))
        return kernels, query_norms, key_norms


def compressed_loss(
    model: DisentangledTransformer,
    chains: CompressedChains,
    *,
    loss: LastTokenLoss = "double_softmax",
    eps: float = 1e-4,
) -> Float[Tensor, ""]:
    """Return the mean loss on compressed chains, a loss function for `HessianOperator` and `SpectralMonitor`."""
    return Engine(model, chains).loss(loss=loss, eps=eps)


def subset_forces(
    model: DisentangledTransformer,
    chains: CompressedChains,
    *,
    loss: LastTokenLoss = "double_softmax",
    eps: float = 1e-4,
) -> Float[Tensor, " subset"]:
    """Return J_S, how strongly the loss pulls on the share of every subset, nats per unit of p_S and of a.

    Formula: J_S = -(1/a) dL/dp_S with p unconstrained. Then -dL/da = sum_S p_S J_S and
             -dL/dc_S = (2 a c_S / sum c^2) (J_S - sum_S' p_S' J_S').
    Range:   any; 0 for the empty subset. For a -> 0, long sequences, one-hot copying and the loss -ln y it is the
             modified chi-square information of the subset (`spectral.gih.information`).
    Holds:   for models with plain normaliser and a other than 0.
    Source:  the chain rule; Chen et al. 2024 for the quantity.
    """
    return Engine(model, chains).forces(loss=loss, eps=eps)


class SparseMap:
    """A constant sparse matrix on the CPU whose product with a vector can be differentiated any number of times."""

    def __init__(self, matrix: sparse.csr_matrix) -> None:
        self.matrix = matrix
        # Row by row is three times as fast as column by column as long as the vector stays in the cache.
        self.transposed = matrix.T.tocsr() if matrix.shape[0] <= CACHED_ROWS else matrix.T

    def __call__(self, vector: Float[Tensor, " column"]) -> Float[Tensor, " row"]:
        """Return the product."""
        product: Tensor = _SparseProduct.apply(vector, self.matrix, self.transposed)
        return product


class _SparseProduct(torch.autograd.Function):
    """A x; its derivative is the product with the transpose, which is again of this kind."""

    @staticmethod
    def forward(ctx: FunctionCtx, vector: Tensor, matrix: Any, transposed: Any) -> Tensor:
        ctx.pair = (matrix, transposed)  # type: ignore[attr-defined]
        return torch.from_numpy(matrix @ vector.detach().numpy())

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        matrix, transposed = ctx.pair  # type: ignore[attr-defined]
        return _SparseProduct.apply(gradient, transposed, matrix), None, None


class _FusedLoss(torch.autograd.Function):
    """The mean loss from the scores a s of the joint pairs, with its gradient computed in the same pass.

    With V the votes, Z = sum V over tokens, y = V / Z and g = dl/dy: dl/dV = (g - <g, y>) / Z.
    """

    @staticmethod
    @np.errstate(divide="ignore", invalid="ignore")  # diverged weights give NaN, which stops the training
    def forward(
        ctx: FunctionCtx, scores: Tensor, votes: SparseMap, n_tokens: int, loss: LastTokenLoss, eps: float
    ) -> Tensor:
        given = scores.detach().double().numpy()
        weights = np.exp(given - given.max())
        y = (votes.matrix @ weights).reshape(n_tokens, -1)
        inverse = 1 / y.sum(0)
        y *= inverse
        if loss == "nll":
            above = y[0] + eps
            values = -np.log(np.maximum(above, PROBABILITY_FLOOR))
            slope = np.where(above >= PROBABILITY_FLOOR, -1 / np.maximum(above, PROBABILITY_FLOOR), 0.0)
            # g has one entry, at the target: dl/dV = slope (1 at the target - y_target) / Z
            gradient = np.broadcast_to(-slope * y[0], y.shape).copy()
            gradient[0] += slope
        else:
            gradient = np.exp(y)
            total = gradient.sum(0)
            values = np.log(total) - y[0]
            gradient /= total
            gradient[0] -= 1
            gradient -= (gradient * y).sum(0)
        gradient *= inverse / len(inverse)
        product = torch.from_numpy(votes.transposed @ gradient.ravel() * weights)
        ctx.gradient = product.to(scores.dtype)  # type: ignore[attr-defined]
        return torch.tensor(values.mean(), dtype=torch.float64)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        return upstream.to(ctx.gradient.dtype) * ctx.gradient, None, None, None, None  # type: ignore[attr-defined]


def _target_first_losses(y: Float[Tensor, "token sequence"], loss: LastTokenLoss, eps: float) -> Tensor:
    """Return `last_token_losses` of probabilities whose row 0 belongs to the target."""
    if loss == "nll":
        return -(y[0] + eps).clamp(min=PROBABILITY_FLOOR).log()
    return y.exp().sum(0).log() - y[0]


def _distinct_windows(pairs: HeadPairs, model: DisentangledTransformer) -> tuple[Tensor, Tensor]:
    """Return the one-hot windows of one head without repeats, and where the query and key of every pair stand."""
    windows, place = torch.cat([pairs.query, pairs.key]).unique(dim=0, return_inverse=True)
    return F.one_hot(windows, model.vocab_size + 1)[..., : model.vocab_size].to(model.w.dtype), place


def _require_same_shape(model: DisentangledTransformer, chains: CompressedChains) -> None:
    width = model.window_length + model.sees_itself
    widths = {pairs.key.shape[1] for pairs in chains.heads}
    if chains.vocab_size != model.vocab_size or len(chains.heads) != model.n_heads or widths != {width}:
        msg = f"chains compressed for {len(chains.heads)} heads and {chains.vocab_size} tokens do not fit the model; "
        raise ValueError(msg + "compress the tokens with this model")
