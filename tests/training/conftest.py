"""Finished runs shared by the tests of this folder; a test that changes one works on a copy."""

import shutil

import pytest


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small finished run. Read only."""
    from training_runs import train_here

    return train_here(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")
