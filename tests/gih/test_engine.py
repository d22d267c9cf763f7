"""The engine against the dense model: losses, gradients, second derivatives, in every arrangement of what trains."""

import pytest
import torch

from spectral.curvature import HessianOperator
from spectral.gih import compression
from spectral.gih.compression import compress
from spectral.gih.engine import Engine, SparseMap, compressed_loss, subset_forces
from spectral.models import DisentangledTransformer, FullDisentangledTransformer, last_token_loss

SHAPES = [
    {},
    {"window": "common"},
    {"degree": 3},
    {"n_heads": 5, "window_length": 3, "degree": 3},
    {"n_heads": 2, "window_length": 4, "degree": 1},
    {"kind": FullDisentangledTransformer},
    {"kind": FullDisentangledTransformer, "normaliser": "standard", "window": "common"},
]


def assert_same(model, chains, tokens, training=None, **options):
    """Compare loss and gradients of the trained parameters; 1e-10 is float64 rounding of sums of thousands of terms."""
    names = [name for name, _ in model.named_parameters() if training is None or name in training]
    parameters = [dict(model.named_parameters())[name] for name in names]
    dense = last_token_loss(model, tokens, **options)
    expected = torch.autograd.grad(dense, parameters)
    engine = Engine(model, chains, training=training)
    for fast in (engine.loss(**options), engine.training_loss(**options)):
        assert fast.item() == pytest.approx(dense.item(), rel=1e-12)
        for name, ours, theirs in zip(names, torch.autograd.grad(fast, parameters), expected, strict=True):
            torch.testing.assert_close(
                ours, theirs, rtol=1e-9, atol=1e-10 * float(theirs.abs().max()) + 1e-15, msg=name
            )


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 40])
@pytest.mark.parametrize("options", SHAPES)
def test_loss_and_gradients_equal_those_of_the_dense_model(chains, scrambled, options, length):
    model = scrambled(**options)
    parents = (1,) if length < 2 else (1, 2)
    tokens = chains(length=length, parents=parents).tokens
    for loss in ("double_softmax", "nll"):
        assert_same(model, compress(tokens, model), tokens, loss=loss)


@pytest.mark.parametrize("training", [("w",), ("c",), ("a",), ("w", "a"), ("c", "a"), ("w", "c")])
@pytest.mark.parametrize("sharp", [False, True])
def test_what_stands_still_is_left_out_without_changing_anything(chains, scrambled, training, sharp):
    model, tokens = scrambled(), chains().tokens
    if sharp:  # the share of every other subset is 1e-60
        with torch.no_grad():
            model.c.fill_(1e-30)[6] = 1.0
    assert_same(model, compress(tokens, model), tokens, training)


def test_heads_without_weight_are_merged_away(chains, scrambled):
    model, tokens = scrambled(), chains().tokens
    with torch.no_grad():
        model.c.zero_()[6] = 1.0
    whole = compress(tokens, model)
    engine = Engine(model, whole, training=("w",))
    assert [pairs.head for pairs in engine.chains.heads] == [0, 1]
    assert engine.chains.members.shape[1] < whole.members.shape[1]
    with torch.no_grad():
        model.c.zero_()[0] = 1.0  # only the empty subset: every key counts alike
    assert_same(model, whole, tokens, ("a",))


@pytest.mark.parametrize(("vocab_size", "parents"), [(2, (1,)), (5, (1, 3)), (5, (1, 2, 3))])
def test_any_vocabulary(chains, scrambled, vocab_size, parents):
    for kind in (DisentangledTransformer, FullDisentangledTransformer):
        model = scrambled(kind, vocab_size=vocab_size)
        tokens = chains(vocab_size=vocab_size, parents=parents).tokens
        assert_same(model, compress(tokens, model), tokens)


def test_blocks_and_sorted_numbers_give_the_same_counts(chains, scrambled, monkeypatch):
    model, tokens = scrambled(n_heads=4), chains(n=53).tokens
    whole = compress(tokens, model)
    monkeypatch.setattr(compression, "BLOCK", 10)
    monkeypatch.setattr(compression, "LOOKUP_LIMIT", 0)
    pieces = compress(tokens, model)
    assert (whole.votes != pieces.votes).nnz == 0
    assert torch.equal(whole.members, pieces.members)
    for one, other in zip(whole.heads, pieces.heads, strict=True):
        assert torch.equal(one.key, other.key)
        assert torch.equal(one.query, other.query)


