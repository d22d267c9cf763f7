"""What the theory expects an experiment to find: the information of every subset for chains of its settings."""

from spectral.data.word_law import MAX_WORDS as MAX_STARTS
from spectral.gih.config import GIHConfig
from spectral.gih.information import MAX_WORDS, SubsetInformation, dirichlet_tables, subset_information
from spectral.randomness import torch_generator

INFORMATION_CHAINS = 1_000
FEWEST_CHAINS = 20
INFORMATION_BUDGET = 10**9  # numbers to sum over, about 4 s


def expected_information(config: GIHConfig) -> SubsetInformation | None:
    """Return the information of every subset of heads about the token, for fresh chains of these settings.

    Subsets of heads are read as subsets of their target offsets. None where the exact sums would take minutes.
    """
    subsets = config.build_model().subsets
    reach, positions = max(*config.lags, config.n_heads), max(config.seq_length - max(*config.lags, config.n_heads), 1)
    words, starts = config.vocab_size ** (reach + 1), config.vocab_size ** max(config.lags)
    if starts > MAX_STARTS or words > MAX_WORDS:
        return None
    cost = starts**2 * config.vocab_size * positions + starts * words * len(subsets)
    n_chains = min(INFORMATION_CHAINS, INFORMATION_BUDGET // cost)
    if n_chains < FEWEST_CHAINS:
        return None
    tables = dirichlet_tables(
        n_chains,
        vocab_size=config.vocab_size,
        n_parents=len(config.lags),
        alpha=config.alpha,
        generator=torch_generator(config.seed, "gih information"),
    )
    return subset_information(tables, parents=config.lags, subsets=subsets, n_positions=positions)
