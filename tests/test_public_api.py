"""The names that users rely on, and their signatures."""

import dataclasses
import inspect

import pytest

NAMES = (
    "HessianOperator",
    "RunConfig",
    "SpectralMonitor",
    "behaviour",
    "circuits",
    "detect_transition",
    "gradient_alignment",
    "open_run",
    "spectral_density",
    "top_eigenpairs",
)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_exported_and_documented(name):
    import spectral

    assert name in spectral.__all__
    assert getattr(spectral, name).__doc__


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("HessianOperator", ["model", "loss_fn", "batch", "*params", "*microbatch_size", "*backend"]),
        ("top_eigenpairs", ["operator", "*k", "*k_negative", "*rtol", "*max_products", "*start", "*seed"]),
        ("gradient_alignment", ["spectrum", "gradient"]),
        ("detect_transition", ["steps", "values", "*significance"]),
        ("SpectralMonitor", ["model", "loss_fn", "probe_batch", "path", "*eigen_interval"]),
    ],
)
def test_the_signature_is_the_documented_one(name, expected):
    import spectral

    parameters = inspect.signature(getattr(spectral, name)).parameters.values()
    shown = [("*" if p.kind is p.KEYWORD_ONLY else "") + p.name for p in parameters]
    assert shown[: len(expected)] == expected


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("Spectrum", {"top", "bottom", "n_products", "noise_floor"}),
        ("Eigenpairs", {"values", "vectors", "residuals", "error_bounds", "converged"}),
        (
            "Transition",
            {"detected", "onset", "midpoint", "end", "interval", "p_value", "abruptness", "reason", "verdict"},
        ),
    ],
)
def test_results_are_frozen_and_hold_the_documented_fields(name, fields):
    import spectral

    result = getattr(spectral, name)
    assert fields <= {field.name for field in dataclasses.fields(result)}
    assert result.__dataclass_params__.frozen
