"""Rows measured later: in the order of their steps, without touching a bit of those that were there."""

import h5py
import numpy as np
import pytest

from spectral.errors import ResultsFileError


def rows_at(steps, loss=0.5):
    return [{"step": step, "behaviour/loss": loss + step, "hessian/n_products": step} for step in steps]


def test_rows_come_in_the_order_of_their_steps_and_old_ones_keep_every_bit(finished, layout):
    from spectral.storage import dataset_table, insert_snapshots, open_run

    with h5py.File(finished) as file:
        before = {spec.path: file[spec.path][()] for spec in dataset_table(layout)}
        attributes = {spec.path: dict(file[spec.path].attrs) for spec in dataset_table(layout)}
    insert_snapshots(finished, rows_at([25, 22, 5]))
    with h5py.File(finished) as file:
        steps = file["hessian/step"][()]
        assert steps.tolist() == [0, 5, 10, 20, 22, 25, 30, 40]
        assert file.attrs["inserted_steps"].tolist() == [5, 22, 25]
        old = np.isin(steps, [0, 10, 20, 30, 40])
        for path, values in before.items():
            now = file[path][()]
            kept = now[old] if path.split("/")[0] not in ("train", "causal") else now
            assert kept.tobytes() == values.tobytes(), path
            assert set(attributes[path]) == set(file[path].attrs), path
        assert file["behaviour/loss"][~old].tolist() == [5.5, 22.5, 25.5]
        assert file["hessian/n_products"][~old].tolist() == [5, 22, 25]
        assert np.isnan(file["hessian/eigenvalues"][~old]).all()
        assert (file["hessian/converged"][~old] == -1).all()
    with open_run(finished) as run:
        assert run.status == "finished"
        assert run.steps.tolist() == steps.tolist()


def test_two_insertions_equal_one(finished, tmp_path):
    import shutil

    from spectral.storage import insert_snapshots

    other = tmp_path / "other.h5"
    shutil.copy(finished, other)
    insert_snapshots(finished, rows_at([5, 25]))
    insert_snapshots(other, rows_at([25]))
    insert_snapshots(other, rows_at([5]))
    with h5py.File(finished) as one, h5py.File(other) as two:
        assert one.attrs["inserted_steps"].tolist() == two.attrs["inserted_steps"].tolist()
        for name in ("behaviour/loss", "hessian/step", "circuits/induction_score"):
            assert one[name][()].tobytes() == two[name][()].tobytes()


@pytest.mark.parametrize(
    ("rows", "error", "text"),
    [
        (rows_at([10]), ValueError, "stored"),
        (rows_at([5, 5]), ValueError, "twice"),
        ([{"step": 5, "behaviour/nonsense": 1.0}], KeyError, "nonsense"),
        ([{"step": 5, "hessian/eigenvalues": np.zeros(2)}], ValueError, "row shape"),
    ],
)
def test_a_wrong_row_is_named_and_the_file_stays(finished, rows, error, text):
    from spectral.storage import insert_snapshots

    before = finished.read_bytes()
    with pytest.raises(error, match=text):
        insert_snapshots(finished, rows)
    assert finished.read_bytes() == before
    assert [path.name for path in finished.parent.iterdir()] == [finished.name]


def test_a_file_that_is_being_written_is_refused(tmp_path, layout):
    from storage_processes import append_until

    from spectral.storage import ResultsWriter, insert_snapshots

    path = tmp_path / "results.h5"
    with ResultsWriter.create(path, layout) as writer:
        append_until(writer, 20)
        with pytest.raises(ResultsFileError, match="in use"):
            insert_snapshots(path, rows_at([5]))
        append_until(writer, 30)


def test_a_full_disk_leaves_the_file_as_it_was(finished):
    import resource

    from spectral.storage import insert_snapshots

    before = finished.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(ResultsFileError, match="free some space"):
            insert_snapshots(finished, rows_at([5]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert finished.read_bytes() == before
    assert [path.name for path in finished.parent.iterdir()] == [finished.name]
