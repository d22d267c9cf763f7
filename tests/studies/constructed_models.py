"""Models whose behaviour is known by construction, and what the study measures of them."""

import functools

import torch
from torch import nn
from torch.nn import functional as F

N_SEQUENCES = 16


class Constructed(nn.Module):
    """A model whose last head attends as a rule says and predicts what it attends to; other heads are given.

    `rule(tokens)` returns weights [batch, query, key]; where a row has none, it rests on itself.
    """

    def __init__(self, rule, layers):
        super().__init__()
        self.rule, self.layers = rule, layers

    def forward(self, tokens):
        return self.forward_with_patterns(tokens)[0]

    def forward_with_patterns(self, tokens):
        predicting = attend(self.rule(tokens))
        heads = torch.stack(
            [
                torch.stack([predicting if rule is None else attend(rule(tokens)) for rule in layer], 1)
                for layer in self.layers
            ],
            1,
        )
        return predicting @ F.one_hot(tokens, 256).float(), heads


def attend(weights):
    weights = weights.float().tril()
    empty = weights.sum(-1) == 0
    weights = weights + torch.diag_embed(empty.float())
    return weights / weights.sum(-1, keepdim=True)


def distance(tokens):
    position = torch.arange(tokens.shape[1])
    return (position[:, None] - position)[None].expand(len(tokens), -1, -1)


def at_distances(*distances):
    """Attend so many tokens back, whatever they are."""
    return lambda tokens: torch.isin(distance(tokens), torch.tensor(distances))


def previous_token(tokens):
    return distance(tokens) == 1


def matching(tokens):
    """Attend to everything that followed the current token before: an induction head that matches one token."""
    followed = F.pad(tokens, (1, 0), value=-1)[:, :-1]
    return (tokens[:, :, None] == followed[:, None, :]) & (distance(tokens) >= 0)


def knowing(tokens):
    """Attend to the place one period before the next token, with the period read off the whole sequence."""
    wanted = torch.zeros(len(tokens), tokens.shape[1], tokens.shape[1], dtype=torch.bool)
    for row, sequence in zip(wanted, tokens, strict=True):
        periods = (L for L in range(2, 60) if torch.equal(sequence[L:], sequence[:-L]))
        row |= distance(sequence[None])[0] == next(periods, 0) - 1
    return wanted


INDUCTION = Constructed(matching, [[previous_token, at_distances(0)], [None, at_distances(0)]])
POSITIONAL = Constructed(at_distances(19), [[None, at_distances(0)]])
SPREAD = Constructed(at_distances(*range(19, 29)), [[None, at_distances(0)]])
ONE_LAYER_INDUCTION = Constructed(matching, [[None, at_distances(0)]])
KNOWING = Constructed(knowing, [[None, at_distances(0)]])


@functools.cache
def measured(model, preset, step=20_000):
    from spectral.studies.repeated.measurements import measure_model
    from spectral.studies.repeated.plan import StudyPlan

    config = StudyPlan().job(preset, 0).config
    return measure_model(model, config, name=preset, step=step, n_sequences=N_SEQUENCES)