def test_counts_of_a_sequence_add_up_to_its_length(chains):
    model, batch = DisentangledTransformer(vocab_size=3), chains(n=20, length=33)
    compressed = compress(batch.tokens, model)
    per_sequence = compressed.votes.sum(1).reshape(3, 20)
    assert (per_sequence.sum(0) == 33).all()
    ahead = (batch.tokens[:, :-1] == batch.tokens[:, -1:]).sum(1)
    assert per_sequence[0].tolist()[0] == ahead.tolist()


def test_renaming_keeps_the_pairs_few_whatever_the_vocabulary(chains):
    model = DisentangledTransformer(vocab_size=50, window_length=2)
    compressed = compress(chains(n=2000, vocab_size=50).tokens, model)
    # partitions of 4 tokens, and those with missing ones: 1 + 2 + 5 + 15 at most in each
    assert all(len(pairs.key) <= 23 for pairs in compressed.heads)


def test_taking_sequences_commutes_with_compressing(chains, scrambled):
    model, tokens = scrambled(), chains(n=30).tokens
    compressed = compress(tokens, model)
    assert_same(model, compressed.take(slice(0, 20)), tokens[:20])
    chosen = torch.tensor([3, 29, 3])
    assert_same(model, compressed.take(chosen), tokens[chosen])


def test_probabilities_and_hits_equal_those_of_the_dense_model(chains, scrambled):
    model, tokens = scrambled(), chains(n=60).tokens
    engine, dense = Engine(model, compress(tokens, model)), model(tokens[:, :-1])
    torch.testing.assert_close(engine.probabilities(), dense)
    assert torch.equal(engine.hits(), dense.argmax(1) == tokens[:, -1])


@pytest.mark.parametrize("kind", [DisentangledTransformer, FullDisentangledTransformer])
def test_the_hessian_on_compressed_chains_is_that_of_the_dense_model(chains, scrambled, kind):
    model, tokens = scrambled(kind), chains(n=20, length=15).tokens
    fast = HessianOperator(model, compressed_loss, compress(tokens, model))
    dense = HessianOperator(model, last_token_loss, tokens)
    identity = torch.eye(fast.n, dtype=torch.float64)
    torch.testing.assert_close(fast @ identity, dense @ identity, rtol=1e-9, atol=1e-11)


def test_a_float32_model_is_as_accurate_as_its_weights(chains, scrambled):
    tokens = chains(n=200).tokens
    precise, coarse = scrambled(), scrambled(dtype=torch.float32)
    coarse.load_state_dict(precise.state_dict())
    compressed = compress(tokens, precise)
    for loss in (Engine(coarse, compressed).loss(), Engine(coarse, compressed).training_loss()):
        assert loss.item() == pytest.approx(compressed_loss(precise, compressed).item(), rel=1e-6)
        gradients = torch.autograd.grad(loss, list(coarse.parameters()))
        expected = torch.autograd.grad(compressed_loss(precise, compressed), list(precise.parameters()))
        for ours, theirs in zip(gradients, expected, strict=True):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)
    assert HessianOperator(coarse, compressed_loss, compressed).n == 17


@pytest.mark.parametrize("loss", ["double_softmax", "nll"])
def test_forces_explain_the_gradients_of_a_and_c(chains, scrambled, loss):
    for kind in (DisentangledTransformer, FullDisentangledTransformer):
        model, tokens = scrambled(kind), chains(n=60).tokens
        force = subset_forces(model, compress(tokens, model), loss=loss)
        last_token_loss(model, tokens, loss=loss).backward()
        p, a, c = model.subset_shares().detach(), model.a.detach(), model.c.detach()
        mean = p @ force
        assert -model.a.grad.item() == pytest.approx(mean.item(), rel=1e-9)
        torch.testing.assert_close(-model.c.grad, 2 * a * c / (c @ c) * (force - mean), rtol=1e-9, atol=1e-15)


def test_heads_outside_the_leading_subset_have_no_gradient(chains):
    model = DisentangledTransformer(vocab_size=3)
    with torch.no_grad():
        model.c.zero_()[6] = 1.0
    compressed_loss(model, compress(chains().tokens, model)).backward()
    assert bool((model.w.grad[2] == 0).all())
    assert bool((model.w.grad[:2] != 0).all())


