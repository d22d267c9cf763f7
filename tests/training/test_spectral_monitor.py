"""SpectralMonitor in a loop that knows nothing of the suite."""

import numpy as np
import pytest
import torch
from torch import nn


def _problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 3, generator=generator)
    batch = (x, x @ torch.tensor([[1.0], [-2.0], [0.5]]))
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 1)), batch


def _loss(model, batch):
    x, y = batch
    return ((model(x) - y) ** 2).mean()


def _train(model, batch, monitor=None, steps=6):
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(steps + 1):
        if monitor is not None:
            monitor.step(step)
        optimizer.zero_grad()
        _loss(model, batch).backward()
        optimizer.step()
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def test_five_lines_give_a_run_that_opens(tmp_path):
    from spectral import SpectralMonitor, open_run

    model, batch = _problem()
    monitor = SpectralMonitor(model, _loss, batch, tmp_path / "run", eigen_interval=3, k=2, k_negative=1)
    _train(model, batch, monitor)
    monitor.close()
    with open_run(tmp_path / "run") as run:
        assert run.status == "finished"
        assert run.steps.tolist() == [0, 3, 6]
        assert run.read("hessian/eigenvalues").shape == (3, 2)
        assert run.attributes("hessian/gradient_alignment")["chance"] == pytest.approx(1 / 21)
        assert run.to_xarray("hessian").block.values.tolist() == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert (tmp_path / "run" / "transitions.json").exists()


def test_the_users_training_is_the_same_with_and_without(tmp_path):
    from spectral import SpectralMonitor

    model, batch = _problem()
    alone = _train(model, batch)
    model, batch = _problem()
    with SpectralMonitor(model, _loss, batch, tmp_path / "run", eigen_interval=1, k=2) as monitor:
        watched = _train(model, batch, monitor)
    assert torch.equal(alone, watched)
    assert model.training


def test_values_are_those_of_the_model_in_eval_mode(tmp_path):
    from spectral import SpectralMonitor

    model, batch = _problem()
    with SpectralMonitor(
        model, _loss, batch, tmp_path / "run", k=3, k_negative=0, hessian_dtype=torch.float64
    ) as monitor:
        row = monitor.step(0)
    model = model.double().eval()
    batch = tuple(tensor.double() for tensor in batch)
    names = [name for name, _ in model.named_parameters()]

    def loss(*weights):
        return _loss(lambda x: torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (x,)), batch)

    weights = tuple(model.parameters())
    sizes = [weight.numel() for weight in weights]
    rows = torch.autograd.functional.hessian(loss, weights)
    H = torch.cat([torch.cat([b.reshape(i, j) for b, j in zip(r, sizes, strict=True)], 1) for r, i in zip(rows, sizes)])  # noqa: B905
    truth = torch.linalg.eigvalsh(H).flip(0)[:3].numpy()
    np.testing.assert_array_less(np.abs(row["hessian/eigenvalues"] - truth), row["hessian/error_bounds"] + 1e-12)


def test_fewer_parameters_than_eigenvalues_leaves_the_rest_missing(tmp_path):
    from spectral import SpectralMonitor, open_run

    model = nn.Linear(2, 1)
    batch = (torch.eye(2), torch.ones(2, 1))
    with SpectralMonitor(model, _loss, batch, tmp_path / "run", k=10) as monitor:
        monitor.step(0)
    with open_run(tmp_path / "run") as run:
        values = run.read("hessian/eigenvalues")[0]
        assert np.isfinite(values[:3]).all()
        assert np.isnan(values[3:]).all()
        assert run.read("hessian/converged")[0, 3:].tolist() == [-1] * 7
        assert max(run.attributes("hessian/gradient_alignment_total")["chance"]) == 1.0


def test_training_rows_take_numbers_and_tensors(tmp_path):
    from spectral import SpectralMonitor, open_run

    model, batch = _problem()
    with SpectralMonitor(model, _loss, batch, tmp_path / "run", eigen_interval=2) as monitor:
        monitor.step(1, loss=0.5, learning_rate=0.1, tokens_seen=7)
    with open_run(tmp_path / "run") as run:
        assert run.train_steps.tolist() == [1]
        assert run.read("train/tokens_seen").tolist() == [7]
        assert run.steps.size == 0


def test_a_second_run_into_the_same_folder_is_refused_and_the_first_untouched(tmp_path):
    from spectral import SpectralMonitor
    from spectral.errors import RunDirectoryError

    model, batch = _problem()
    with SpectralMonitor(model, _loss, batch, tmp_path / "run") as monitor:
        monitor.step(0)
        with pytest.raises(RunDirectoryError, match="in use"):
            SpectralMonitor(model, _loss, batch, tmp_path / "run", overwrite=True)
    before = (tmp_path / "run" / "results.h5").read_bytes()
    with pytest.raises(RunDirectoryError, match="not empty"):
        SpectralMonitor(model, _loss, batch, tmp_path / "run")
    assert (tmp_path / "run" / "results.h5").read_bytes() == before
    SpectralMonitor(model, _loss, batch, tmp_path / "run", overwrite=True).close()


def test_not_finite_stops_and_keeps_what_was_measured(tmp_path):
    from spectral import SpectralMonitor, open_run
    from spectral.errors import NonFiniteError

    model, batch = _problem()

    def diverge():
        with SpectralMonitor(model, _loss, batch, tmp_path / "run", eigen_interval=1) as monitor:
            monitor.step(0)
            with torch.no_grad():
                model[0].weight.fill_(float("nan"))
            monitor.step(1)

    with pytest.raises(NonFiniteError, match="not finite"):
        diverge()
    with open_run(tmp_path / "run") as run:
        assert run.status == "failed"
        assert run.steps.tolist() == [0]


def test_an_error_of_the_user_marks_the_run_failed(tmp_path):
    from spectral import SpectralMonitor, open_run

    model, batch = _problem()

    def fail():
        with SpectralMonitor(model, _loss, batch, tmp_path / "run") as monitor:
            monitor.step(0)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with open_run(tmp_path / "run") as run:
        assert run.status == "failed"


@pytest.mark.parametrize("options", [{"eigen_interval": 0}, {"k": -1}, {"config": {"x": object()}}])
def test_bad_arguments_leave_no_folder(tmp_path, options):
    from spectral import SpectralMonitor

    model, batch = _problem()
    with pytest.raises((ValueError, TypeError)):
        SpectralMonitor(model, _loss, batch, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_model_without_parameters_is_refused(tmp_path):
    from spectral import SpectralMonitor

    with pytest.raises(ValueError, match="no parameters"):
        SpectralMonitor(nn.Tanh(), _loss, (torch.ones(1), torch.ones(1)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_steps_must_increase(tmp_path):
    from spectral import SpectralMonitor

    model, batch = _problem()
    with SpectralMonitor(model, _loss, batch, tmp_path / "run") as monitor:
        monitor.step(100)
        with pytest.raises(ValueError, match="must increase"):
            monitor.step(0)


def test_closing_twice_is_harmless(tmp_path):
    from spectral import SpectralMonitor

    model, batch = _problem()
    monitor = SpectralMonitor(model, _loss, batch, tmp_path / "run")
    assert monitor.close() is None
    assert monitor.close() is None
