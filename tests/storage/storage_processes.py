"""Writers in processes of their own, and the values they write; every value follows from its name and step."""

import contextlib
import functools
import os
import signal

import numpy as np

INTERVAL, CAUSAL_INTERVAL = 10, 20


def expected(spec, step):
    """Value of one dataset at one step: small integers, exact in every stored type."""
    if spec.name in ("step", "train_step"):
        return np.asarray(step, dtype="int64")
    offset = sum(spec.path.encode()) + 7 * step
    return ((offset + np.arange(int(np.prod(spec.row_shape)))) % 97).reshape(spec.row_shape).astype(spec.dtype)


@functools.lru_cache
def table(layout):
    from spectral.storage import dataset_table

    return dataset_table(layout)


def snapshot(layout, step):
    specs = [spec for spec in table(layout) if spec.group not in ("train", "causal")]
    return {"step": step, **{spec.path: expected(spec, step) for spec in specs}}


def causal_row(layout, step):
    return {"step": step, **{s.path: expected(s, step) for s in table(layout) if s.group == "causal"}}


def train_row(layout, step):
    return {s.name: expected(s, step) for s in table(layout) if s.group == "train" and s.name != "train_step"}


def append_until(writer, last, acknowledge=lambda kind, step: None):
    """Append what a run would from the writer's last step to `last`.

    That is a snapshot every 10 steps, a causal row every 20, then the train row.
    """
    for step in range(writer.last_steps[0] + 1, last + 1):
        if step % INTERVAL == 0 and step > writer.last_steps[1]:
            writer.append_snapshot(snapshot(writer.layout, step))
            acknowledge("snapshot", step)
        if step % CAUSAL_INTERVAL == 0 and step > writer.last_steps[2]:
            writer.append_causal(causal_row(writer.layout, step))
            acknowledge("causal", step)
        writer.append_train(train_row(writer.layout, step))
        acknowledge("train", step)


def assert_prefix(run, names=None):
    """Every visible value is the expected one, and steps are 0, 1, 2 ... without gap."""
    assert run.steps.tolist() == list(range(0, INTERVAL * len(run.steps), INTERVAL))
    assert run.train_steps.tolist() == list(range(len(run.train_steps)))
    causal_steps = run.steps_of("causal")
    assert causal_steps.tolist() == list(range(0, CAUSAL_INTERVAL * len(causal_steps), CAUSAL_INTERVAL))
    for spec in table(run.layout):
        if names is not None and spec.path not in names:
            continue
        steps = run.steps_of(spec.path)
        wanted = [expected(spec, int(step)) for step in steps]
        wanted = np.array(wanted, dtype=spec.dtype).reshape(len(steps), *spec.row_shape)
        np.testing.assert_array_equal(run.read(spec.path), wanted, err_msg=spec.path)


class ForkedWriter:
    """A forked process that writes; `acknowledged` tells which rows it has reported as committed."""

    def __init__(self, write):
        self._acknowledged = {"train": -1, "snapshot": -1, "causal": -1}
        self._rest = b""
        self._read, out = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self._read)
                write(lambda kind, step: os.write(out, f"{kind} {step}\n".encode()))
                code = 0
            finally:
                os._exit(code)
        os.close(out)
        os.set_blocking(self._read, False)

    @property
    def acknowledged(self):
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._read, 65536):
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    kind, step = line.split()
                    self._acknowledged[kind.decode()] = int(step)
        return dict(self._acknowledged)

    def alive(self):
        # WNOWAIT leaves the process to be reaped once, by kill or wait.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def pause(self):
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def go_on(self):
        os.kill(self.pid, signal.SIGCONT)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        found = self.acknowledged
        os.close(self._read)
        return found

    def wait(self):
        _, status = os.waitpid(self.pid, 0)
        os.close(self._read)
        return os.waitstatus_to_exitcode(status)
