"""The transformer: causal, written out, rebuilt from its head weights, initialised as documented."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spectral.config import RunConfig
from spectral.models import Transformer, next_token_loss, rotary_angles
from spectral.models.transformer import Attention

OPTIONS = {
    "attention-only": {},
    "with MLP": {"d_ff": 16},
    "no LayerNorm": {"layer_norm": False},
    "dropout": {"dropout": 0.2},
    "rotary": {"positions": "rotary"},
    "no positions": {"positions": "none"},
    "one head, one layer": {"n_heads": 1, "n_layers": 1},
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model_of(seed=0, **options):
    values = {"vocab_size": 11, "seq_length": 10, "n_layers": 2, "n_heads": 2, "d_model": 8} | options
    return Transformer(generator=generator(seed), **values).double().eval()


def tokens_of(batch=3, position=10, seed=1):
    return torch.randint(0, 11, (batch, position), generator=generator(seed))


@pytest.mark.parametrize("name", OPTIONS)
def test_attention_rows_sum_to_one_and_look_back_only(name):
    _, patterns = model_of(**OPTIONS[name]).forward_with_patterns(tokens_of())
    torch.testing.assert_close(patterns.sum(-1), torch.ones_like(patterns.sum(-1)))
    assert (patterns >= 0).all()
    assert torch.equal(patterns, patterns.tril())
    assert patterns.shape[1:3] == (OPTIONS[name].get("n_layers", 2), OPTIONS[name].get("n_heads", 2))


@pytest.mark.parametrize("name", OPTIONS)
def test_logits_do_not_depend_on_later_tokens(name):
    model, tokens = model_of(**OPTIONS[name]), tokens_of()
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 11
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(before[:, 6:], after[:, 6:])
    torch.testing.assert_close(model(tokens[:, :6]), before[:, :6], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
def test_asking_for_patterns_does_not_change_the_logits(name):
    model, tokens = model_of(**OPTIONS[name]), tokens_of()
    assert torch.equal(model.forward_with_patterns(tokens)[0], model(tokens))


@pytest.mark.parametrize("name", ["attention-only", "no LayerNorm", "one head, one layer"])
def test_head_weights_rebuild_the_model_from_the_formula(name):
    model, tokens = model_of(**OPTIONS[name]), tokens_of()
    weights = model.head_weights()
    hidden = torch.ones(10, 10).triu(1).bool()
    x = model.W_E[tokens] + model.W_pos[:10]
    patterns = []
    for layer, block in enumerate(model.blocks):
        normed = block.ln1(x)
        written = torch.zeros_like(x)
        for head in range(model.n_heads):
            W_Q, W_K, W_V, W_O = (weights[f"W_{letter}"][layer, head] for letter in "QKVO")
            scores = (normed @ W_Q) @ (normed @ W_K).mT / math.sqrt(model.d_head)
            pattern = scores.masked_fill(hidden, -math.inf).softmax(-1)
            patterns.append(pattern)
            written = written + pattern @ normed @ W_V @ W_O
        x = x + written
    logits, own_patterns = model.forward_with_patterns(tokens)
    torch.testing.assert_close(logits, model.ln_final(x) @ model.W_U, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(own_patterns.flatten(1, 2), torch.stack(patterns, 1), rtol=1e-10, atol=1e-12)


def test_head_weights_are_detached_copies():
    model = model_of()
    weights = model.head_weights()
    assert {name: tuple(w.shape) for name, w in weights.items()} == {
        "W_Q": (2, 2, 8, 4), "W_K": (2, 2, 8, 4), "W_V": (2, 2, 8, 4), "W_O": (2, 2, 4, 8)
    }  # fmt: skip
    weights["W_Q"].zero_()
    assert model.blocks[0].attn.W_Q.abs().sum() > 0
    assert not weights["W_Q"].requires_grad


# positions


def attention(*, rotary, n_heads=2, d_model=8, seq_length=10, dropout=0.0):
    module = Attention(d_model=d_model, n_heads=n_heads, seq_length=seq_length, rotary=rotary, dropout=dropout).double()
    rng = generator(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=rng)
    return module


def test_rotary_scores_depend_on_the_distance_only():
    x = torch.randn(1, 1, 8, generator=generator(4), dtype=torch.float64).expand(1, 10, 8)
    pattern = attention(rotary=True)(x)[1].detach()
    # With one vector everywhere, log pattern[i, j] - log pattern[i, i] = score(i - j) - score(0).
    relative = pattern.log() - pattern.log().diagonal(dim1=-2, dim2=-1)[..., None]
    for distance in range(1, 9):
        along = relative.diagonal(-distance, dim1=-2, dim2=-1)
        # The tables hold float32 angles' cosines, so the property holds to their rounding.
        torch.testing.assert_close(along, along[..., :1].expand_as(along), rtol=0, atol=1e-4)
    assert float(relative.diagonal(-1, dim1=-2, dim2=-1).abs().min()) > 1e-3


def test_without_rotary_or_learned_positions_equal_tokens_are_looked_at_equally():
    model = model_of(positions="none")
    _, patterns = model.forward_with_patterns(torch.full((1, 10), 4))
    uniform = torch.ones(10, 10, dtype=torch.float64).tril()
    torch.testing.assert_close(patterns[0, 0, 0], uniform / uniform.sum(-1, keepdim=True))


def test_rotary_tables_rotate_pairs_by_position_times_frequency():
    cos, sin = rotary_angles(5, 4)
    angle = torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.01, 1.0, 0.01])
    torch.testing.assert_close(cos, angle.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sin, angle.sin(), rtol=0, atol=1e-6)


# derivatives


@pytest.mark.parametrize("rotary", [False, True])
def test_attention_has_correct_second_derivatives(rotary):
    module = attention(rotary=rotary, d_model=4, seq_length=3)
    names = ["W_Q", "W_K", "W_V", "W_O"]
    x = torch.randn(1, 3, 4, generator=generator(5), dtype=torch.float64, requires_grad=True)

    def written(x, *weights):
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))[0]

    weights = [getattr(module, name).detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(written, (x, *weights))
    assert torch.autograd.gradgradcheck(written, (x, *weights))


class Operations(TorchDispatchMode):
    """Names of the operations that ran."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_measured_uses_no_fused_attention_kernel(name):
    model = model_of(**OPTIONS[name]).eval()
    with Operations() as operations:
        next_token_loss(model, tokens_of()).backward()
        model.train().forward_with_patterns(tokens_of())
    assert any("softmax" in op for op in operations.seen)
    assert not any("attention" in op or "flash" in op for op in operations.seen)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "dropout"])
