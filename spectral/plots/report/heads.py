"""One colour per head, the same in every picture of a page."""

from dataclasses import dataclass

from spectral.plots.source import best_heads, head_name, values_or_none
from spectral.plots.style import CATEGORICAL, FAINT
from spectral.storage import Run

NAMED = 8  # heads with a colour of their own


@dataclass(frozen=True, kw_only=True)
class HeadKey:
    """How a head is drawn: further heads than `NAMED` share one grey and one entry in the legend."""

    layer: int
    head: int
    label: str
    color: str
    named: bool
    in_legend: bool

    @property
    def name(self) -> str:
        """Such as L1H3."""
        return head_name(self.layer, self.head)


def head_keys(run: Run) -> list[HeadKey]:
    """Return all heads of a run, those with the highest induction and previous-token scores first, in turns."""
    n_layers, n_heads = run.layout.n_layers, run.layout.n_heads
    everyone = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    ranked = []
    for name in ("induction_score", "previous_token_score"):
        scores = values_or_none(run, f"circuits/{name}")
        if scores is not None:
            ranked.append(best_heads(scores, len(everyone)))
    turns = [head for pair in zip(*ranked, strict=False) for head in pair]
    order = list(dict.fromkeys([*turns, *everyone]))
    return [
        HeadKey(
            layer=layer,
            head=head,
            label=head_name(layer, head) if rank < NAMED else f"{len(order) - NAMED} others",
            color=CATEGORICAL[rank] if rank < NAMED else FAINT,
            named=rank < NAMED,
            in_legend=rank <= NAMED,
        )
        for rank, (layer, head) in enumerate(order)
    ]
