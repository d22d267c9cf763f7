"""A damaged checkpoint is noticed, named and walked past; a foreign one is refused."""

import pytest
from training_runs import checkpoint, differences, events, forget_after, rewrite_checkpoint


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(bytes(data))


def _empty(path):
    path.write_bytes(b"")


def _wrong_seal(path):
    path.with_name(path.name + ".sha256").write_text("0" * 64 + f"  {path.name}\n")


def _no_seal(path):
    path.with_name(path.name + ".sha256").unlink()


def _resume(folder, *flags):
    from spectral.cli import train

    return train(["--resume", str(folder), *flags])


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _empty, _wrong_seal, _no_seal])
def test_the_checkpoint_before_a_damaged_one_is_used_and_it_is_said(finished, copy, capsys, damage):
    forget_after(copy, 8)
    damage(checkpoint(copy, 8))
    assert _resume(copy) == 0
    assert "skipped a damaged checkpoint" in capsys.readouterr().err
    assert "step_000000008.pt" in events(copy, "checkpoint_skipped")[0]["reason"]
    assert events(copy, "resume")[0]["step"] == 4
    assert differences(finished, copy) == []


def test_with_all_checkpoints_damaged_the_run_is_refused_untouched(copy, capsys):
    for path in (copy / "checkpoints").glob("*.pt"):
        _truncate(path)
    before = (copy / "results.h5").read_bytes()
    assert _resume(copy) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: none of the 4 checkpoints")
    assert "\n" not in error
    assert (copy / "results.h5").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["environment"].update(threads=7), "threads 7 -> 1"),
        (lambda state: state["environment"].update(torch="1.0"), "torch 1.0 -> "),
        (lambda state: state["environment"].update(device="H100"), "device H100 -> cpu"),
    ],
)
def test_other_conditions_are_refused_unless_allowed(copy, capsys, change, message):
    rewrite_checkpoint(copy, 12, change)
    assert _resume(copy) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "--resume_anyway" in error
    assert _resume(copy, "--resume_anyway") == 0
    assert "warning: " in capsys.readouterr().err
    assert message in events(copy, "resume_anyway")[0]["differences"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(config_digest="0" * 64), "belongs to another configuration"),
        (lambda state: state.update(format=99), "no checkpoint of this suite"),
        (lambda state: state.clear(), "no checkpoint of this suite"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_even_if_conditions_may_differ(copy, capsys, change, message):
    rewrite_checkpoint(copy, 12, change)
    assert _resume(copy, "--resume_anyway") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
