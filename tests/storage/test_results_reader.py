"""Readers: labelled views, foreign and damaged files, live files."""

import json
import shutil

import h5py
import numpy as np
import pytest
from storage_processes import ForkedWriter, append_until, assert_prefix


def test_every_dataset_has_unit_meaning_and_named_axes(finished, layout):
    import xarray

    from spectral.storage import dataset_table

    for group in ("train", "behaviour", "hessian", "circuits", "detector", "causal"):
        # Warnings are errors here, so an axis without a name would fail.
        with xarray.open_dataset(finished, engine="h5netcdf", group=group) as data:
            for spec in (s for s in dataset_table(layout) if s.group == group):
                variable = data[spec.name]
                assert variable.dims == spec.dims
                assert variable.attrs["units"]
                assert variable.attrs["long_name"]
                for key in ("chance", "ceiling", "definition"):
                    assert variable.attrs.get(key) == getattr(spec, key)
    for group in (None, "probes"):
        xarray.open_dataset(finished, engine="h5netcdf", group=group).close()


def test_plain_xarray_selects_by_label(finished):
    import xarray

    from spectral.storage import open_run

    run = open_run(finished)
    with xarray.open_dataset(finished, engine="h5netcdf", group="hessian") as data:
        selected = data["eigenvalues"].sel(step=20, rank=1).item()
        assert selected == run.read("hessian/eigenvalues")[2, 1]
        assert data["block"].values.tolist() == [b"embed", b"L0.W_Q"]


def test_every_score_that_has_one_carries_its_definition_and_chance(layout):
    from spectral.storage import dataset_table

    table = {spec.path: spec for spec in dataset_table(layout)}
    assert table["behaviour/induction_accuracy"].chance == 1 / 16
    assert table["behaviour/induction_loss"].chance == pytest.approx(np.log(16))
    previous = np.mean([1 / (q + 1) for q in range(1, 9)])
    assert table["circuits/previous_token_score"].chance == pytest.approx(previous)
    for path, spec in table.items():
        if path.endswith(("_score", "_corrected", "_accuracy", "_composition", "_matching")):
            assert spec.definition, path


def test_views_agree_with_read(finished):
    from spectral.storage import open_run

    run = open_run(finished)
    tree = run.to_xarray()
    assert set(tree.children) == {"train", "behaviour", "hessian", "circuits", "detector", "causal"}
    causal = run.to_xarray("causal")
    assert causal["remove_one_induction_loss"].dims == ("step", "mode", "layer", "head")
    picked = causal["remove_one_induction_loss"].sel(step=20, mode="mean", layer=1, head=0).item()
    assert picked == run.read("causal/remove_one_induction_loss")[1, 1, 1, 0]
    assert run.to_dataframe("causal").index.tolist() == run.steps_of("causal/logit_attribution").tolist() == [0, 20, 40]
    behaviour = run.to_xarray("behaviour")
    assert behaviour["aligned_position"].values.tolist() == [-1, 0, 1]
    assert behaviour["copy"].values.tolist() == [1, 2]
    assert behaviour["reference_kl"].sel(reference="bayes").dims == ("step", "position")
    data = run.to_xarray("circuits")
    assert data["ov_eigenvalues"].dims == ("step", "layer", "head", "eigen", "part")
    picked = data["ov_eigenvalues"].sel(step=30, layer=1, head=0, eigen=2, part="imaginary").item()
    assert picked == run.read("circuits/ov_eigenvalues")[3, 1, 0, 2, 1]
    frame = run.to_dataframe()
    assert frame.index.name == "step"
    assert frame.index.tolist() == [0, 10, 20, 30, 40]
    assert frame.loc[30, "circuits/ov_eigenvalues[1,0,2,imaginary]"] == picked
    assert frame["hessian/block_mass[3,L0.W_Q]"].tolist() == run.read("hessian/block_mass")[:, 3, 1].tolist()
    assert frame["hessian/trace"].tolist() == run.read("hessian/trace").tolist()
    assert len(run.to_dataframe("train")) == 50
    assert run.dims("hessian/block_mass") == ("step", "rank", "block")


def test_probes_come_back_with_their_type_and_hash(finished):
    import hashlib

    from spectral.storage import open_run

    run = open_run(finished)
    predictable = run.probe("predictable")
    assert predictable.dtype == bool
    np.testing.assert_array_equal(predictable, np.eye(3, 4, dtype=bool))
    tokens = run.probe("tokens")
    assert run.attributes("probes/tokens")["sha256"] == hashlib.sha256(tokens.tobytes()).hexdigest()
    assert {"probes/tokens", "probes/predictable"} <= set(run.datasets())


