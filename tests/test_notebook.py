"""The notebook of the docs runs on a real run and makes its three plots."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "look_at_a_run.ipynb"


@pytest.fixture
def trained(tmp_path):
    from spectral.cli import train

    assert (
        train(["--preset", "tiny", "--num_steps", "20", "--runs_dir", str(tmp_path), "--run_name", "run", "--quiet"])
        == 0
    )
    return tmp_path / "run"


def test_the_notebook_opens_a_run_and_makes_three_plots(trained, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("SPECTRAL_RUN", str(trained))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    monkeypatch.setenv("PYTHONWARNINGS", "error::UserWarning:spectral")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, kernel_name="python3", timeout=120, startup_timeout=180).execute(cwd=str(trained.parent))
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
    text = "".join(output["text"] for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert text == "run finished 3 snapshots up to step 20\n"
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]


def test_the_notebook_is_stored_without_outputs():
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 4
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
