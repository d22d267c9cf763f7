"""What is appended comes back, and nothing else is accepted."""

import h5py
import numpy as np
import pytest
from storage_processes import append_until, assert_prefix, snapshot


def _same_content(a, b, skip=("heartbeat",)):
    names = set()
    a.visit(names.add)
    other = set()
    b.visit(other.add)
    assert names == other
    for name in sorted(names - set(skip)):
        if isinstance(a[name], h5py.Dataset):
            np.testing.assert_array_equal(a[name][()], b[name][()], err_msg=name)
            assert a[name].dtype == b[name].dtype
            keys = set(a[name].attrs) - {"DIMENSION_LIST", "REFERENCE_LIST"}
            assert keys == set(b[name].attrs) - {"DIMENSION_LIST", "REFERENCE_LIST"}
            for key in keys:
                np.testing.assert_array_equal(a[name].attrs[key], b[name].attrs[key])


def test_everything_written_is_read_back(finished):
    from spectral.storage import open_run

    with open_run(finished) as run:
        assert run.steps.tolist() == [0, 10, 20, 30, 40]
        assert run.steps_of("causal").tolist() == [0, 20, 40]
        assert len(run.train_steps) == 50
        assert run.status == "finished"
        assert_prefix(run)


def test_a_row_reads_as_unknown_where_nothing_was_given(tmp_path, layout):
    from spectral.storage import ResultsWriter, dataset_table, open_run

    path = tmp_path / "results.h5"
    with ResultsWriter.create(path, layout) as writer:
        writer.append_snapshot({"step": 0, "hessian/trace": 2.5})
        writer.append_train({"step": 0, "loss": 1.5})
        writer.append_causal({"step": 0})
    run = open_run(path)
    assert run.read("hessian/trace").tolist() == [2.5]
    assert run.read("train/loss").tolist() == [1.5]
    given = {"hessian/trace", "train/loss", "train/train_step", *(f"{g}/step" for g in run.to_xarray())}
    for spec in dataset_table(layout):
        if spec.path not in given:
            values = run.read(spec.path)
            assert values.shape == (1, *spec.row_shape)
            assert np.all(np.isnan(values) if values.dtype.kind == "f" else values == -1), spec.path


