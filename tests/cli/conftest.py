"""Every test of a command runs in an empty folder of its own."""

import pytest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """A short finished run of the real program; tests only read it, or copy it."""
    from spectral.cli import train

    folder = tmp_path_factory.mktemp("trained")
    flags = ["--preset", "tiny", "--num_steps", "20", "--density_steps", "6", "--quiet"]
    assert train([*flags, "--runs_dir", str(folder), "--run_name", "tiny"]) == 0
    return folder / "tiny"


@pytest.fixture
def own_run(trained_run, tmp_path):
    """A copy of `trained_run` that a test may change."""
    import shutil

    return shutil.copytree(trained_run, tmp_path / "own")
