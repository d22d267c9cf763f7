"""What a set of chains is to the disentangled transformer: counts instead of L x L attention.

Layer 1 sees of a position only the tokens at its heads' offsets, and layer 2 sees only how well these agree with the
query's. A key therefore counts through its *pair*: the tokens around the query together with the tokens around the
key. There are few different pairs (thousands, for 9,000 chains of 100 tokens with 3 heads), and a sequence is told
completely by how often each pair came with each token. All weights enter through one table over the pairs; a
sequence's votes are a sparse matrix of counts times that table.

Two reductions, both exact:

* Head by head: what one head does depends on its own offsets only, so kernels are computed for the different pairs of
  one head (hundreds) and combined afterwards.
* Renaming: if renaming the tokens of a sequence changes nothing but the names, the pair of one head counts only up to a
  renaming; the tokens are numbered in their order of appearance. The number of pairs of a head then stays below the
  number of ways to partition 2 M tokens, whatever the vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int, Int64
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from spectral.models import DisentangledTransformer

BLOCK = 20_000  # sequences coded at a time
LOOKUP_LIMIT = 2**24  # code spaces up to this size are numbered by a table, larger ones by sorting
CODE_LIMIT = 2**62


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadPairs:
    """The different pairs of (query window, key window) that one head meets.

    Attributes:
        head: which head, from 0.
        query, key: [pair, offset] tokens at the head's offsets (behind the row's own token, for models that see it);
            the vocabulary size stands for a missing token.
    """

    head: int
    query: Int64[Tensor, "pair offset"]
    key: Int64[Tensor, "pair offset"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CompressedChains:
    """Chains as counts of (pair, token).

    Attributes:
        vocab_size: S.
        seq_length: tokens that a model reads per sequence.
        heads: the pairs of every head that is kept.
        members: [head, joint] which pair of every head a joint pair consists of.
        votes: CSR [k * n_sequences + sequence, joint], how many keys of a sequence carry the token target + k (modulo
            S) and make this pair. With the target in front, the losses need no look-up.
        targets: [sequence] the token to be predicted.
    """

    vocab_size: int
    seq_length: int
    heads: tuple[HeadPairs, ...]
    members: Int64[Tensor, "head joint"]
    votes: sparse.csr_matrix
    targets: Int64[Tensor, " sequence"]

    @property
    def n_sequences(self) -> int:
        """Return the number of sequences."""
        return len(self.targets)

    @property
    def n_bytes(self) -> int:
        """Return the memory of the counts."""
        return int(self.votes.data.nbytes + self.votes.indices.nbytes + self.votes.indptr.nbytes)

    def take(self, sequences: slice | Int64[Tensor, " chosen"]) -> "CompressedChains":
        """Return some of the sequences; pairs that none of them meets stay in the table."""
        rows = torch.arange(self.n_sequences)[sequences]
        token_rows = torch.arange(self.vocab_size)[:, None] * self.n_sequences + rows
        return replace(self, votes=self.votes[token_rows.flatten().numpy()], targets=self.targets[rows])

    def restrict(self, kept: list[int]) -> "CompressedChains":
        """Return the chains as seen by some of the heads: pairs that differ in other heads only are merged."""
        heads = tuple(pairs for pairs in self.heads if pairs.head in kept)
        place = [i for i, pairs in enumerate(self.heads) if pairs.head in kept]
        if not place:
            members, merged = torch.zeros(0, 1, dtype=torch.long), np.zeros(self.members.shape[1], dtype=np.int64)
        else:
            members, inverse = self.members[place].unique(dim=1, return_inverse=True)
            merged = inverse.numpy()
        votes = sparse.csr_matrix(
            (self.votes.data.copy(), merged[self.votes.indices].astype(np.int32), self.votes.indptr.copy()),
            shape=(self.votes.shape[0], members.shape[1]),
        )
        votes.sum_duplicates()
        return replace(self, heads=heads, members=members, votes=votes)


def compress(tokens: Int[Tensor, "sequence position"], model: DisentangledTransformer) -> CompressedChains:
    """Count the chains for models like this one: same vocabulary, heads, offsets and kind.

    Cost: a few passes over the tokens, about 20 s for 1e6 sequences of 100 tokens; working memory 4 bytes a token.

    Args:
        tokens: the last token of every sequence is the one to predict.
        model: its shape is used, not its weights.

    Raises:
        ValueError: sequences that are too short, tokens outside the vocabulary, or windows with too many possible
            contents to number them.
    """
    vocab_size = model.vocab_size
    if tokens.shape[1] < 2:
        msg = f"sequences of {tokens.shape[1]} token; give at least 2, the last one is predicted from the others"
        raise ValueError(msg)
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        msg = f"tokens lie outside 0..{vocab_size - 1}; give a model with vocab_size above the largest token"
        raise ValueError(msg)
    coder = _Coder(tokens.cpu().numpy(), model)
    joint = np.zeros((tokens.shape[0], tokens.shape[1] - 1), dtype=np.int32)
    heads, members, n_joint = [], np.zeros((0, 1), dtype=np.int64), 1
    for head in range(model.n_heads):
        raw = _Numbering(coder.code_space)
        for block in coder.blocks():
            raw.add(coder.codes(block, head))
        windows = coder.decode(raw.freeze())
        if model.token_symmetric:
            windows = _in_order_of_appearance(windows, vocab_size)
        patterns, pattern_of = np.unique(windows, axis=0, return_inverse=True)
        pattern_of = pattern_of.reshape(-1)
        # Folding head after head keeps the codes small: a product over all heads at once would overflow.
        fold = _Numbering(n_joint * len(patterns))
        for block in coder.blocks():
            fold.add(joint[block] * np.int64(len(patterns)) + pattern_of[raw.number(coder.codes(block, head))])
        parts = fold.freeze()
        for block in coder.blocks():
            code = joint[block] * np.int64(len(patterns)) + pattern_of[raw.number(coder.codes(block, head))]
            joint[block] = fold.number(code)
        members = np.concatenate([members[:, parts // len(patterns)], parts[None] % len(patterns)])
        n_joint, half = len(parts), patterns.shape[1] // 2
        query, key = (torch.from_numpy(part.copy()) for part in (patterns[:, :half], patterns[:, half:]))
        heads.append(HeadPairs(head=head, query=query, key=key))
    return CompressedChains(
        vocab_size=vocab_size,
        seq_length=tokens.shape[1] - 1,
        heads=tuple(heads),
        members=torch.from_numpy(members),
        votes=_count(coder, joint, tokens[:, -1:].cpu().numpy(), vocab_size, n_joint),
        targets=tokens[:, -1].long().cpu(),
    )


class _Coder:
    """Numbers for what a head sees around the query and around every key of a sequence."""

    def __init__(self, tokens: NDArray[np.int64], model: DisentangledTransformer) -> None:
        self.keys = tokens[:, :-1]
        self._null = model.vocab_size
        own = [[0]] * model.n_heads if model.sees_itself else [[]] * model.n_heads
        self._offsets = [first + row for first, row in zip(own, model.offsets.tolist(), strict=True)]
        self._width = len(self._offsets[0])
        self.code_space = (self._null + 1) ** (2 * self._width)
        if self.code_space > CODE_LIMIT:
            msg = f"a window of {self._width} tokens among {self._null} has too many contents to number; "
            raise ValueError(msg + "reduce window_length or vocab_size")

    def blocks(self) -> Iterator[slice]:
        for start in range(0, max(len(self.keys), 1), BLOCK):
            yield slice(start, start + BLOCK)

    def codes(self, block: slice, head: int) -> NDArray[np.int64]:
        """Return [sequence, key] a number for the pair of query window and key window."""
        keys, base = self.keys[block], self._null + 1
        reach = max(self._offsets[head])
        padded = np.pad(keys, ((0, 0), (reach, 1)), constant_values=self._null)  # the query row has no token
        windows = np.zeros((keys.shape[0], keys.shape[1] + 1), dtype=np.int64)
        for offset in self._offsets[head]:
            windows = windows * base + padded[:, reach - offset : padded.shape[1] - offset]
        pairs: NDArray[np.int64] = windows[:, -1:] * base**self._width + windows[:, :-1]
        return pairs

    def decode(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return [code, 2 * offset] the tokens of the query window and of the key window."""
        digits = np.empty((len(codes), 2 * self._width), dtype=np.int64)
        for place in range(2 * self._width - 1, -1, -1):
            codes, digits[:, place] = np.divmod(codes, self._null + 1)
        return digits


