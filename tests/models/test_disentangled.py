"""The disentangled transformer against its formulas written as loops, its conserved directions, and its Hessian."""

import itertools
import math

import pytest
import torch

from spectral.curvature import HessianOperator
from spectral.models import (
    DisentangledTransformer,
    FullDisentangledTransformer,
    head_subsets,
    last_token_criterion,
    last_token_loss,
    last_token_losses,
    window_offsets,
)

KINDS = [DisentangledTransformer, FullDisentangledTransformer]


def scrambled(kind=DisentangledTransformer, seed=0, **options):
    """Return a model away from its symmetric start."""
    model = kind(**({"vocab_size": 3} | options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def tokens_of(batch=4, length=12, vocab_size=3, seed=0):
    return torch.randint(0, vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def loop_copies(model, sequence, head):
    """Return v of every row of one head, one entry at a time."""
    size, rows = model.vocab_size, []
    x = [[float(token == e) for e in range(size)] for token in sequence] + [[0.0] * size]
    for row in range(len(x)):
        scores = {
            row - k: w for k, w in zip(model.offsets[head].tolist(), model.w[head].tolist(), strict=True) if k <= row
        }
        if isinstance(model, FullDisentangledTransformer):
            scores[row] = 1e-6
            product = (model.W_Q[head] @ model.W_K[head].T).tolist()
            for column in scores:
                for i, j in itertools.product(range(size), repeat=2):
                    scores[column] += x[row][i] * product[i][j] * x[column][j]
        total = sum(math.exp(score) for score in scores.values())
        u = [sum(math.exp(score) / total * x[column][e] for column, score in scores.items()) for e in range(size)]
        if isinstance(model, FullDisentangledTransformer):
            value = model.W_V[head].tolist()
            u = [sum(u[i] * value[i][e] for i in range(size)) for e in range(size)]
            mean = sum(u) / size
            deviation = math.sqrt(sum((number - mean) ** 2 for number in u) / size + 1e-5)
            gain, bias = model.norm.weight.tolist(), model.norm.bias.tolist()
            rows.append([(number - mean) / deviation * g + b for number, g, b in zip(u, gain, bias, strict=True)])
        else:
            length = math.sqrt(sum(number**2 for number in u))
            rows.append([number / (length + 1e-7) for number in u])
    return rows


def loop_prediction(model, sequence):
    """Return y of one sequence by the formulas of the docstrings."""
    v = [loop_copies(model, sequence, head) for head in range(model.n_heads)]
    c = model.c.tolist()
    subsets = [[head for head, digit in enumerate(name) if digit == "1"] for name in model.subset_names]

    def squared(coefficients, members, factors):
        return sum(
            k**2 * math.prod(factors[h] for h in subset) for k, subset in zip(coefficients, members, strict=True)
        )

    votes = [0.0] * model.vocab_size
    for position, token in enumerate(sequence):
        kernel = [max(0.0, sum(q * k for q, k in zip(rows[-1], rows[position], strict=True))) for rows in v]
        s = squared(c, subsets, kernel)
        if getattr(model, "normaliser", "plain") == "standard":
            query = [sum(number**2 for number in rows[-1]) for rows in v]
            key = [sum(number**2 for number in rows[position]) for rows in v]
            residual = [[h for h, member in enumerate(row) if member] for row in model.residual_subsets.tolist()]
            key_length = squared(c, subsets, key) + squared(model.c_residual.tolist(), residual, key)
            s /= max(1e-6, math.sqrt(squared(c, subsets, query) * key_length))
        else:
            s /= sum(k**2 for k in c)
        votes[token] += math.exp(model.a.item() * s)
    return [vote / sum(votes) for vote in votes]


@pytest.mark.parametrize("length", [1, 2, 4, 12])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DisentangledTransformer, {}),
        (DisentangledTransformer, {"window": "common", "degree": 3}),
        (DisentangledTransformer, {"n_heads": 2, "window_length": 4, "degree": 1}),
        (FullDisentangledTransformer, {}),
        (FullDisentangledTransformer, {"normaliser": "standard", "window": "common"}),
    ],
)
def test_prediction_follows_the_formulas(kind, options, length):
    model = scrambled(kind, **options)
    tokens = tokens_of(3, length)
    expected = torch.tensor([loop_prediction(model, row) for row in tokens.tolist()], dtype=torch.float64)
    torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", ["own", "common"])
def test_copies_of_a_window_equal_copies_in_a_sequence(kind, window):
    model = scrambled(kind, window=window)
    tokens = tokens_of(1, 9)
    dense = model.copies(tokens)[0]
    for head in range(model.n_heads):
        windows = []
        for row in range(10):
            seen = [int(tokens[0, row - k]) if k <= row else 3 for k in model.offsets[head].tolist()]
            itself = int(tokens[0, row]) if row < 9 else 3
            windows.append(([itself] if model.sees_itself else []) + seen)
        one_hot = torch.eye(4, 3, dtype=torch.float64)[torch.tensor(windows)]
        torch.testing.assert_close(model.window_copies(one_hot, head=head), dense[head])


def test_subsets_are_ordered_as_binary_numbers():
    model = DisentangledTransformer(vocab_size=3)
    assert model.subset_names == ["000", "001", "010", "011", "100", "101", "110"]
    assert DisentangledTransformer(vocab_size=3, degree=3).subset_names[-1] == "111"
    assert len(head_subsets(5, 3)) == 26