def test_a_large_weight_of_layer_two_does_not_overflow(chains, scrambled):
    model, tokens = scrambled(a_init=600.0), chains().tokens
    assert_same(model, compress(tokens, model), tokens)


def test_sparse_products_can_be_differentiated_twice():
    from scipy import sparse

    matrix = sparse.random(6, 4, density=0.6, format="csr", random_state=0)
    product = SparseMap(matrix)
    vector = torch.rand(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(product, vector)
    assert torch.autograd.gradgradcheck(lambda x: product(x) ** 3, vector)


def test_chains_of_another_shape_are_refused(chains):
    compressed = compress(chains().tokens, DisentangledTransformer(vocab_size=3))
    for other in ({"vocab_size": 4}, {"vocab_size": 3, "n_heads": 2}, {"vocab_size": 3, "window_length": 2}):
        with pytest.raises(ValueError, match="compress the tokens with this model"):
            Engine(DisentangledTransformer(**other), compressed)
    with pytest.raises(ValueError, match="no parameters"):
        Engine(DisentangledTransformer(vocab_size=3), compressed, training=["W_E"])


def test_tokens_that_cannot_be_counted_are_refused():
    model = DisentangledTransformer(vocab_size=3)
    with pytest.raises(ValueError, match="at least 2"):
        compress(torch.zeros(4, 1, dtype=torch.long), model)
    with pytest.raises(ValueError, match="largest token"):
        compress(torch.full((4, 5), 3), model)
    with pytest.raises(ValueError, match="reduce window_length"):
        compress(torch.zeros(4, 5, dtype=torch.long), DisentangledTransformer(vocab_size=50, window_length=6))


def test_forces_need_shares_and_a_weight(chains):
    standard = FullDisentangledTransformer(vocab_size=3, normaliser="standard")
    with pytest.raises(ValueError, match="plain"):
        subset_forces(standard, compress(chains().tokens, standard))
    silent = DisentangledTransformer(vocab_size=3, a_init=0.0)
    with pytest.raises(ValueError, match="small value"):
        subset_forces(silent, compress(chains().tokens, silent))


def test_the_monitor_follows_training_on_compressed_chains(chains, tmp_path):
    from spectral import SpectralMonitor, open_run
    from spectral.gih.stages import Stage, StageTrainer

    model = DisentangledTransformer(vocab_size=3)
    compressed = compress(chains(n=200).tokens, model)
    trainer = StageTrainer(model, compressed, Stage(train=("c",), epochs=20))
    with SpectralMonitor(model, compressed_loss, compressed, tmp_path / "run", eigen_interval=5, k=5) as monitor:
        for epoch in range(21):
            trainer.advance(epoch)
            monitor.step(epoch)
    run = open_run(tmp_path / "run")
    stored = run.read("hessian/eigenvalues")
    assert stored.shape[0] == 5
    operator = HessianOperator(model, compressed_loss, compressed)
    exact = torch.linalg.eigvalsh(operator @ torch.eye(17, dtype=torch.float64)).flip(0)[:5]
    torch.testing.assert_close(torch.as_tensor(stored[-1]).double(), exact, rtol=1e-3, atol=1e-9)


def test_the_detector_dates_the_selection_of_the_subset(chains):
    from spectral import detect_transition
    from spectral.gih.stages import Stage, StageTrainer

    model = DisentangledTransformer(vocab_size=3)
    with torch.no_grad():
        model.c[6] = 1e-5  # behind its competitors, so that there is a before
    trainer = StageTrainer(model, compress(chains(n=300, length=100).tokens, model), Stage(train=("c",), epochs=300))
    shares = []
    for epoch in range(300):
        trainer.advance(epoch)
        shares.append(model.subset_shares()[6].item())
    rng = torch.Generator().manual_seed(0)
    values = torch.tensor(shares, dtype=torch.float64) + 0.02 * torch.randn(300, generator=rng, dtype=torch.float64)
    found = detect_transition(torch.arange(300).numpy(), values.numpy())
    assert found.detected
    half = min(epoch for epoch, share in enumerate(shares) if share > 0.5)
    assert found.midpoint == pytest.approx(half, abs=6)