def test_tensors_and_bools_are_accepted(tmp_path, layout):
    import torch

    from spectral.storage import ResultsWriter, open_run

    path = tmp_path / "results.h5"
    with ResultsWriter.create(path, layout) as writer:
        converged = np.array([True, False, True, True])
        eigenvalues = torch.arange(4.0, requires_grad=True)
        writer.append_snapshot(
            {"step": torch.tensor(3), "hessian/eigenvalues": eigenvalues, "hessian/converged": converged}
        )
    run = open_run(path)
    assert run.steps.tolist() == [3]
    assert run.read("hessian/converged").tolist() == [[1, 0, 1, 1]]
    assert run.read("hessian/eigenvalues").tolist() == [[0.0, 1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("values", "kind", "text"),
    [
        ({"step": 50, "hessian/eigenvalue": [1.0]}, KeyError, "hessian/eigenvalue"),
        ({"step": 50, "train/loss": 1.0}, KeyError, "append_train"),
        ({"step": 50, "causal/clean_induction_loss": 1.0}, KeyError, "append_causal"),
        ({"step": 50, "hessian/eigenvalues": np.zeros(5)}, ValueError, r"hessian/eigenvalues has row shape \(4,\)"),
        ({"step": 50, "hessian/trace": 1j}, ValueError, "hessian/trace"),
        ({"step": 50, "hessian/n_products": 1.5}, ValueError, "hessian/n_products"),
        ({"step": 40}, ValueError, "does not follow 40"),
        ({"step": 50, "hessian/step": 60}, ValueError, "several steps"),
        ({"hessian/trace": 1.0}, ValueError, "no step"),
    ],
)
def test_a_wrong_snapshot_is_named_and_changes_nothing(finished, values, kind, text):
    from spectral.storage import ResultsWriter, open_run

    with ResultsWriter.reopen(finished, last_step=49) as writer:
        with pytest.raises(kind, match=text):
            writer.append_snapshot(values)
        assert writer.committed == (50, 5, 3)
        append_until(writer, 60)
    assert_prefix(open_run(finished))


def test_a_wrong_train_row_is_named(finished):
    from spectral.storage import ResultsWriter

    with ResultsWriter.reopen(finished, last_step=49) as writer:
        with pytest.raises(KeyError, match="train/lossy"):
            writer.append_train({"step": 50, "lossy": 1.0})
        with pytest.raises(ValueError, match="does not follow 49"):
            writer.append_train({"step": 49, "loss": 1.0})


def test_a_wrong_causal_row_is_named_and_changes_nothing(finished):
    from spectral.storage import ResultsWriter, open_run

    with ResultsWriter.reopen(finished, last_step=49) as writer:
        for values, kind, text in (
            ({"step": 50, "hessian/trace": 1.0}, KeyError, "append_snapshot"),
            ({"step": 40}, ValueError, "does not follow 40"),
            ({"step": 50, "causal/logit_attribution": np.zeros(3)}, ValueError, "causal/logit_attribution"),
        ):
            with pytest.raises(kind, match=text):
                writer.append_causal(values)
        assert writer.committed == (50, 5, 3)
        append_until(writer, 60)
    assert_prefix(open_run(finished))


def test_axes_of_size_zero_leave_their_datasets_out(tmp_path):
    from spectral.storage import ResultsWriter, RunLayout, open_run

    layout = RunLayout(n_layers=0, n_heads=0, d_head=0, n_top=2, n_negative=0, seq_length=0, vocab_size=0)
    path = tmp_path / "results.h5"
    with ResultsWriter.create(path, layout) as writer:
        writer.append_snapshot({"step": 1, "hessian/eigenvalues": [2.0, 1.0], "hessian/negative_eigenvalues": []})
    run = open_run(path)
    assert "hessian/negative_eigenvalues" not in run.datasets()
    assert run.read("hessian/eigenvalues").tolist() == [[2.0, 1.0]]


def test_reopening_drops_later_rows_and_equals_an_uninterrupted_file(tmp_path, layout, finished):
    from spectral.storage import ResultsWriter

    whole = tmp_path / "whole.h5"
    with h5py.File(finished) as file:
        probes = {"tokens": file["probes/tokens"][()], "predictable": file["probes/predictable"][()].astype(bool)}
    attributes = {"seed": 3, "config_json": '{"seed": 3}', "device": "cpu"}
    with ResultsWriter.create(whole, layout, attributes=attributes, probes=probes) as writer:
        append_until(writer, 80)
        writer.set_status("finished")
    with ResultsWriter.reopen(finished, last_step=25) as writer:
        assert writer.committed == (26, 3, 2)
        assert writer.last_steps == (25, 20, 20)
        append_until(writer, 80)
        writer.set_status("finished")
    with h5py.File(whole) as a, h5py.File(finished) as b:
        _same_content(a, b)
        assert {k: v for k, v in a.attrs.items() if k != "created_utc"} == {
            k: v for k, v in b.attrs.items() if k != "created_utc"
        }


def test_reopening_keeps_overridden_attributes_and_long_root_text(tmp_path, layout):
    from spectral.storage import ResultsWriter, open_run

    path = tmp_path / "results.h5"
    config = '{"note": "' + "é" * 70_000 + '"}'
    chance = {"circuits/induction_score": {"chance": 0.034, "gaps": [3, 5]}}
    ResultsWriter.create(path, layout, attributes={"config_json": config}, dataset_attributes=chance).close()
    for _ in range(2):
        ResultsWriter.reopen(path, last_step=0).close()
    run = open_run(path)
    assert run.config == {"note": "é" * 70_000}
    found = run.attributes("circuits/induction_score")
    assert found["chance"] == 0.034
    assert found["gaps"] == [3, 5]
    assert found["definition"] == "induction/sum_targets/v1"


def test_create_never_overwrites(finished, layout):
    from spectral.errors import ResultsFileError
    from spectral.storage import ResultsWriter

    before = finished.read_bytes()
    with pytest.raises(ResultsFileError, match="exists already"):
        ResultsWriter.create(finished, layout)
    assert finished.read_bytes() == before
    assert [p.name for p in finished.parent.iterdir()] == ["results.h5"]


def test_a_second_writer_is_refused_and_the_first_goes_on(finished):
    from spectral.errors import ResultsFileError
    from spectral.storage import ResultsWriter, open_run

    with ResultsWriter.reopen(finished, last_step=49) as writer:
        append_until(writer, 55)
        before = finished.read_bytes()
        with pytest.raises(ResultsFileError, match="in use"):
            ResultsWriter.reopen(finished, last_step=0)
        assert finished.read_bytes() == before
        append_until(writer, 60)
    assert_prefix(open_run(finished))


def test_a_closed_writer_refuses_rows(finished):
    from spectral.errors import ResultsFileError
    from spectral.storage import ResultsWriter

    writer = ResultsWriter.reopen(finished, last_step=49)
    writer.close()
    writer.close()
    with pytest.raises(ResultsFileError, match="is closed"):
        writer.append_snapshot(snapshot(writer.layout, 50))


def test_unknown_attribute_targets_and_unstorable_probes_leave_no_file(tmp_path, layout):
    from spectral.storage import ResultsWriter

    path = tmp_path / "results.h5"
    with pytest.raises(KeyError, match="hessian/nothing"):
        ResultsWriter.create(path, layout, dataset_attributes={"hessian/nothing": {"chance": 0.0}})
    with pytest.raises(ValueError, match="probe 'x'"):
        ResultsWriter.create(path, layout, probes={"x": np.zeros(3)})
    with pytest.raises(ValueError, match="attribute seed"):
        ResultsWriter.create(path, layout, attributes={"seed": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_one_line(tmp_path, layout):
    from spectral.errors import ResultsFileError
    from spectral.storage import ResultsWriter

    with pytest.raises(ResultsFileError, match="could not be written") as caught:
        ResultsWriter.create(tmp_path / "no" / "results.h5", layout)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"n_top": -1}, {"signals": ("a/b",)}, {"signals": ("step",)}, {"signals": ("a", "a")}]
)
def test_an_impossible_layout_is_refused(layout, change):
    import dataclasses

    with pytest.raises(ValueError, match=next(iter(change)).rstrip("s")):
        dataclasses.replace(layout, **change)