def test_the_fused_kernel_of_training_gives_the_same_loss_and_gradient(name):
    model = model_of(**OPTIONS[name]).double()
    losses, gradients = [], []
    for training in (True, False):
        model.train(training)
        with Operations() as operations:
            loss = next_token_loss(model, tokens_of())
        assert any("attention" in op for op in operations.seen) == training
        losses.append(float(loss.detach()))
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for fused, written in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, written, rtol=1e-9, atol=1e-12)


# initialisation


@pytest.mark.parametrize("name", OPTIONS)
def test_weights_are_a_function_of_the_generator(name):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = model_of(0, **OPTIONS[name]), model_of(0, **OPTIONS[name]), model_of(1, **OPTIONS[name])
    assert torch.equal(before, torch.get_rng_state())
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert not torch.equal(first.W_E, other.W_E)


@pytest.mark.parametrize(("weight_std", "embedding_std"), [(0.0, 0.2), (0.02, 0.05)])
def test_standard_deviations_are_as_documented(weight_std, embedding_std):
    d_model, d_ff = 64, 128
    model = Transformer(
        vocab_size=100, seq_length=50, n_heads=4, d_model=d_model, d_ff=d_ff,
        init_embedding_std=embedding_std, init_weight_std=weight_std, generator=generator(),
    )  # fmt: skip
    fan_in = {"W_in": d_model, "W_out": d_ff, "W_U": d_model, "W_O": d_model}
    for name, parameter in model.state_dict().items():
        kind = name.rsplit(".", 1)[-1]
        if kind in ("W_E", "W_pos"):
            std = embedding_std
        elif kind.startswith("W_"):
            std = weight_std or fan_in.get(kind, d_model) ** -0.5
        else:
            assert torch.equal(parameter, torch.full_like(parameter, float(kind == "weight"))), name
            continue
        # The sample deviation of N normal draws has standard error std / sqrt(2 N).
        assert abs(float(parameter.std()) / std - 1) <= 6 / math.sqrt(2 * parameter.numel()), name
        assert abs(float(parameter.mean())) <= 6 * std / math.sqrt(parameter.numel()), name


def test_a_model_of_a_config_depends_on_its_seed_alone():
    first = Transformer.from_config(RunConfig(d_model=16, n_heads=2))
    other_training = Transformer.from_config(RunConfig(d_model=16, n_heads=2, lr=1e-2, batch_size=8))
    other_seed = Transformer.from_config(RunConfig(d_model=16, n_heads=2, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other_training.parameters(), strict=True))
    assert not torch.equal(first.W_E, other_seed.W_E)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_state_holds_weights_only_and_reads_back(name):
    model, other = model_of(0, **OPTIONS[name]), model_of(1, **OPTIONS[name])
    state = model.state_dict()
    assert set(state) == {key for key, _ in model.named_parameters()}
    other.load_state_dict(state)
    assert torch.equal(model(tokens_of()), other(tokens_of()))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_weight_gets_a_gradient(name):
    model = model_of(**OPTIONS[name])
    next_token_loss(model, tokens_of()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


def test_dropout_acts_in_training_only():
    model = model_of(dropout=0.3)
    tokens = tokens_of()
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


# loss and limits


def test_the_loss_of_zero_logits_is_ln_vocabulary():
    model = model_of()
    with torch.no_grad():
        model.W_U.zero_()
    assert next_token_loss(model, tokens_of()).item() == pytest.approx(math.log(11), abs=1e-12)


def test_the_loss_is_the_mean_negative_log_probability_of_the_next_token():
    model, tokens = model_of(), tokens_of()
    log_p = model(tokens).log_softmax(-1)
    terms = [-log_p[b, t, tokens[b, t + 1]].item() for b in range(3) for t in range(9)]
    assert next_token_loss(model, tokens).item() == pytest.approx(sum(terms) / 27, rel=1e-12)


@pytest.mark.parametrize("name", ["attention-only", "rotary", "no positions"])
def test_too_long_an_input_is_refused(name):
    with pytest.raises(ValueError, match="11 tokens given to a model of seq_length 10"):
        model_of(**OPTIONS[name])(tokens_of(position=11))


@pytest.mark.parametrize("position", [1, 2])
def test_the_shortest_inputs_work(position):
    logits, patterns = model_of().forward_with_patterns(tokens_of(position=position))
    assert logits.shape == (3, position, 11)
    assert (patterns[..., 0, 0] == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 3}, "choose a divisor"),
        ({"positions": "sine"}, "learned, rotary or none"),
        ({"positions": "rotary", "n_heads": 8}, "rotate pairs"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        model_of(**options)
