"""Measuring leaves no trace: the model, the random state, the precision settings and the memory."""

import gc
import weakref

import pytest
import torch
from curvature_cases import tiny_model, tokens_of, unit
from torch import nn

from spectral.curvature import HessianOperator, top_eigenpairs
from spectral.models import next_token_loss

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

ROUTES = [
    {"backend": "double_backward"},
    {"backend": "forward_over_reverse"},
    {"microbatch_size": 3},
    {"microbatch_size": 3, "backend": "forward_over_reverse"},
]


def mixed_model():
    """Return a model whose modules are in different modes, with one frozen weight and a gradient already there."""
    model = tiny_model(dropout=0.2, d_ff=4).train()
    model.blocks[0].eval()
    model.blocks[1].attn.training = False
    model.W_pos.requires_grad_(False)
    next_token_loss(model, tokens_of("repeated")).backward()
    return model


def state_of(model):
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {
        f"{name}.grad": parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    flags = [(module.training, *(p.requires_grad for p in module.parameters())) for module in model.modules()]
    versions = [parameter._version for parameter in model.parameters()]
    return tensors | gradients | {"rng": torch.get_rng_state()}, (flags, versions, torch.is_grad_enabled())


def assert_same_state(before, after):
    tensors, flags = before
    assert flags == after[1]
    assert tensors.keys() == after[0].keys()
    for name, value in tensors.items():
        assert torch.equal(value, after[0][name]), name


@pytest.mark.parametrize("options", ROUTES)
def test_model_and_random_state_are_bit_identical_afterwards(options):
    model = mixed_model()
    torch.manual_seed(7)
    before = state_of(model)
    operator = HessianOperator(model, next_token_loss, tokens_of("repeated"), **options)
    top_eigenpairs(operator, k=2, k_negative=1, max_products=20)
    operator.noise_floor()
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("options", ROUTES)
@pytest.mark.parametrize("failing_call", [1, 2])
def test_the_state_is_restored_when_the_loss_raises(failing_call, options):
    model = mixed_model()
    torch.manual_seed(7)
    before = state_of(model)
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        torch.randn(5)
        loss = next_token_loss(model, batch)
        if len(calls) >= failing_call:
            raise KeyError(failing_call)
        return loss

    def measure():
        HessianOperator(model, loss_fn, tokens_of("repeated"), **options).matvec(unit(model_size(model), 0))

    if failing_call == 2 and options == {"backend": "double_backward"}:
        measure()  # the graph is kept, so there is no second call
    else:
        with pytest.raises(KeyError):
            measure()
    assert_same_state(before, state_of(model))


def model_size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_loss_that_draws_random_numbers_does_not_move_the_global_generator():
    def loss_fn(model, batch):
        torch.randn(3)
        return next_token_loss(model, batch)

    torch.manual_seed(3)
    before = torch.get_rng_state()
    operator = HessianOperator(tiny_model(), loss_fn, tokens_of("repeated"), microbatch_size=2)
    operator.matvec(unit(operator.n, 0))
    assert torch.equal(before, torch.get_rng_state())


def test_buffers_of_batch_norm_do_not_move():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    operator = HessianOperator(model, lambda m, x: m(x).square().mean(), torch.randn(6, 3))
    operator.matvec(torch.ones(operator.n))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("options", ROUTES)
def test_autocast_around_a_measurement_has_no_say_in_it(options):
    model = tiny_model().float()
    tokens = tokens_of("repeated")
    v = unit(model_size(model), 1, torch.float32)
    expected = HessianOperator(model, next_token_loss, tokens, **options).matvec(v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(HessianOperator(model, next_token_loss, tokens, **options).matvec(v), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("options", ROUTES)
def test_measuring_works_where_gradients_are_off(mode, options):
    model, tokens = tiny_model(), tokens_of("repeated")
    v = unit(model_size(model), 1)
    expected = HessianOperator(model, next_token_loss, tokens, **options).matvec(v)
    with mode():
        product = HessianOperator(model, next_token_loss, tokens, **options).matvec(v)
    assert torch.equal(product, expected)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_precision_of_float32_products_is_lifted_inside_and_as_before_afterwards(precision):
    seen = []

    def loss_fn(model, batch):
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision))
        return next_token_loss(model, batch)

    torch.set_float32_matmul_precision(precision)
    try:
        operator = HessianOperator(tiny_model(), loss_fn, tokens_of("repeated"))
        operator.matvec(unit(operator.n, 0))
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [("ieee", "ieee")]


def test_graphs_of_fifty_operators_are_freed_without_the_garbage_collector():
    class Kept:  # stands for one tensor that autograd keeps
        def __init__(self, tensor):
            self.tensor = tensor

    alive = weakref.WeakSet()

    def pack(tensor):
        kept = Kept(tensor.detach())
        alive.add(kept)
        return kept

    model, tokens = tiny_model(), tokens_of("repeated")
    gc.collect()
    gc.disable()
    try:
        counts = []
        for seed in range(50):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
                operator = HessianOperator(model, next_token_loss, tokens)
            counts.append(len(alive))
            operator.gradient.sum()
            assert operator.n > seed
            del operator
        assert counts[0] > 50  # the graph is there while the operator lives
        assert counts == [counts[0]] * 50
        assert len(alive) == 0
    finally:
        gc.enable()
