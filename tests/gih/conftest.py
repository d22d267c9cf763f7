import pytest
import torch


@pytest.fixture
def chains():
    """Return a function that draws Markov chains."""
    from spectral.data import markov_chains

    def draw(n=50, length=40, vocab_size=3, parents=(1, 2), alpha=0.1, seed=0, **options):
        return markov_chains(
            batch_size=n,
            seq_length=length + 1,
            vocab_size=vocab_size,
            parents=parents,
            alpha=alpha,
            generator=torch.Generator().manual_seed(seed),
            device="cpu",
            **options,
        )

    return draw


@pytest.fixture
def scrambled():
    """Return a function that builds a model away from its symmetric start."""

    def build(kind=None, seed=0, **options):
        from spectral.models import DisentangledTransformer

        model = (kind or DisentangledTransformer)(**({"vocab_size": 3} | options))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        return model

    return build
