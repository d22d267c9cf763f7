"""Checkpoints: whole or refused, never pickled objects, pruned with care."""

from pathlib import Path

import numpy as np
import pytest
import torch


def _state(step):
    generator = torch.Generator().manual_seed(step)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": generator.get_state(),
        "config": '{"seed": 0}',
        "numbers": [1, 2.5, None, True, (b"x", {1, 2})],
    }


@pytest.fixture
def folder(tmp_path):
    from spectral.storage import checkpoint_name, save_checkpoint

    for step in (10, 20, 30):
        save_checkpoint(tmp_path / checkpoint_name(step), _state(step))
    return tmp_path


def test_a_state_comes_back_equal_and_loads_without_trust(tmp_path):
    from spectral.storage import load_checkpoint, save_checkpoint

    state = _state(7)
    save_checkpoint(tmp_path / "step_000000007.pt", state)
    plain = torch.load(tmp_path / "step_000000007.pt", weights_only=True)
    for found in (plain, load_checkpoint(tmp_path / "step_000000007.pt")):
        assert found["numbers"] == state["numbers"]
        torch.testing.assert_close(found["model"], state["model"], rtol=0, atol=0)
        assert torch.equal(found["rng"], state["rng"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000000007.pt", "step_000000007.pt.sha256"]


@pytest.mark.parametrize("value", [np.float64(1.0), np.zeros(2), Path("x"), object(), range(3)])
def test_anything_but_tensors_and_plain_scalars_is_named(tmp_path, value):
    from spectral.storage import save_checkpoint

    with pytest.raises(TypeError, match=r"state\['a'\]\[1\]"):
        save_checkpoint(tmp_path / "x.pt", {"a": [1, value]})
    assert list(tmp_path.iterdir()) == []


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "spoil",
    [
        _flip,
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"something else"),
        lambda path: path.with_name(path.name + ".sha256").unlink(),
        lambda path: path.with_name(path.name + ".sha256").write_bytes(b"\xff\xfe"),
    ],
)
def test_a_broken_checkpoint_is_refused_and_the_one_before_is_found(folder, spoil):
    from spectral.errors import CheckpointError
    from spectral.storage import find_newest_checkpoint, load_checkpoint

    newest = folder / "step_000000030.pt"
    spoil(newest)
    with pytest.raises(CheckpointError, match=r"step_000000030\.pt .* use an earlier checkpoint") as caught:
        load_checkpoint(newest)
    assert "\n" not in str(caught.value)
    path, state, skipped = find_newest_checkpoint(folder)
    assert path == folder / "step_000000020.pt"
    assert state["step"] == 20
    assert len(skipped) == 1
    assert "step_000000030.pt" in skipped[0]


def test_a_sealed_file_that_needs_trust_is_refused(tmp_path):
    import hashlib

    from spectral.errors import CheckpointError
    from spectral.storage import load_checkpoint

    path = tmp_path / "step_000000001.pt"
    torch.save({"x": Path("y")}, path)
    path.with_name(path.name + ".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match="no plain torch file"):
        load_checkpoint(path)


def test_no_checkpoint_and_no_good_checkpoint_are_told_apart(folder, tmp_path_factory):
    from spectral.errors import CheckpointError
    from spectral.storage import find_newest_checkpoint, list_checkpoints

    empty = tmp_path_factory.mktemp("empty")
    assert list_checkpoints(empty) == []
    assert list_checkpoints(empty / "missing") == []
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        find_newest_checkpoint(empty)
    for path in folder.glob("*.pt"):
        _flip(path)
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
        find_newest_checkpoint(folder)


def test_pruning_keeps_the_last_and_the_marked(folder):
    from spectral.storage import checkpoint_name, list_checkpoints, prune_checkpoints, save_checkpoint

    save_checkpoint(folder / checkpoint_name(40), _state(40))
    deleted = prune_checkpoints(folder, 2, {10})
    assert [p.name for p in deleted] == ["step_000000020.pt"]
    assert [step for step, _ in list_checkpoints(folder)] == [10, 30, 40]
    assert not (folder / "step_000000020.pt.sha256").exists()
    with pytest.raises(ValueError, match="keep_last=0"):
        prune_checkpoints(folder, 0, set())


def test_nothing_is_pruned_while_the_newest_is_broken(folder):
    from spectral.storage import list_checkpoints, prune_checkpoints

    _flip(folder / "step_000000030.pt")
    assert prune_checkpoints(folder, 1, set()) == []
    assert len(list_checkpoints(folder)) == 3


def test_a_save_that_cannot_be_written_raises_and_leaves_the_old_file(folder):
    import resource

    from spectral.errors import CheckpointError
    from spectral.storage import load_checkpoint, save_checkpoint

    with pytest.raises(CheckpointError, match="could not be written"):
        save_checkpoint(folder / "missing" / "step_000000001.pt", _state(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"could not be written \(File too large\); free some space"):
            save_checkpoint(folder / "step_000000030.pt", _state(31))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_checkpoint(folder / "step_000000030.pt")["step"] == 30
    assert len(list(folder.iterdir())) == 6
