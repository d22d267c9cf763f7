"""Writers that die, disks that fill up: acknowledged rows survive and the run goes on."""

import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storage_processes import ForkedWriter, append_until, assert_prefix


def _kill_and_continue(path, layout, n_kills, seed):
    from spectral.storage import ResultsWriter, open_run

    rng = np.random.default_rng(seed)

    def write(acknowledge):
        if path.exists():
            writer = ResultsWriter.reopen(path, last_step=int(open_run(path).train_steps[-1]))
        else:
            writer = ResultsWriter.create(path, layout)
        acknowledge("train", writer.last_steps[0])
        append_until(writer, 10**6, acknowledge)

    survived = 0
    for _ in range(n_kills):
        child = ForkedWriter(write)
        while child.acknowledged["train"] < 0:
            assert child.alive()
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.12))
        promised = child.kill()
        run = open_run(path)
        assert run.status == "died"
        assert len(run.steps_of("causal")) > promised["causal"] // 20
        assert len(run.train_steps) > promised["train"]
        assert len(run.steps) > promised["snapshot"] // 10
        assert_prefix(run)
        survived += 1
    return survived


def test_acknowledged_rows_survive_sigkill_and_the_run_goes_on(tmp_path, layout):
    assert _kill_and_continue(tmp_path / "results.h5", layout, 12, seed=0) == 12


@pytest.mark.slow
def test_acknowledged_rows_survive_many_kills(tmp_path, layout):
    for seed in range(4):
        path = tmp_path / f"results{seed}.h5"
        assert _kill_and_continue(path, layout, 40, seed=seed + 1) == 40


def _crash_images(tmp_path, layout, n_images, seed):
    """Stop the writer at random moments and look at a copy: the state that a kill at that moment would leave."""
    from spectral.storage import ResultsWriter, open_run

    rng = np.random.default_rng(seed)
    path, image = tmp_path / "results.h5", tmp_path / "image.h5"

    def write(acknowledge):
        with ResultsWriter.create(path, layout) as writer:
            append_until(writer, 10**6, acknowledge)

    child = ForkedWriter(write)
    try:
        while child.acknowledged["snapshot"] < 0:
            assert child.alive()
        for index in range(n_images):
            time.sleep(rng.uniform(0, 0.01))
            child.pause()
            promised = child.acknowledged
            shutil.copy(path, image)
            child.go_on()
            run = open_run(image)
            assert len(run.train_steps) > promised["train"]
            assert len(run.steps) > promised["snapshot"] // 10
            assert len(run.steps_of("causal")) > promised["causal"] // 20
            if index % 5 == 0:
                assert_prefix(run)
                with ResultsWriter.reopen(image, last_step=promised["train"]) as writer:
                    append_until(writer, promised["train"] + 12)
                assert_prefix(open_run(image))
    finally:
        child.kill()


def test_every_crash_image_is_readable_and_can_be_continued(tmp_path, layout):
    _crash_images(tmp_path, layout, 15, seed=0)


@pytest.mark.slow
def test_many_crash_images_are_readable(tmp_path, layout):
    _crash_images(tmp_path, layout, 200, seed=1)


def test_a_killed_creation_leaves_no_half_built_file(tmp_path, layout):
    from spectral.storage import ResultsWriter, open_run

    path = tmp_path / "results.h5"
    for pause in np.linspace(0.0, 0.08, 8):
        child = ForkedWriter(lambda acknowledge: append_until(ResultsWriter.create(path, layout), 0, acknowledge))
        time.sleep(pause)
        child.kill()
        if path.exists():
            assert_prefix(open_run(path))
            path.unlink()


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    actions=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 14)),
            st.tuples(st.just("crash"), st.integers(0, 20)),
            st.tuples(st.just("close"), st.integers(0, 20)),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_order_of_appending_crashing_and_resuming_gives_a_prefix(tmp_path_factory, layout, actions):
    from spectral.storage import ResultsWriter, open_run

    folder = tmp_path_factory.mktemp("any")
    path = folder / "results.h5"
    writer = ResultsWriter.create(path, layout)
    step = -1
    for action, amount in actions:
        if action == "append":
            step += amount
            append_until(writer, step)
        else:
            if action == "crash":
                shutil.copy(path, folder / "image.h5")
                writer.close()
                os.replace(folder / "image.h5", path)
            else:
                writer.close()
            step = max(step - amount, -1)
            writer = ResultsWriter.reopen(path, last_step=step)
        run = open_run(path)
        assert len(run.train_steps) == step + 1
        assert len(run.steps) == (step // 10 + 1 if step >= 0 else 0)
        assert len(run.steps_of("causal")) == (step // 20 + 1 if step >= 0 else 0)
    assert_prefix(open_run(path))
    writer.close()
    assert_prefix(open_run(path))


@pytest.mark.parametrize("then", ["end", "space"])
def test_a_full_disk_is_one_clear_line_loses_nothing_and_ends_when_there_is_space(tmp_path, layout, then):
    import spectral.storage
    from spectral.storage import RunLayout, open_run

    path = tmp_path / "results.h5"
    script = textwrap.dedent("""
        import resource, sys
        sys.path[:0] = sys.argv[4:]
        from storage_processes import append_until
        from spectral.errors import ResultsFileError
        from spectral.storage import ResultsWriter, RunLayout

        writer = ResultsWriter.create(sys.argv[1], RunLayout.from_json(sys.argv[2]))
        append_until(writer, 60)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_800_000, resource.RLIM_INFINITY))
        acknowledged = []
        try:
            append_until(writer, 100_000, lambda kind, step: acknowledged.append((kind, step)))
        except ResultsFileError as error:
            print(error)
        print(*max(acknowledged, key=lambda entry: entry[1]))
        try:
            ResultsWriter.reopen(sys.argv[1], last_step=10)
        except ResultsFileError as error:
            print(error)
        if sys.argv[3] == "space":
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            append_until(writer, writer.last_steps[0] + 25)
        writer.close()
    """)
    root = Path(spectral.storage.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), layout.to_json(), then, str(root), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    failure, acknowledged, other = done.stdout.splitlines()
    assert "could not be written (File too large); free some space" in failure
    assert "in use" in other
    run = open_run(path)
    assert run.layout == RunLayout.from_json(layout.to_json())
    assert run.status == "died"
    promised = int(acknowledged.split()[1])
    assert len(run.train_steps) >= promised + (25 if then == "space" else 0)
    assert_prefix(run)


def test_no_space_for_the_copy_leaves_the_old_file(finished):
    import resource

    from spectral.errors import ResultsFileError
    from spectral.storage import ResultsWriter, open_run

    before = finished.read_bytes()

    def write(acknowledge):
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
        with pytest.raises(ResultsFileError, match="free some space"):
            ResultsWriter.reopen(finished, last_step=20)
        acknowledge("train", 1)

    assert ForkedWriter(write).wait() == 0
    assert finished.read_bytes() == before
    assert [p.name for p in finished.parent.iterdir()] == ["results.h5"]
    assert_prefix(open_run(finished))
