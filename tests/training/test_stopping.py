"""What the loop does when the online detector speaks, and when numbers stop being finite."""

from training_runs import checkpoint, events, resume_here

from spectral.config import RunConfig, load_preset


def _config(**options):
    values = {"n_threads": 1, "num_steps": 20, "eigen_interval": 2, "checkpoint_interval": 10, "log_interval": 2}
    return RunConfig(**(load_preset("tiny") | values | options))


def _run(folder, config, confirm_at):
    """Train with a detector that confirms a transition at one step."""
    from spectral.detection import OnlineEvent
    from spectral.storage import RunDirectory
    from spectral.training import Trainer

    with RunDirectory.create(folder, config.to_dict()) as directory:
        trainer = Trainer(config, directory)
        update = trainer.detector.update

        def speak(step, values):
            found = update(step, values)
            if step == confirm_at:
                event = OnlineEvent(
                    step=float(step),
                    kind="transition_confirmed",
                    signal=None,
                    family=None,
                    midpoint=3.0,
                    statistic=None,
                    threshold=9.0,
                    signals=("induction_loss", "induction_score"),
                )
                found.append(event)
            return found

        trainer.detector.update = speak
        return trainer.run()


def test_a_confirmed_transition_is_logged_and_its_checkpoint_never_pruned(tmp_path):
    folder = tmp_path / "run"
    outcome = _run(folder, _config(checkpoint_interval=1, keep_checkpoints=1), 4)
    assert outcome.step == 20
    assert [event["step"] for event in events(folder, "transition")] == [4]
    assert events(folder, "detector")[-1]["event"] == "transition_confirmed"
    assert sorted((folder / "checkpoints").glob("*.pt")) == [checkpoint(folder, 4), checkpoint(folder, 20)]


def test_the_run_ends_so_many_steps_after_a_confirmed_transition(tmp_path):
    from spectral import open_run

    folder = tmp_path / "run"
    outcome = _run(folder, _config(stop_after_transition=5), 4)
    assert (outcome.step, outcome.finished) == (9, True)
    with open_run(folder) as run:
        assert run.steps.tolist() == [0, 2, 4, 6, 8, 9]
        assert run.train_steps.tolist() == [2, 4, 6, 8, 9]
    assert checkpoint(folder, 9).exists()
    resume_here(folder)
    assert events(folder, "finish")[-1]["step"] == 9


def test_without_the_flag_a_transition_stops_nothing(tmp_path):
    assert _run(tmp_path / "run", _config(), 4).step == 20


def test_a_transition_at_the_last_step_does_not_prolong_the_run(tmp_path):
    assert _run(tmp_path / "run", _config(stop_after_transition=100), 20).step == 20
