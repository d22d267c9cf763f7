"""`spectral export`: what goes out is what the run holds, whole or not at all."""

import json
import pickle
import sys

import numpy as np
import pytest


def export(*arguments, expect=0):
    from spectral.cli import main

    assert main(["export", *map(str, arguments)]) == expect


def stored(folder):
    """Return every dataset of a run that is no axis: name -> (dims, values, attributes)."""
    from spectral.storage import open_run
    from spectral.storage.schema import group_axes

    run = open_run(folder)
    axes = {f"{group}/{axis.name}" for group, found in group_axes(run.layout).items() for axis in found}
    names = [name for name in run.datasets() if name not in axes and not name.endswith("/step")]
    return {name: (run.dims(name), run.read(name), run.attributes(name)) for name in names}


def assert_same(found, expected):
    np.testing.assert_array_equal(np.asarray(found, dtype=expected.dtype).reshape(expected.shape), expected)


def check_tables(frames, folder):
    """Every dataset stands in the table of its axes, in the order of its axes, with their labels beside it."""
    from spectral.storage import open_run

    run, checked = open_run(folder), 0
    labelled = {
        group: run.to_xarray(group) for group in ("train", "behaviour", "hessian", "circuits", "detector", "causal")
    }
    for name, (dims, values, _) in stored(folder).items():
        group, column = name.split("/")
        if group == "probes":
            mine = frames["probes"].query("array == @column")
            assert_same(mine["value"].to_numpy(), values)
        else:
            frame = frames["_".join([group, *dims[1:]])]
            assert_same(frame[column].to_numpy(), values)
            steps = np.broadcast_to(run.steps_of(group).reshape(-1, *[1] * (values.ndim - 1)), values.shape)
            assert_same(frame["step"].to_numpy(), steps)
            for axis, dim in enumerate(dims[1:], 1):
                labels = labelled[group][dim].values
                wanted = np.broadcast_to(
                    labels.reshape([-1 if i == axis else 1 for i in range(len(dims))]), values.shape
                )
                assert list(frame[dim]) == list(wanted.ravel())
        checked += 1
    assert checked > 100


def test_csv_holds_every_number_bit_for_bit_and_a_dictionary_of_its_columns(own_run, capsys):
    import pandas

    export(own_run, "--format", "csv")
    folder = own_run / "export" / "csv"
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    texts = dict.fromkeys(("probe", "part", "block", "mode", "component", "array"), str)
    frames = {file.stem: pandas.read_csv(file, dtype=texts) for file in folder.glob("*.csv")}
    check_tables(frames, own_run)
    about = frames["datasets"].set_index(["table", "column"])
    for name, (dims, values, attributes) in stored(own_run).items():
        group, column = name.split("/")
        if group == "probes":
            continue
        row = about.loc[("_".join([group, *dims[1:]]), column)]
        assert (row["units"], row["long_name"], row["type"]) == (
            attributes["units"], attributes["long_name"], values.dtype.name,
        )  # fmt: skip
        assert row["axes"].split()[1:] == list(dims[1:])
    assert float(about.loc[("behaviour", "loss"), "chance"]) == pytest.approx(np.log(16))
    facts = json.loads((folder / "run.json").read_text())
    assert facts["config"]["seed"] == 0
    assert facts["status"] == "finished"
    assert facts["transitions"]["consensus"]["verdict"] == "inconclusive"


def test_parquet_holds_the_same_tables_with_types_and_attributes(own_run):
    from pyarrow import parquet

    export(own_run, "--format", "parquet")
    files = list((own_run / "export" / "parquet").glob("*.parquet"))
    check_tables({file.stem: parquet.read_table(file).to_pandas() for file in files}, own_run)
    table = parquet.read_table(own_run / "export" / "parquet" / "circuits_layer_head.parquet")
    field = table.schema.field("induction_score")
    attributes = stored(own_run)["circuits/induction_score"][2]
    assert json.loads(field.metadata[b"attributes"]) == attributes
    assert str(table.schema.field("layer").type) == "int64"


def test_netcdf_keeps_groups_dimensions_labels_and_attributes(own_run, tmp_path):
    import xarray

    export(own_run, "--format", "netcdf", "--output", tmp_path / "x" / "run.nc")
    with xarray.open_datatree(tmp_path / "x" / "run.nc", engine="h5netcdf") as tree:
        for name, (dims, values, attributes) in stored(own_run).items():
            found = tree[name]
            assert found.dims == dims
            assert_same(found.values, values)
            for key, value in attributes.items():
                if key == "dtype":  # xarray has read it: 0 and 1 that mean false and true
                    assert found.dtype == value
                    continue
                np.testing.assert_array_equal(found.attrs[key], value)
        assert list(tree["circuits/part"].values) == ["real", "imaginary"]
        assert list(tree["hessian"]["step"].values) == [0, 10, 20]
        assert json.loads(tree.attrs["config_json"])["num_steps"] == 20
        assert "consensus" in json.loads(tree.attrs["transitions_json"])


