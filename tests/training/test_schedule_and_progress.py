"""The learning rate as a function of the step, and what a person sees meanwhile."""

import fcntl
import math
import os
import pty
import struct
import termios

import pytest


def _rate(step, **options):
    from spectral.training.schedule import learning_rate

    return learning_rate(step, **({"lr": 2.0, "num_steps": 110, "use_schedule": True, "warmup_steps": 10} | options))


def test_without_a_schedule_the_rate_is_constant():
    assert {_rate(step, use_schedule=False) for step in (0, 5, 109)} == {2.0}


def test_warmup_is_linear_and_ends_at_the_peak():
    assert [_rate(step) for step in range(10)] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert _rate(10) == pytest.approx(2.0)


def test_cosine_passes_the_middle_and_ends_at_a_tenth():
    assert _rate(60) == pytest.approx(2.0 * 0.55)
    assert _rate(110) == pytest.approx(0.2)
    rates = [_rate(step) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("options", [{"warmup_steps": 0}, {"warmup_steps": 1000}, {"num_steps": 1}])
def test_extremes_stay_between_zero_and_the_peak(options):
    for step in range(options.get("num_steps", 110)):
        assert 0 < _rate(step, **options) <= 2.0
        assert math.isfinite(_rate(step, **options))


def test_a_file_gets_a_few_plain_lines(tmp_path):
    from spectral.training import Progress

    with open(tmp_path / "log", "w") as stream:
        progress = Progress(1000, stream=stream)
        progress.start(0)
        for step in range(1, 1001):
            progress.update(step, loss=1.5, accuracy=None, lambda_1=12.0)
        progress.message("a message")
        progress.close()
    text = (tmp_path / "log").read_text()
    lines = text.splitlines()
    assert 15 <= len(lines) <= 25
    assert lines[-2].startswith("step 1000/1000")
    assert lines[-1] == "a message"
    assert "loss 1.5  lambda_1 12" in lines[0]
    assert "left" in lines[3]
    assert "\r" not in text


def test_a_terminal_gets_a_bar_that_a_message_does_not_break():
    from spectral.training import Progress

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with os.fdopen(follower, "w") as stream:
        progress = Progress(10, stream=stream)
        progress.start(4)
        for step in range(5, 11):
            progress.update(step, loss=0.25)
        progress.message("a message")
        progress.close()
        stream.flush()
        shown = os.read(leader, 65536).decode()
    os.close(leader)
    assert "\r" in shown
    assert "10/10" in shown
    assert "loss=0.25" in shown
    assert "a message" in shown