def test_an_unknown_name_lists_the_known_ones(finished):
    from spectral.storage import open_run

    with pytest.raises(KeyError, match="hessian/eigenvalues"):
        open_run(finished).read("hessian/eigenvalue")
    with pytest.raises(KeyError, match="behaviour"):
        open_run(finished).to_xarray("losses")
    with pytest.raises(KeyError, match="causal"):
        open_run(finished).steps_of("probes/tokens")


def test_config_and_transitions_come_from_the_run_folder(tmp_path, finished):
    from spectral.storage import RunDirectory, open_run

    assert open_run(finished).config == {"seed": 3}
    with RunDirectory.create(tmp_path / "run", {"seed": 4}) as folder:
        shutil.copy(finished, folder.results_path)
        assert open_run(folder.path).transitions == {}
        folder.write_json("transitions.json", {"loss": {"detected": True, "p_value": float("nan")}})
    run = open_run(tmp_path / "run")
    assert run.config == {"seed": 4}
    assert run.transitions == {"loss": {"detected": True, "p_value": None}}


def test_status_tells_running_finished_failed_and_died(tmp_path, layout):
    from spectral.storage import ResultsWriter, RunDirectory, open_run

    with RunDirectory.create(tmp_path / "run", {}) as folder:
        writer = ResultsWriter.create(folder.results_path, layout)
        assert open_run(folder.path).status == "running"
        writer.close()
        assert open_run(folder.path).status == "running"  # the run still holds its lock
    assert open_run(folder.path).status == "died"
    for status in ("failed", "finished"):
        with ResultsWriter.reopen(folder.results_path, last_step=0) as writer:
            assert open_run(folder.path).status == "running"
            writer.set_status(status)
        assert open_run(folder.path).status == status


def _foreign(path):
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file["x"] = 1