def test_pickle_holds_plain_objects_only(own_run):
    export(own_run, "--format", "pkl")
    data = (own_run / "export" / "own.pkl").read_bytes()
    content = pickle.loads(data)
    for name, (dims, values, attributes) in stored(own_run).items():
        found = content["datasets"][name]
        assert found["values"].dtype == values.dtype
        assert_same(found["values"], values)
        assert (found["dims"], repr(found["attributes"])) == (dims, repr(attributes))
    assert b"spectral." not in data.replace(b"spectral.results", b"")
    assert b"xarray" not in data
    assert list(content["coordinates"]["hessian"]["rank"]) == [0, 1, 2, 3]


def test_groups_and_single_datasets_can_be_chosen(own_run, tmp_path):
    export(own_run, "--format", "csv", "--groups", "train", "circuits/induction_score", "--output", "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "train.csv", "circuits_layer_head.csv", "datasets.csv", "run.json",
    }  # fmt: skip
    assert (tmp_path / "out" / "circuits_layer_head.csv").read_text().splitlines()[
        0
    ] == "step,layer,head,induction_score"
    export(own_run, "--format", "pkl", "--groups", "hessian/trace,train", "--output", "a.pkl")
    names = set(pickle.loads((tmp_path / "a.pkl").read_bytes())["datasets"])
    assert {name for name in names if not name.startswith("train/")} == {"hessian/trace"}


@pytest.mark.parametrize("form", ["csv", "parquet", "netcdf", "pkl"])
def test_an_earlier_export_is_replaced_only_when_asked_and_whole(form, own_run, capsys):
    export(own_run, "--format", form, "--groups", "train", "detector")
    (place,) = (own_run / "export").iterdir()
    export(own_run, "--format", form, "--groups", "train", expect=2)
    assert "exists already; add --overwrite" in capsys.readouterr().err
    before = sorted(file.name for file in place.iterdir()) if place.is_dir() else place.stat().st_ino
    export(own_run, "--format", form, "--groups", "train", "--overwrite")
    after = sorted(file.name for file in place.iterdir()) if place.is_dir() else place.stat().st_ino
    assert after != before
    assert list((own_run / "export").iterdir()) == [place]  # no temporary is left


def test_what_is_no_export_is_never_replaced(own_run, tmp_path, capsys):
    before = (own_run / "results.h5").read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for form, place in (("netcdf", own_run / "results.h5"), ("csv", own_run), ("csv", "mine"), ("pkl", "mine")):
        export(own_run, "--format", form, "--output", place, "--overwrite", expect=2)
        assert "is no earlier export of this format" in capsys.readouterr().err
    assert (own_run / "results.h5").read_bytes() == before


def test_a_failed_export_leaves_nothing_behind(own_run, monkeypatch):
    from spectral.storage.export import formats

    def fail(*_):
        raise RuntimeError("power")

    monkeypatch.setattr(formats, "_write_facts", fail)
    with pytest.raises(RuntimeError, match="power"):
        export(own_run, "--format", "csv")
    assert list((own_run / "export").iterdir()) == []


def test_a_missing_package_costs_one_line(own_run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    export(own_run, "--format", "parquet", expect=2)
    error = capsys.readouterr().err
    assert error == "error: --format parquet needs pyarrow: pip install pyarrow, or use --format netcdf\n"
    assert not (own_run / "export").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "xlsx"], "--format 'xlsx' is unknown; use one of csv, parquet, netcdf, pkl"),
        (["--format", "csv", "--groups", "hesian"], "--groups 'hesian' is no group or dataset"),
        ([], "required: --format"),
        (["--format", "csv", "--output", "file/in/file"], "cannot be written"),
    ],
)
def test_mistakes_cost_one_line(arguments, words, own_run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    export(own_run, *arguments, expect=2)
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_no_run_costs_one_line(capsys):
    export("nowhere", "--format", "csv", expect=2)
    assert "does not exist" in capsys.readouterr().err


def test_a_run_without_snapshots_exports_its_training_log(tmp_path):
    from spectral.cli import train

    flags = ["--preset", "tiny", "--num_steps", "10", "--eigen_interval", "0", "--quiet"]
    assert train([*flags, "--runs_dir", ".", "--run_name", "bare"]) == 0
    for form in ("csv", "parquet", "netcdf", "pkl"):
        export("bare", "--format", form, "--output", f"out.{form}", "--groups", "train", "hessian")
    lines = (tmp_path / "out.csv" / "train.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "5", "10"]
    assert (tmp_path / "out.csv" / "hessian_rank.csv").read_text().count("\n") == 1
