"""`--densify auto`: where the extra snapshots are, and that they change nothing else."""

import pytest
from training_runs import events

from spectral.config import RunConfig, load_preset
from spectral.detection import OnlineEvent
from spectral.errors import ConfigError


def config(**options):
    values = {"n_threads": 1, "num_steps": 120, "eigen_interval": 20, "checkpoint_interval": 30, "log_interval": 20}
    quick = {"track_top_k_eigenvalues": 1, "track_negative_eigenvalues": 0, "audit_interval": 0, "causal": "never"}
    return RunConfig(**(load_preset("tiny") | values | quick | options))


def event(step, kind, signal="induction_loss"):
    family = None if signal is None else "behaviour"
    return OnlineEvent(
        step=float(step), kind=kind, signal=signal, family=family, midpoint=3.0, statistic=20.0, threshold=9.0
    )


def train(folder, settings, spoken, *, stop_at=None, resume=False):
    """Train with a detector that says what `spoken` maps the steps to."""
    from spectral.storage import RunDirectory
    from spectral.training import Trainer

    make = RunDirectory.open if resume else RunDirectory.create
    arguments = {"for_writing": True} if resume else {}
    with make(folder, *(() if resume else (settings.to_dict(),)), **arguments) as directory:
        trainer = Trainer(settings, directory, resume=resume)
        seen = []

        def speak(step, values):
            seen.append(step)
            return spoken.get(step, [])

        trainer.detector.update = speak
        if stop_at is not None:
            update = trainer._update

            def interrupted():
                result = update()
                trainer._interrupted = trainer.completed + 1 >= stop_at
                return result

            trainer._update = interrupted
        trainer.run()
        return seen


def steps_of(folder):
    from spectral import open_run

    with open_run(folder) as run:
        return run.steps.tolist()


REGULAR = [0, 20, 40, 60, 80, 100, 120]


def test_a_candidate_makes_snapshots_dense_and_the_detector_sees_the_regular_ones_alone(tmp_path):
    folder = tmp_path / "run"
    spoken = {20: [event(20, "candidate")], 60: [event(60, "revoked")]}
    seen = train(folder, config(densify="auto"), spoken)
    assert seen == REGULAR
    assert steps_of(folder) == [0, *range(20, 61, 2), 80, 100, 120]
    assert [(e["step"], e["interval"]) for e in events(folder, "dense_window")] == [(20, 2)]


def test_a_window_ends_by_itself_and_a_second_candidate_prolongs_it(tmp_path):
    folder = tmp_path / "run"
    spoken = {0: [event(0, "candidate")], 20: [event(20, "candidate", "icl_score")], 40: [event(40, "revoked")]}
    train(folder, config(densify="auto", eigen_interval=10, num_steps=80), spoken)
    assert steps_of(folder) == [*range(71), 80]


def test_off_is_the_default_and_weights_do_not_depend_on_it(tmp_path):
    import torch

    spoken = {20: [event(20, "candidate")]}
    train(tmp_path / "off", config(), spoken)
    train(tmp_path / "auto", config(densify="auto"), spoken)
    assert steps_of(tmp_path / "off") == REGULAR
    final = [torch.load(tmp_path / name / "model_final.pt", weights_only=True) for name in ("off", "auto")]
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[0])


def test_an_interrupted_window_goes_on(tmp_path):
    spoken = {20: [event(20, "candidate")]}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, config(densify="auto"), spoken)
    train(parts, config(densify="auto"), spoken, stop_at=45)
    train(parts, config(densify="auto"), spoken, resume=True)
    assert steps_of(parts) == steps_of(whole) == [0, *range(20, 121, 2)]


def test_it_needs_a_detector():
    with pytest.raises(ConfigError, match="--densify auto needs --detect true"):
        config(densify="auto", detect=False)
