"""One batch of sequences together with what is known about it.

Tokens and masks travel in one object, so no metric can pair the tokens of one batch with the pattern list of another.
Logit index `t` predicts token `t + 1`; both masks use that index and therefore have one position less than `tokens`.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

# A method that returns the class it was called on; Self is refused by the run-time type checker of the tests.
Batch = TypeVar("Batch", bound="TokenBatch")


@dataclass(frozen=True, kw_only=True, eq=False)  # eq=False: == on tensors is elementwise
class TokenBatch:
    """Sequences of equal length without padding: every position is a real token and a real target.

    Attributes:
        tokens: [batch, position] token ids in 0..vocab_size-1.
        predictable: [batch, position-1] where an ideal induction circuit can know token t+1 from tokens 0..t. Each
            generator states its own rule.
        boundary: [batch, position-1] where token t+1 is the first token of the first repeat: knowable only to a model
            that knows the period. All False where there is no such position.
        period: [batch] block length in tokens, or None where nothing repeats with a period.
        targets: [batch, position-1] what the loss asks for at each logit, or None = the token that follows.
    """

    tokens: Int64[Tensor, "batch position"]
    predictable: Bool[Tensor, "batch position-1"]
    boundary: Bool[Tensor, "batch position-1"]
    period: Int64[Tensor, " batch"] | None = None
    targets: Int64[Tensor, "batch position-1"] | None = None

    def __len__(self) -> int:
        """Return the number of sequences."""
        return self.tokens.shape[0]

    @property
    def loss_input(self) -> Tensor | tuple[Tensor, Tensor]:
        """What `next_token_loss` takes: the tokens, with the targets where those are not the tokens that follow."""
        return self.tokens if self.targets is None else (self.tokens, self.targets)

    def to(self: Batch, device: torch.device | str) -> Batch:
        """Return the same batch, of the same class, on `device`; tensors that are there already are shared."""
        return self._map(lambda value: value.to(device))

    def first(self: Batch, n_sequences: int) -> Batch:
        """Return the first sequences with all that is known about them."""
        return self._map(lambda value: value[:n_sequences])

    def sha256(self) -> str:
        """Return a hash over shape, tokens, `predictable` and targets: equal on every device and byte order."""
        digest = hashlib.sha256(str(tuple(self.tokens.shape)).encode())
        digest.update(self.tokens.cpu().numpy().astype("<i8").tobytes())
        digest.update(self.predictable.cpu().numpy().astype("u1").tobytes())
        if self.targets is not None:
            digest.update(self.targets.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def _map(self: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return a copy with every tensor replaced by `change` of it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **changed)
