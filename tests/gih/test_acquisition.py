"""Passages from observer to observer: on made-up distances whose dates are known, and on a real run."""

import numpy as np
import pytest


def logistic(steps, middle, width):
    return 1 / (1 + np.exp(-(steps - middle) / width))


@pytest.fixture(scope="module")
def stepwise():
    from spectral.gih.acquisition import passages

    steps = np.arange(0, 2000, 20)
    first, second, third = (logistic(steps, middle, 15) for middle in (300, 900, 1500))
    rng = np.random.default_rng(0)
    noise = {name: 0.004 * rng.standard_normal(len(steps)) for name in "abcd"}
    place = first + second + third  # 0 at uniform .. 3 at bayes
    names = ("uniform", "unigram", "bigram", "bayes")
    distances = {
        name: 0.3 * np.abs(place - i) + n for i, (name, n) in enumerate(zip(names, noise.values(), strict=True))
    }
    return passages(steps, distances | {"oracle": np.full(len(steps), 9.0)})


def test_each_passage_is_dated_where_it_was_made(stepwise):
    assert list(stepwise.distances) == ["uniform", "unigram", "bigram", "bayes"]
    for passage, middle in zip(stepwise.passages, (300, 900, 1500), strict=True):
        assert passage.transition.detected
        assert passage.transition.midpoint == pytest.approx(middle, abs=20)
        assert passage.crossing == pytest.approx(middle, abs=20)


def test_the_nearest_observer_follows_the_passages(stepwise):
    nearest = dict(zip(stepwise.steps.tolist(), stepwise.nearest, strict=True))
    assert [nearest[step] for step in (100, 600, 1200, 1900)] == ["uniform", "unigram", "bigram", "bayes"]


def test_a_passage_that_never_comes_has_no_crossing():
    from spectral.gih.acquisition import passages
    from spectral.plots.gih.acquisition import describe_passage

    steps = np.arange(40)
    found = passages(steps, {"uniform": 0.1 + 0.0 * steps, "unigram": 0.5 + 0.0 * steps})
    (passage,) = found.passages
    assert passage.crossing is None
    assert not passage.transition.detected
    assert "Uniform to unigram: never" in describe_passage(passage)
    (opposite,) = passages(steps, {"uniform": 0.5 + 0.0 * steps, "unigram": 0.1 + 0.0 * steps}).passages
    assert opposite.crossing == 0


TINY = ("--preset", "tiny", "--num_steps", "2", "--eigen_interval", "2", "--run_name", "mine", "--quiet")


def test_a_run_on_chains_stores_the_distances_and_shows_them(tmp_path, monkeypatch):
    from spectral.cli import train
    from spectral.gih.acquisition import acquisition
    from spectral.plots.gih.acquisition import draw_acquisition
    from spectral.storage import open_run

    monkeypatch.chdir(tmp_path)
    assert train([*TINY, "--data", "ngram", "--vocab_size", "3", "--ngram_parents", "1", "2"]) == 0
    with open_run("runs/mine") as run:
        found = acquisition(run)
        stored = run.read("behaviour/reference_kl")
        place = run.layout.references.index("bigram")
        np.testing.assert_allclose(found.distances["bigram"], stored[:, place].mean(1))
        assert list(found.distances) == ["uniform", "unigram", "bigram", "bayes"]
        files, passages = draw_acquisition(run, tmp_path, formats=("svg",))
    assert "Bigram to bayes" in passages
    assert [file.read_bytes()[:5] for file in files] == [b"<?xml"]


@pytest.mark.slow
def test_the_figure_is_drawn_with_the_others(tmp_path, monkeypatch, capsys):
    from spectral.cli import train, visualize

    monkeypatch.chdir(tmp_path)
    assert train(["--preset", "trigram_chain", *TINY[2:]]) == 0
    capsys.readouterr()
    assert visualize(["runs/mine", "--formats", "png", "--dpi", "60"]) == 0
    assert "Bigram to bayes" in capsys.readouterr().out
    assert (tmp_path / "runs/mine/figures/staged_acquisition.png").exists()


def test_one_parent_has_no_passage_beyond_the_bigram():
    from spectral.gih.acquisition import passages

    steps = np.arange(40)
    same = 0.2 + 0.01 * steps
    found = passages(steps, {"uniform": same * 2, "unigram": same + 1, "bigram": same, "bayes": same})
    assert [(one.first, one.second) for one in found.passages] == [("uniform", "unigram"), ("unigram", "bigram")]


@pytest.mark.slow
def test_a_run_on_other_data_is_refused(tmp_path, monkeypatch):
    from spectral.cli import train
    from spectral.errors import ResultsFileError
    from spectral.gih.acquisition import acquisition
    from spectral.storage import open_run

    monkeypatch.chdir(tmp_path)
    assert train([*TINY]) == 0
    with open_run("runs/mine") as run, pytest.raises(ResultsFileError, match="--data ngram"):
        acquisition(run)
