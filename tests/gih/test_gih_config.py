"""Settings: presets, what they build, and one line for everything that cannot be run."""

import pytest

from spectral.errors import ConfigError
from spectral.gih import GIHConfig, gih_preset_names, load_gih_preset
from spectral.models import FullDisentangledTransformer


def test_every_preset_is_valid_and_names_its_stages():
    stages = {name: GIHConfig.from_dict(load_gih_preset(name)).stages() for name in gih_preset_names()}
    assert set(stages) == {"gih_three_stage", "gih_three_stage_sharp", "gih_joint", "gih_full"}
    published = [(stage.train, stage.epochs, stage.lr) for stage in stages["gih_three_stage"]]
    assert published == [(("c",), 2_000, 1.0), (("w",), 50_000, 1.0), (("a",), 5_000, 1.0)]
    assert stages["gih_joint"][0].train == ("c", "w", "a")
    assert "norm.bias" in stages["gih_full"][0].train


def test_every_parameter_of_the_model_can_be_trained():
    for options in ({}, {"model": "full"}, {"model": "full", "normaliser": "standard"}):
        config = GIHConfig(train=("all",), n_epochs=(1,), **options)
        assert set(config.stages()[0].train) == {name for name, _ in config.build_model().named_parameters()}


def test_the_published_model_is_the_default():
    model = GIHConfig().build_model()
    assert model.w.tolist() == [[3.0, 0.1, 0.1]] * 3
    assert model.c.tolist() == [0.01] * 7
    assert isinstance(GIHConfig(model="full").build_model(), FullDisentangledTransformer)


def test_n_gram_counts_the_token_itself():
    assert GIHConfig(n_gram=4, low_degree=3).lags == (1, 2, 3)
    assert GIHConfig(parents=(1, 3)).lags == (1, 3)


def test_settings_survive_a_dictionary():
    config = GIHConfig(parents=(1, 3), lr=(0.5,))
    assert GIHConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"alpha": 0.0}, ["--alpha is 0.0", "above 0"]),
        ({"alpha": -1.0}, ["--alpha"]),
        ({"parents": (1, 6)}, ["--parents [6] lie outside", "ends at offset 5", "add heads"]),
        ({"parents": (1, 4), "window": "common"}, ["--parents [4]", "offset 3"]),
        ({"parents": (0,)}, ["--parents is [0]", "at least 1"]),
        ({"parents": (1, 1)}, ["different lags"]),
        ({"parents": ()}, ["--parents is []"]),
        ({"low_degree": 4}, ["--low_degree is 4", "give 0 to 3"]),
        ({"n_heads": 4, "window_length": 3, "window": "common"}, ["--window_length is 3", "at least 4"]),
        ({"seq_length": 4}, ["--seq_length is 4", "reach 5 tokens back", "at least 5"]),
        ({"seq_length": 0}, ["--seq_length is 0"]),
        ({"train": ("",), "n_epochs": (5,)}, ["trains nothing"]),
        ({"train": (), "n_epochs": (5,)}, ["nothing trains"]),
        ({"train": ("c", "w"), "n_epochs": (5, 0)}, ["stage w needs either epochs or flow_time"]),
        ({"train": ("c",), "n_epochs": (5,), "flow_time": (1.0,)}, ["exactly one of them"]),
        ({"train": ("c",), "n_epochs": (5,), "lr": (0.0,)}, ["lr=0.0", "trains nothing"]),
        ({"train": ("c",), "n_epochs": (5,), "lr": (float("nan"),)}, ["lr=nan"]),
        ({"train": ("W_E",), "n_epochs": (5,)}, ["--train names W_E", "choose from w, c, a"]),
        ({"train": ("W_Q",), "n_epochs": (5,)}, ["W_Q"]),
        ({"n_epochs": (5, 5)}, ["2 entries for 3 stages"]),
        ({"n_validation": 10_000}, ["--n_validation", "nothing trains"]),
        ({"batch_size": 9_500}, ["--batch_size is 9500", "9000 training chains"]),
        ({"train": ("w",), "n_epochs": (0,), "flow_time": (5.0,), "optim": "adam"}, ["gradient flow"]),
        ({"c_alpha": 0.0}, ["--c_alpha is 0"]),
        ({"a": float("inf")}, ["--a is inf"]),
        ({"eps": -1.0}, ["--eps"]),
        ({"n_gram": 1}, ["no parent"]),
        ({"n_gram": 4, "parents": (1, 3)}, ["disagree"]),
        ({"vocab_size": 1}, ["--vocab_size is 1"]),
        ({"hessian_points": -1}, ["--hessian_points"]),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(options, texts):
    with pytest.raises(ConfigError) as caught:
        GIHConfig(**options)
    assert len(caught.value.faults) == 1
    assert "\n" not in str(caught.value)
    for text in texts:
        assert text in str(caught.value)


def test_all_faults_come_together():
    with pytest.raises(ConfigError) as caught:
        GIHConfig(alpha=0.0, seq_length=4, train=("c",), n_epochs=(0,))
    assert len(caught.value.faults) == 3


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match="gih_three_stage"):
        load_gih_preset("gih")


def test_an_unknown_setting_is_told():
    with pytest.raises(ConfigError, match="unknown setting 'lambda'"):
        GIHConfig.from_dict({"lambda": 1})
