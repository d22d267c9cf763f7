"""Which runs the study consists of, and how it is scaled down."""

import math

import pytest

PROMISED = {
    "1L_fixed": (1, 20, 20, 5_000),
    "1L_varied": (1, 20, 29, 20_000),
    "2L_fixed": (2, 20, 20, 5_000),
    "2L_varied_20000": (2, 20, 29, 20_000),
    "2L_varied_60000": (2, 20, 29, 60_000),
}


def plan(**values):
    from spectral.studies.repeated.plan import StudyPlan

    return StudyPlan(**values)


def test_the_models_are_those_of_the_reference_experiment():
    from spectral.studies.repeated.plan import MODELS

    assert list(PROMISED) == list(MODELS)
    for model, (n_layers, low, high, steps) in PROMISED.items():
        config = plan().job(model, 2).config
        assert (config.n_layers, config.min_period, config.max_period, config.num_steps) == (n_layers, low, high, steps)
        assert (config.vocab_size, config.d_model, config.n_heads, config.seq_length) == (256, 64, 4, 80)
        assert (config.d_ff, config.positions, config.period_per, config.max_prefix) == (0, "learned", "batch", 0)
        assert (config.batch_size, config.optimizer, config.lr, config.weight_decay) == (32, "adamw", 1e-3, 0.01)
        assert (config.beta1, config.beta2, config.grad_clip, config.use_lr_schedule) == (0.9, 0.98, 0.0, False)
        assert config.keep_checkpoints == 0
        assert config.seed == 2


def test_a_preset_sets_everything_that_decides_the_training():
    from spectral.config import FIELD_NAMES, load_preset

    measuring = set(FIELD_NAMES[FIELD_NAMES.index("eigen_interval") :])
    others = {"n_patterns", "min_pattern_length", "max_pattern_length", "n_repeats_per_seq", "ngram_parents"}
    others |= {"ngram_alpha", "text_path", "warmup_steps"}  # of other data, and of the schedule that is switched off
    for model in PROMISED:
        assert set(FIELD_NAMES) - measuring - others <= set(load_preset(model)), model


def test_jobs_are_models_times_seeds():
    jobs = plan(models=("2L_fixed", "1L_fixed"), n_seeds=2).jobs()
    assert [job.name for job in jobs] == ["2L_fixed_seed0", "2L_fixed_seed1", "1L_fixed_seed0", "1L_fixed_seed1"]
    assert [job.config.seed for job in jobs] == [0, 1, 0, 1]


@pytest.mark.parametrize("scale", [0.001, 0.0137, 0.1, 0.5])
def test_scaled_runs_keep_their_proportions(scale):
    jobs = {job.model: job.config for job in plan(scale=scale).jobs()}
    for model, config in jobs.items():
        assert config.num_steps == pytest.approx(PROMISED[model][3] * scale, rel=0.5, abs=1)
        assert config.num_steps % config.checkpoint_interval == 0
        assert len(config.snapshot_steps()) <= 62
    short, long = jobs["2L_varied_20000"], jobs["2L_varied_60000"]
    assert long.num_steps == 3 * short.num_steps
    assert short.num_steps % long.checkpoint_interval == 0  # the long run has a checkpoint where the short one ends


def test_at_full_length_the_preset_is_kept():
    from spectral.config import load_preset

    assert plan().job("1L_varied", 0).settings == load_preset("1L_varied") | {"seed": 0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": ("3L",)}, "--models '3L' is unknown; use some of 1L_fixed"),
        ({"models": ()}, "--models is empty"),
        ({"models": ("1L_fixed", "1L_fixed")}, "give every model once"),
        ({"n_seeds": 0}, "--seeds is 0; give at least 1"),
        ({"scale": 0.0}, "--scale is 0; give a number between 0.001 and 1"),
        ({"scale": 2.0}, "--scale is 2"),
        ({"scale": math.nan}, "--scale is nan"),
        ({"n_sequences": 1}, "at least 8"),
    ],
)
def test_impossible_plans_are_refused(values, message):
    from spectral.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        plan(**values)


def test_only_folders_of_the_study_are_found(tmp_path):
    for name in ("2L_fixed_seed3", "1L_fixed_seed0", "notes", "1L_fixed_seedx", "1L_fixed_seed0.old"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert [job.name for job in plan(output=tmp_path).found_jobs()] == ["1L_fixed_seed0", "2L_fixed_seed3"]
    assert plan(output=tmp_path / "nowhere").found_jobs() == []


def test_settings_are_compared_by_what_the_preset_sets():
    from spectral.studies.plan import differing_setting

    job = plan().job("1L_fixed", 0)
    stored = job.config.to_dict()
    assert differing_setting(job, stored) is None
    assert differing_setting(job, stored | {"some_later_setting": 7}) is None
    assert differing_setting(job, stored | {"eigen_rtol": 0.5}) is None  # measuring, and not set by the preset
    assert differing_setting(job, stored | {"lr": 0.002}) == ("lr", 0.002, 0.001)
    assert differing_setting(job, stored | {"seed": 1}) == ("seed", 1, 0)
    assert differing_setting(job, stored | {"probe_periods": [10]})[0] == "probe_periods"
    # A setting that did not exist yet counts as its default.
    assert differing_setting(job, {name: v for name, v in stored.items() if name != "weight_decay"}) is None
    without = {name: v for name, v in stored.items() if name != "n_layers"}
    assert differing_setting(job, without) == ("n_layers", 2, 1)