def test_every_head_starts_on_its_own_offset():
    for window, last in (("own", 5), ("common", 3)):
        model = DisentangledTransformer(vocab_size=3, window=window)
        assert model.offsets.max() == last
        assert model.offsets[torch.arange(3), model.w.argmax(1)].tolist() == [1, 2, 3]


def test_sharp_weights_give_the_mean_of_the_successors_of_equal_contexts():
    model = DisentangledTransformer(vocab_size=3, w_plus=60.0, w_minus=0.0, a_init=60.0)
    with torch.no_grad():
        model.c.zero_()[model.subset_names.index("110")] = 1.0
    tokens = torch.tensor([[0, 1, 2, 0, 1, 0, 2, 2, 0, 1]])
    # the context (0, 1) was followed by 2 and by 0
    torch.testing.assert_close(model(tokens)[0], torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64))


def test_double_softmax_of_the_uniform_vector_is_the_logarithm_of_the_vocabulary():
    uniform, target = torch.full((2, 3), 1 / 3), torch.tensor([0, 2])
    assert last_token_criterion(uniform, target) == pytest.approx(math.log(3))
    assert last_token_criterion(uniform, target, loss="nll", eps=0.0) == pytest.approx(math.log(3))
    best = last_token_criterion(torch.eye(3)[target], target)
    assert best == pytest.approx(math.log(1 + 2 / math.e))


def test_a_target_without_probability_has_a_finite_loss():
    losses = last_token_losses(torch.eye(3)[:1].double(), torch.tensor([1]), loss="nll", eps=0.0)
    assert losses.tolist() == pytest.approx([-math.log(1e-12)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["double_softmax", "nll"])
def test_conserved_directions_have_no_gradient(kind, loss):
    model = scrambled(kind)
    last_token_loss(model, tokens_of(30, 20), loss=loss).backward()
    c = model.c.detach()
    assert abs(float(c @ model.c.grad)) < 1e-9 * float(c.norm() * model.c.grad.norm())
    if kind is DisentangledTransformer:  # the diagonal of the full variant has no weight that could move along
        sums = model.w.grad.sum(1).abs()
        assert (sums < 1e-9 * model.w.grad.abs().sum(1)).all()  # relative, as small gradients are sums of large terms


def test_gradients_agree_with_finite_differences():
    model = scrambled(window="common")
    tokens = tokens_of(30, 20)
    last_token_loss(model, tokens).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            flat, gradient = parameter.view(-1), parameter.grad.view(-1)
            for i in range(len(flat)):
                value, step = float(flat[i]), 1e-5
                flat[i] = value + step
                above = float(last_token_loss(model, tokens))
                flat[i] = value - step
                below = float(last_token_loss(model, tokens))
                flat[i] = value
                assert (above - below) / (2 * step) == pytest.approx(float(gradient[i]), rel=1e-6, abs=1e-10)


@pytest.mark.parametrize(("kind", "n"), [(DisentangledTransformer, 17), (FullDisentangledTransformer, 17 + 81 + 6)])
def test_the_whole_hessian_comes_from_the_operator(kind, n):
    model, tokens = scrambled(kind), tokens_of(20, 15)
    operator = HessianOperator(model, last_token_loss, tokens)
    assert operator.n == n
    names, values = zip(*((name, p.detach().clone()) for name, p in model.named_parameters()), strict=True)
    sizes = [value.numel() for value in values]

    def loss(flat):
        pieces = [part.view(v.shape) for part, v in zip(flat.split(sizes), values, strict=True)]
        output = torch.func.functional_call(model, dict(zip(names, pieces, strict=True)), tokens[:, :-1])
        return last_token_criterion(output, tokens[:, -1])

    dense = torch.autograd.functional.hessian(loss, torch.cat([value.flatten() for value in values]))
    products = operator @ torch.eye(n, dtype=torch.float64)
    torch.testing.assert_close(products, dense, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(products, products.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_short_sequences_have_finite_second_derivatives(kind):
    operator = HessianOperator(scrambled(kind), last_token_loss, tokens_of(5, 2))
    assert bool(torch.isfinite(operator @ torch.eye(operator.n, dtype=torch.float64)).all())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"degree": 4}, "choose such a degree"),
        ({"n_heads": 0}, "at least 1 head"),
        ({"window_length": 0}, "at least 1 offset"),
        ({"n_heads": 4, "window_length": 3, "window": "common", "degree": 2}, "window_length >= n_heads"),
        ({"window": "wide"}, "wide"),
        ({"vocab_size": 1}, "at least 2 tokens"),
        ({"c_init": 0.0}, "other than 0"),
    ],
)
def test_models_that_cannot_be_are_refused(options, text):
    with pytest.raises(Exception, match=text):  # the type check may come first
        DisentangledTransformer(**({"vocab_size": 3} | options))


def test_unknown_losses_and_normalisers_are_refused():
    with pytest.raises(Exception, match="mse"):
        last_token_losses(torch.full((1, 3), 1 / 3), torch.tensor([0]), loss="mse")
    with pytest.raises(Exception, match="rms"):
        FullDisentangledTransformer(vocab_size=3, normaliser="rms")
    with pytest.raises(ValueError, match="degree >= 1"):
        FullDisentangledTransformer(vocab_size=3, degree=0, normaliser="standard")


def test_windows_are_offsets_from_the_row():
    assert window_offsets(3, 3, "own").tolist() == [[1, 2, 3], [2, 3, 4], [3, 4, 5]]
    assert window_offsets(2, 3, "common").tolist() == [[1, 2, 3], [1, 2, 3]]
