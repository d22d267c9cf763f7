"""The `/causal` group: what the outputs lose without a head, and which component writes the right answer."""

import math

from spectral.storage.entry import NATS, SECONDS, SHARE, SIGNED_SHARE, UNBOUNDED, Row, step_row
from spectral.storage.layout import RunLayout

HEAD = ("layer", "head")
METRICS = {"induction_loss": ("induction loss", "nats"), "induction_accuracy": ("induction accuracy", "1")}
"""What is measured with heads removed -> its words and its unit."""


def causal_rows(layout: RunLayout) -> list[Row]:
    """Return the rows of `/causal`; the steps alone, which then stay empty, without ablation modes."""
    rows = [step_row()]
    if not layout.ablation_modes:
        return rows
    for name, (words, unit) in METRICS.items():
        chance = math.log(layout.vocab_size) if unit == "nats" else 1.0 / layout.vocab_size
        rows += _ablations(name, words, unit, chance)
    repeat, random = (("probe", "repeat"),), (("probe", "no_repeat"),)
    rows += [
        Row(
            "logit_attribution",
            "What each component writes to the centred logit of the true next token, at predictable positions",
            "logit",
            ("component",),
            chance=0.0,
            range=UNBOUNDED,
            definition="direct_logit_attribution/centred_mean_predictable/v1",
            extra=repeat,
        ),
        Row(
            "head_logit_copying",
            "Signed share of what a head writes that lies on the token it attends to most",
            dims=HEAD,
            chance=0.0,
            ceiling=1.0,
            range=SIGNED_SHARE,
            definition="head_logit_copying/signed_share_on_argmax/v1",
            extra=(*random, ("nan_where", "the head writes nothing to the logits")),
        ),
        *_on_patterns(repeat),
        Row(
            "seconds",
            "Wall-clock time of this row",
            SECONDS,
            extra=(("wall_clock", 1),),
        ),
    ]
    return rows


def _ablations(name: str, words: str, unit: str, chance: float) -> list[Row]:
    repeat = (("probe", "repeat"), ("means", "over no_repeat, per position"))
    return [
        Row(
            f"clean_{name}",
            f"{words.capitalize()} of the intact model",
            unit,
            chance=chance,
            ceiling=0.0 if unit == "nats" else 1.0,
            range=NATS if unit == "nats" else SHARE,
            definition=f"{name}/{'mean_nats' if unit == 'nats' else 'argmax_ties_shared'}/v1",
            extra=(("probe", "repeat"),),
        ),
        *(
            Row(
                f"{what}_{name}",
                f"Change of the {words} with {removed} removed",
                unit,
                ("mode", *dims),
                chance=0.0,
                range=UNBOUNDED if unit == "nats" else SIGNED_SHARE,
                definition=f"{what}/{name}/ablated_minus_clean/v1",
                extra=repeat,
            )
            for what, removed, dims in (
                ("remove_one", "this head", HEAD),
                ("keep_only", "all other heads of the layer", HEAD),
                ("remove_layer", "all heads of the layer", ("layer",)),
            )
        ),
        Row(
            f"redundancy_{name}",
            f"Sum of the single effects on the {words} over the effect of the whole layer: below 1 redundant",
            dims=("mode", "layer"),
            chance=1.0,
            range=UNBOUNDED,
            definition=f"redundancy/{name}/sum_over_joint/v1",
            extra=(*repeat, ("nan_where", f"the whole layer changes the {words} by less than 0.01")),
        ),
    ]


def _on_patterns(probe: tuple[tuple[str, str], ...]) -> list[Row]:
    rows = []
    for name, text, formula in (
        ("induction", "a token that followed an earlier occurrence of the current one", "sum_targets"),
        ("previous_token", "the previous token", "mean_mass"),
        ("duplicate_token", "an earlier occurrence of the current token", "sum_targets"),
    ):
        rows.append(
            Row(
                f"{name}_argmax",
                f"Share of queries whose most attended key is {text}",
                dims=HEAD,
                ceiling=1.0,
                range=SHARE,
                definition=f"argmax/{name}/{formula}/v1",
                extra=probe,
            )
        )
    few = ("nan_where", "the probe has fewer than 3 sequences")
    return [
        *rows,
        Row(
            "induction_mismatch_null",
            "Induction score on the targets of other sequences, mean over shifts: what position alone gives",
            dims=HEAD,
            range=SHARE,
            definition="induction_mismatch_null/mean_over_shifts/v1",
            extra=(*probe, few),
        ),
        Row(
            "induction_mismatch_null_sd",
            "Induction score on the targets of other sequences, standard deviation over shifts",
            dims=HEAD,
            range=SHARE,
            definition="induction_mismatch_null/sd_over_shifts/v1",
            extra=(*probe, few),
        ),
    ]
