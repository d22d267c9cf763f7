"""Settings that every test runs under; nothing of `spectral` is imported here, so that its shapes are checked."""

import os

# One thread per process, also in the processes that tests start: pytest-xdist already fills the cores, and threads that
# wait for a busy core are slower than no threads at all.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread_again():
    """Undo what a run with another number of threads left behind."""
    yield
    torch.set_num_threads(1)
