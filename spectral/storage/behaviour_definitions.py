"""The `/behaviour` group: what the outputs show, on the behaviour probe and on every kind of circuit probe."""

import math

from spectral.storage.entry import NATS, SHARE, UNBOUNDED, Row, step_row
from spectral.storage.layout import RunLayout

_NOTHING_PREDICTABLE = (("nan_where", "nothing is predictable"),)


def behaviour_rows(layout: RunLayout) -> list[Row]:
    """Return the rows of `/behaviour`; what needs a kind of probe that the run does not have is left out."""
    uniform = 1.0 / layout.vocab_size if layout.vocab_size else None
    log_vocabulary = math.log(layout.vocab_size) if layout.vocab_size else None
    rows = [step_row(), *_on_the_behaviour_probe(uniform, log_vocabulary), *_on_repeats(uniform, log_vocabulary)]
    if {"repeat", "random_gap"} <= set(layout.probe_kinds):
        rows.append(
            Row(
                "content_match_accuracy",
                "Share of the corrected induction accuracy that survives unseen gaps",
                chance=0.0,
                ceiling=1.0,
                range=SHARE,
                definition="content_match_accuracy/random_gap_over_repeat/v1",
                extra=(("nan_where", "the corrected accuracy on repeat is below 0.2"),),
            )
        )
    if "repeated_tokens" in layout.probe_kinds:
        rows += _where_a_token_has_two_successors(uniform)
    if layout.probe_kinds:
        rows.append(
            Row(
                "icl_slope",
                "Slope of the loss by position against ln(position + 1), least squares",
                "nats",
                chance=0.0,
                range=UNBOUNDED,
                definition="icl_slope/least_squares_log_position/v1",
            )
        )
    return rows


def _on_the_behaviour_probe(uniform: float | None, log_vocabulary: float | None) -> list[Row]:
    return [
        Row(
            "loss",
            "Mean loss on the behaviour probe",
            "nats",
            chance=log_vocabulary,
            ceiling=0.0,
            range=NATS,
            definition="loss/mean_positions/v1",
        ),
        Row(
            "induction_accuracy",
            "Share of predictable positions whose next token has the largest logit",
            chance=uniform,
            ceiling=1.0,
            range=SHARE,
            definition="induction_accuracy/argmax_ties_shared/v1",
            extra=_NOTHING_PREDICTABLE,
        ),
        Row(
            "induction_loss",
            "Mean loss over predictable positions",
            "nats",
            chance=log_vocabulary,
            ceiling=0.0,
            range=NATS,
            definition="induction_loss/mean_nats/v1",
            extra=_NOTHING_PREDICTABLE,
        ),
        Row(
            "random_accuracy",
            "Accuracy at positions that nothing before predicts",
            chance=uniform,
            ceiling=1.0,
            range=SHARE,
            definition="random_accuracy/argmax_ties_shared/v1",
            extra=(("nan_where", "everything is predictable"),),
        ),
        Row(
            "in_context_accuracy",
            "Accuracy among the tokens of the context, at predictable positions",
            ceiling=1.0,
            range=SHARE,
            definition="in_context_accuracy/argmax_among_seen/v1",
            extra=_NOTHING_PREDICTABLE,
        ),
        Row(
            "in_context_probability",
            "Probability given to tokens of the context, at predictable positions",
            ceiling=1.0,
            range=SHARE,
            definition="in_context_probability/mass_on_seen/v1",
            extra=_NOTHING_PREDICTABLE,
        ),
        Row(
            "icl_score",
            "Loss late in the context minus loss early in it",
            "nats",
            chance=0.0,
            range=UNBOUNDED,
            definition="icl_score/loss_difference/v1",
        ),
        Row(
            "boundary_accuracy",
            "Accuracy at the first token of the repeat",
            ceiling=1.0,
            range=SHARE,
            definition="boundary_accuracy/argmax_ties_shared/v1",
            extra=(("nan_where", "nothing has a first repeat (patterns, chains)"),),
        ),
        Row(
            "loss_by_position",
            "Mean loss at each position",
            "nats",
            ("position",),
            chance=log_vocabulary,
            ceiling=0.0,
            range=NATS,
            definition="loss_by_position/mean_nats/v1",
        ),
        Row(
            "excess_loss",
            "Mean loss of the model minus that of a reference observer",
            "nats",
            ("reference",),
            range=UNBOUNDED,
            definition="excess_loss/mean_positions/v1",
        ),
        Row(
            "reference_kl",
            "KL(reference || model) at each position, mean over sequences",
            "nats",
            ("reference", "position"),
            ceiling=0.0,
            range=NATS,
            definition="reference_kl/mean_sequences/v1",
        ),
    ]


def _on_repeats(uniform: float | None, log_vocabulary: float | None) -> list[Row]:
    accuracy = "induction_accuracy/argmax_ties_shared/v1"
    return [
        Row(
            "induction_accuracy_period",
            "Induction accuracy for each repeat period",
            dims=("period",),
            chance=uniform,
            ceiling=1.0,
            range=SHARE,
            definition=accuracy,
            extra=_NOTHING_PREDICTABLE,
        ),
        Row(
            "induction_accuracy_probe",
            "Induction accuracy on each kind of probe",
            dims=("probe",),
            chance=uniform,
            ceiling=1.0,
            range=SHARE,
            definition=accuracy,
            extra=(("nan_where", "nothing is predictable (no_repeat)"),),
        ),
        Row(
            "accuracy_by_copy",
            "Induction accuracy in each further copy of the block",
            dims=("copy",),
            chance=uniform,
            ceiling=1.0,
            range=SHARE,
            definition="accuracy_by_copy/argmax_ties_shared/v1",
            extra=(("probe", "repeat"), ("nan_where", "no sequence predicts anything in that copy")),
        ),
        Row(
            "aligned_loss",
            "Mean loss by distance from the start of the repeat",
            "nats",
            ("aligned_position",),
            chance=log_vocabulary,
            ceiling=0.0,
            range=NATS,
            definition="aligned_loss/mean_nats/v1",
            extra=(("probe", "repeat"), ("nan_where", "no sequence reaches that far")),
        ),
    ]


def _where_a_token_has_two_successors(uniform: float | None) -> list[Row]:
    texts = {
        "ambiguous_accuracy": ("Accuracy where the token has had two successors", "argmax_ties_shared"),
        "unambiguous_accuracy": ("Accuracy at the other predictable positions", "argmax_ties_shared"),
        "successor_probability": ("Probability of the right one of two successors", "mean"),
        "competitor_probability": ("Probability of the wrong one of two successors", "mean"),
    }
    return [
        Row(
            name,
            text,
            chance=uniform,
            ceiling=1.0,
            range=SHARE,
            definition=f"{name}/{variant}/v1",
            extra=(("probe", "repeated_tokens"), ("nan_where", "the probe has no such position")),
        )
        for name, (text, variant) in texts.items()
    ]