class _Numbering:
    """Consecutive numbers, in ascending order, for the codes that occur."""

    def __init__(self, space: int) -> None:
        self._flags = np.zeros(space, dtype=np.bool_) if space <= LOOKUP_LIMIT else None
        self._found: list[NDArray[np.int64]] = []

    def add(self, codes: NDArray[np.int64]) -> None:
        if self._flags is not None:
            self._flags[codes] = True
        else:
            self._found.append(np.unique(codes))

    def freeze(self) -> NDArray[np.int64]:
        """Return the codes, the one with number i at place i."""
        if self._flags is not None:
            self._codes: NDArray[np.int64] = np.flatnonzero(self._flags)
            self._table: NDArray[np.int32] = np.cumsum(self._flags, dtype=np.int32) - 1
        else:
            self._codes = np.unique(np.concatenate(self._found))
        return self._codes

    def number(self, codes: NDArray[np.int64]) -> NDArray[np.int32]:
        numbers = self._table[codes] if self._flags is not None else np.searchsorted(self._codes, codes)
        return numbers.astype(np.int32, copy=False)


def _in_order_of_appearance(windows: NDArray[np.int64], null: int) -> NDArray[np.int64]:
    """Rename the tokens of every row to 0, 1, .. in their order of appearance; missing ones stay missing."""
    renamed = np.full_like(windows, null)
    n_names = np.zeros(len(windows), dtype=np.int64)
    for place in range(windows.shape[1]):
        earlier = windows[:, :place] == windows[:, place, None]
        known = earlier.any(1)
        name = np.where(known, renamed[np.arange(len(windows)), earlier.argmax(1)] if place else 0, n_names)
        missing = windows[:, place] == null
        renamed[:, place] = np.where(missing, null, name)
        n_names += ~known & ~missing
    return renamed


def _count(
    coder: _Coder, joint: NDArray[np.int32], targets: NDArray[np.int64], vocab_size: int, n_joint: int
) -> sparse.csr_matrix:
    """Return the votes, counted in blocks because the list of all keys would take several times their memory."""
    parts: list[list[sparse.csr_matrix]] = [[] for _ in range(vocab_size)]
    for block in coder.blocks():
        keys = coder.keys[block]
        row = (keys - targets[block]) % vocab_size * len(keys) + np.arange(len(keys))[:, None]
        ones, shape = np.ones(keys.size), (len(keys) * vocab_size, n_joint)
        counts = sparse.csr_matrix((ones, (row.ravel().astype(np.int32), joint[block].ravel())), shape=shape)
        for k in range(vocab_size):
            parts[k].append(counts[k * len(keys) : (k + 1) * len(keys)])
    return sparse.vstack([part for tokens in parts for part in tokens], format="csr")
