"""TokenBatch: one object for tokens and masks, with a hash that pins both."""

import dataclasses
import hashlib

import pytest
import torch

from spectral.data import TokenBatch


def batch_of(tokens, predictable=None):
    tokens = torch.tensor(tokens)
    mask = torch.zeros(len(tokens), tokens.shape[1] - 1, dtype=torch.bool)
    return TokenBatch(tokens=tokens, predictable=mask if predictable is None else predictable, boundary=mask)


def test_length_is_the_number_of_sequences():
    assert len(batch_of([[1, 2, 3], [4, 5, 6]])) == 2


def test_hash_is_that_of_little_endian_tokens_and_mask():
    expected = hashlib.sha256(b"(1, 3)" + b"".join(n.to_bytes(8, "little") for n in (1, 2, 300)) + b"\0\0")
    assert batch_of([[1, 2, 300]]).sha256() == expected.hexdigest()


def test_hash_sees_tokens_mask_and_shape():
    variants = [
        batch_of([[1, 2, 3, 4]]),
        batch_of([[1, 2, 3, 5]]),
        batch_of([[1, 2], [3, 4]]),
        batch_of([[1, 2, 3, 4]], torch.tensor([[True, False, False]])),
    ]
    assert len({batch.sha256() for batch in variants}) == len(variants)


def test_moving_keeps_every_field():
    batch = batch_of([[1, 2, 3]])
    moved = batch.to("cpu")
    assert moved.sha256() == batch.sha256()
    assert moved.period is None
    assert moved.to("meta").tokens.device.type == "meta"


def test_fields_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch_of([[1, 2]]).tokens = torch.zeros(1, 2)


def test_mask_of_wrong_shape_is_refused():
    # The shape checks run under pytest only; without them a wrong annotation would go unnoticed.
    with pytest.raises(Exception, match=r"(?s)predictable"):
        batch_of([[1, 2, 3]], torch.zeros(1, 3, dtype=torch.bool))