def _old_format(path):
    with h5py.File(path, "w") as file:
        file["x"] = 1


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"no HDF5 at all, but long enough to look at" * 9), "not an HDF5 file"),
        (lambda path: path.write_bytes(path.read_bytes()[:30]), "truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "truncated"),
        (_foreign, "not written by this suite"),
        (_old_format, "not written by this suite"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_one_line(finished, spoil, text):
    from spectral.errors import ResultsFileError
    from spectral.storage import ResultsWriter, open_run

    spoil(finished)
    before = finished.read_bytes()
    for attempt in (open_run, lambda path: ResultsWriter.reopen(path, last_step=0)):
        with pytest.raises(ResultsFileError, match=text) as caught:
            attempt(finished)
        assert "\n" not in str(caught.value)
    assert finished.read_bytes() == before


def test_a_newer_major_schema_is_refused_and_a_newer_minor_is_read(finished):
    from spectral.errors import ResultsFileError
    from spectral.storage import open_run

    def rewrite(version):
        with h5py.File(finished, "r+", libver=("v110", "v110")) as file:
            file.attrs["schema_version"] = np.bytes_(version)

    rewrite("1.9")
    with h5py.File(finished, "r+", libver=("v110", "v110")) as file:
        del file["hessian/noise_floor"]
        file.create_dataset("hessian/of_tomorrow", data=np.zeros(5))
    run = open_run(finished)
    assert np.isnan(run.read("hessian/noise_floor")).all()
    assert len(run.read("hessian/noise_floor")) == 5
    assert_prefix(run, {"hessian/eigenvalues"})
    rewrite("2.0")
    with pytest.raises(ResultsFileError, match=r"schema 2\.0 .* update the program"):
        open_run(finished)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_files_of_older_versions_open(tmp_path, version):
    import gzip
    from pathlib import Path

    from spectral.errors import ResultsFileError
    from spectral.storage import ResultsWriter, dataset_table, open_run

    path = tmp_path / "results.h5"
    path.write_bytes(gzip.decompress((Path(__file__).parent / "files" / f"results_{version}.h5.gz").read_bytes()))
    run = open_run(path)
    assert run.root_attributes["schema_version"] == version
    assert run.steps.tolist() == [0, 5]
    assert run.train_steps.tolist() == [2, 4, 5]
    assert run.read("train/loss").tolist() == [1.0, 2.0, 2.5]
    assert run.read("circuits/induction_score").tolist() == [[[1.0], [1.0]], [[6.0], [6.0]]]
    assert len(run.steps_of("causal")) == 0
    assert run.to_xarray("causal").sizes["step"] == 0
    # Nothing that came with 1.2 is pretended to be there; what came with 1.1 reads as missing in 1.0.
    with h5py.File(path) as file:
        absent = {spec.path for spec in dataset_table(run.layout) if spec.path not in file} - {"causal/step"}
    assert all(name.startswith("hessian/") for name in absent)
    assert bool(absent) == (version == "1.0")
    assert run.attributes("circuits/ov_copying_score")["definition"] == "ov_copying/eigenvalue_ratio/v1"
    assert len(run.to_dataframe()) == 2
    assert set(run.to_xarray().children) >= {"train", "hessian", "causal"}
    with pytest.raises(ResultsFileError, match=f"schema {version}, not"):
        ResultsWriter.reopen(path, last_step=5)


def test_paths_without_a_run_are_refused(tmp_path):
    from spectral.errors import RunDirectoryError
    from spectral.storage import open_run

    with pytest.raises(RunDirectoryError, match="does not exist"):
        open_run(tmp_path / "nothing")
    with pytest.raises(RunDirectoryError, match="no run folder"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(RunDirectoryError, match=r"no results\.h5 yet"):
        open_run(tmp_path)


def test_a_damaged_row_in_the_middle_names_the_file_and_never_gives_wrong_numbers(finished):
    from spectral.errors import ResultsFileError
    from spectral.storage import open_run

    _flip(finished, "hessian/eigenvalues", row=2)
    run = open_run(finished)
    with pytest.raises(ResultsFileError, match="cannot be read"):
        run.read("hessian/eigenvalues")
    assert_prefix(run, {"hessian/residuals"})


def test_a_last_row_that_power_loss_tore_is_dropped(tmp_path, finished):
    from spectral.storage import ResultsWriter, open_run

    image = tmp_path / "image.h5"
    with ResultsWriter.reopen(finished, last_step=49):
        shutil.copy(finished, image)  # what a crash leaves: never closed
    assert len(open_run(image).steps) == 5
    _flip(image, "circuits/ov_eigenvalues", row=4)
    run = open_run(image)
    assert run.steps.tolist() == [0, 10, 20, 30]
    assert_prefix(run)
    with ResultsWriter.reopen(image, last_step=49) as writer:
        assert writer.committed == (50, 4, 3)


def _flip(path, name, row):
    with h5py.File(path, "r", swmr=True, locking=False) as file:
        chunk = file[name].id.get_chunk_info(row)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset + 5)
        byte = file.read(1)[0]
        file.seek(chunk.byte_offset + 5)
        file.write(bytes([byte ^ 16]))


def test_a_cut_copy_of_a_live_file_gives_right_values_or_an_error(tmp_path, finished):
    from spectral.errors import ResultsFileError
    from spectral.storage import ResultsWriter, open_run

    with ResultsWriter.reopen(finished, last_step=49) as writer:
        append_until(writer, 60)
        data = finished.read_bytes()
        end = int.from_bytes(data[28:36], "little")  # of the content; reserved space follows
    image = tmp_path / "image.h5"
    refused = 0
    for size in np.linspace(100, end - 1, 25).astype(int):
        image.write_bytes(data[:size])
        try:
            assert_prefix(open_run(image))
        except ResultsFileError:
            refused += 1
    assert refused == 25
    image.write_bytes(data[:end])
    assert_prefix(open_run(image))


def test_a_live_reader_never_sees_a_wrong_value(tmp_path, layout):
    from spectral.storage import ResultsWriter, open_run

    path = tmp_path / "results.h5"

    def write(acknowledge):
        with ResultsWriter.create(path, layout) as writer:
            append_until(writer, 600, acknowledge)
            writer.set_status("finished")

    child = ForkedWriter(write)
    while child.acknowledged["snapshot"] < 0:
        assert child.alive()
    run = open_run(path)
    rng = np.random.default_rng(0)
    names = run.datasets()
    looks, seen = 0, set()
    while child.alive():
        promised = child.acknowledged
        run.refresh()
        assert len(run.steps) > promised["snapshot"] // 10
        assert len(run.train_steps) > promised["train"]
        assert_prefix(run, set(rng.choice(names, 5)))
        seen.add(len(run.steps))
        looks += 1
    run.refresh()
    assert run.status == "finished"
    assert len(run.train_steps) == 601
    assert_prefix(run)
    assert looks > 5
    assert len(seen) > 3


def test_a_view_follows_a_file_that_a_resume_made_shorter(finished):
    from spectral.storage import ResultsWriter, open_run

    run = open_run(finished)
    with ResultsWriter.reopen(finished, last_step=15):
        assert len(run.read("hessian/trace")) == 2
        assert run.steps.tolist() == [0, 10]
