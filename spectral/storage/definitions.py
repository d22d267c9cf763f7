"""Name, axes, unit and meaning of every stored number, one row per dataset.

`chance` and `ceiling` stand here when the layout alone fixes them; those that depend on the probe batch or on the
parameter count are given to `ResultsWriter.create(dataset_attributes=...)`.
"""

import math
from dataclasses import dataclass

from spectral.storage.layout import RunLayout

Attribute = str | int | float | list[int] | list[float]

CURVATURE = "nats / parameter_unit^2"
SLOPE = "nats / parameter_unit"
# Not "seconds": CF readers turn that unit into time differences.
SECONDS = "s"


@dataclass(frozen=True)
class Row:
    """One dataset of a group, before its axes have sizes; `dims` leaves out the growing axis."""

    name: str
    long_name: str
    units: str = "1"
    dims: tuple[str, ...] = ()
    dtype: str = "float64"
    chance: float | None = None
    ceiling: float | None = None
    definition: str | None = None
    extra: tuple[tuple[str, Attribute], ...] = ()


def dataset_rows(layout: RunLayout) -> dict[str, list[Row]]:
    """Return the rows of every group for a run of this layout."""
    return {
        "train": _train(),
        "behaviour": _behaviour(layout),
        "hessian": _hessian(),
        "circuits": _circuits(layout),
        "detector": _detector(layout),
    }


def _step(name: str = "step") -> Row:
    return Row(name, "Optimizer steps completed", "step", dtype="int64")


def _train() -> list[Row]:
    return [
        _step("train_step"),
        _step(),
        Row("loss", "Training loss of the batch", "nats", ceiling=0.0, definition="train/cross_entropy_mean/v1"),
        Row("learning_rate", "Learning rate of the update"),
        Row("gradient_norm", "Euclidean norm of the training gradient before clipping", SLOPE),
        Row("tokens_seen", "Tokens trained on so far", "token", dtype="int64"),
        Row("seconds", "Wall-clock time since the start of the process", SECONDS, extra=(("wall_clock", 1),)),
    ]


def _behaviour(layout: RunLayout) -> list[Row]:
    uniform = 1.0 / layout.vocab_size if layout.vocab_size else None
    log_vocabulary = math.log(layout.vocab_size) if layout.vocab_size else None
    return [
        _step(),
        Row(
            "loss",
            "Mean loss on the behaviour probe",
            "nats",
            chance=log_vocabulary,
            definition="loss/mean_positions/v1",
        ),
        Row(
            "induction_accuracy",
            "Share of predictable positions whose next token has the largest logit",
            chance=uniform,
            ceiling=1.0,
            definition="induction_accuracy/predictable_positions/v1",
        ),
        Row(
            "induction_loss",
            "Mean loss over predictable positions",
            "nats",
            chance=log_vocabulary,
            ceiling=0.0,
            definition="induction_loss/predictable_positions/v1",
        ),
        Row(
            "random_accuracy",
            "Accuracy at positions that nothing before predicts",
            chance=uniform,
            definition="random_accuracy/unpredictable_positions/v1",
        ),
        Row(
            "in_context_accuracy",
            "Accuracy among the tokens of the context, at predictable positions",
            ceiling=1.0,
            definition="in_context_accuracy/restricted_argmax/v1",
        ),
        Row(
            "in_context_probability",
            "Probability given to tokens of the context, at predictable positions",
            ceiling=1.0,
            definition="in_context_probability/context_mass/v1",
        ),
        Row(
            "icl_score",
            "Loss late in the context minus loss early in it",
            "nats",
            chance=0.0,
            definition="icl_score/late_minus_early/v1",
        ),
        Row(
            "boundary_accuracy",
            "Accuracy at the first token of the repeat",
            ceiling=1.0,
            definition="boundary_accuracy/first_repeated_token/v1",
        ),
        Row(
            "loss_by_position",
            "Mean loss at each position",
            "nats",
            ("position",),
            chance=log_vocabulary,
            definition="loss_by_position/mean_sequences/v1",
        ),
        Row(
            "induction_accuracy_period",
            "Induction accuracy for each repeat period",
            "1",
            ("period",),
            chance=uniform,
            ceiling=1.0,
            definition="induction_accuracy/predictable_positions/v1",
        ),
    ]


def _hessian() -> list[Row]:
    rank, negative = ("rank",), ("rank_negative",)
    return [
        _step(),
        Row(
            "eigenvalues",
            "Largest Hessian eigenvalues, descending",
            CURVATURE,
            rank,
            definition="hessian/lanczos_ritz_top/v1",
        ),
        Row(
            "negative_eigenvalues",
            "Most negative Hessian eigenvalues, ascending",
            CURVATURE,
            negative,
            definition="hessian/lanczos_ritz_bottom/v1",
        ),
        Row("residuals", "Norm of H x - theta x", CURVATURE, rank, ceiling=0.0),
        Row("error_bounds", "Bound on the distance to the eigenvalue of this rank", CURVATURE, rank, ceiling=0.0),
        Row("converged", "Whether the residual met its tolerance: 1 yes, 0 no, -1 unknown", "1", rank, "int8"),
        Row("negative_residuals", "Norm of H x - theta x at the lower end", CURVATURE, negative, ceiling=0.0),
        Row(
            "negative_error_bounds",
            "Bound on the distance to the eigenvalue of this rank, lower end",
            CURVATURE,
            negative,
            ceiling=0.0,
        ),
        Row(
            "negative_converged",
            "Whether the residual met its tolerance, lower end: 1 yes, 0 no, -1 unknown",
            "1",
            negative,
            "int8",
        ),
        Row("n_products", "Hessian-vector products spent", "product", dtype="int64"),
        Row("verified", "Whether a second start confirmed that no eigenvalue was missed: 1 yes, 0 no", dtype="int8"),
        Row("seconds", "Wall-clock time of the snapshot", SECONDS, extra=(("wall_clock", 1),)),
        Row("loss", "Loss on the curvature probe", "nats", definition="loss/mean_positions/v1"),
        Row("gradient_norm", "Euclidean norm of the gradient on the curvature probe", SLOPE),
        Row(
            "gradient_alignment",
            "Squared cosine between gradient and eigenvector (chance: 1/n for n parameters)",
            "1",
            rank,
            ceiling=1.0,
            definition="gradient_alignment/squared_cosine/v1",
        ),
        Row(
            "gradient_alignment_total",
            "Share of the squared gradient within the leading eigenvectors up to this rank (chance: k/n)",
            "1",
            rank,
            ceiling=1.0,
            definition="gradient_alignment/cumulative_squared_cosine/v1",
        ),
        Row(
            "eigenvector_overlap",
            "Squared overlap of the eigenvector with the leading subspace of the snapshot before",
            "1",
            rank,
            ceiling=1.0,
            definition="eigenvector_overlap/squared_projection/v1",
        ),
        Row(
            "block_mass",
            "Share of the squared eigenvector within a parameter block",
            "1",
            ("rank", "block"),
            ceiling=1.0,
            definition="block_mass/squared_norm_share/v1",
        ),
        Row("trace", "Estimated trace of the Hessian", CURVATURE, definition="trace/hutchinson/v1"),
        Row("trace_standard_error", "Standard error of the trace", CURVATURE, ceiling=0.0),
        Row("noise_floor", "Rounding error of a product, as an eigenvalue", CURVATURE),
    ]


def _circuits(layout: RunLayout) -> list[Row]:
    head = ("layer", "head")
    pair = ("layer_from", "head_from", "layer_to", "head_to")
    length = layout.attention_positions or layout.seq_length
    # One visible target among q + 1 keys under uniform attention, averaged over the queries q >= 1.
    one_target = sum(1.0 / (q + 1) for q in range(1, length)) / (length - 1) if length > 1 else None
    rows = [
        _step(),
        Row(
            "induction_score",
            "Attention to the tokens after earlier occurrences of the current token",
            "1",
            head,
            ceiling=1.0,
            definition="induction/sum_targets/v1",
        ),
        Row(
            "previous_token_score",
            "Attention to the previous token",
            "1",
            head,
            chance=one_target,
            ceiling=1.0,
            definition="previous_token/mean/v1",
        ),
        Row(
            "duplicate_token_score",
            "Attention to earlier occurrences of the current token",
            "1",
            head,
            ceiling=1.0,
            definition="duplicate_token/sum_targets/v1",
        ),
        Row(
            "first_token_score",
            "Attention to the first token",
            "1",
            head,
            chance=one_target,
            ceiling=1.0,
            definition="first_token/mean/v1",
        ),
        Row(
            "attention_entropy",
            "Entropy of the attention row over its maximum: 0 one-hot, 1 uniform",
            "1",
            head,
            chance=1.0,
            definition="attention_entropy/normalised/v1",
        ),
    ]
    for kind, formula in (("induction", "sum_targets"), ("previous_token", "mean"), ("duplicate_token", "sum_targets")):
        rows.append(
            Row(
                f"{kind}_score_corrected",
                f"{kind.replace('_', '-').capitalize()} score with uniform attention at 0 and perfect attention at 1",
                dims=head,
                chance=0.0,
                ceiling=1.0,
                definition=f"{kind}/{formula}_chance_corrected/v1",
            )
        )
    rows += [
        Row(
            "ov_copying_score",
            "Sum of OV eigenvalues over the sum of their moduli: +1 copies, -1 suppresses",
            "1",
            head,
            chance=0.0,
            ceiling=1.0,
            definition="ov_copying/eigenvalue_ratio/v1",
        ),
        Row(
            "qk_matching_score",
            "Sum of QK eigenvalues over the sum of their moduli: +1 attends to the same token",
            "1",
            head,
            chance=0.0,
            ceiling=1.0,
            definition="qk_matching/eigenvalue_ratio/v1",
        ),
        Row(
            "ov_eigenvalues",
            "Eigenvalues of the full OV circuit",
            "logit",
            (*head, "eigen", "part"),
            definition="ov_circuit/eigenvalues_float64/v1",
        ),
        Row(
            "qk_eigenvalues",
            "Eigenvalues of the full QK circuit",
            "attention_score",
            (*head, "eigen", "part"),
            definition="qk_circuit/eigenvalues_float64/v1",
        ),
    ]
    for letter, what in (("k", "keys"), ("q", "queries"), ("v", "values")):
        rows.append(
            Row(
                f"{letter}_composition",
                f"How far the later head's {what} read the earlier head's output (chance: 1/sqrt(d_model))",
                "1",
                pair,
                ceiling=1.0,
                definition=f"{letter}_composition/frobenius_ratio/v1",
            )
        )
    rows.append(
        Row(
            "k_composition_matching",
            "Matching score of the later head's keys read through the earlier head",
            "1",
            pair,
            chance=0.0,
            ceiling=1.0,
            definition="k_composition_matching/eigenvalue_ratio/v1",
        )
    )
    if layout.attention_positions:
        rows.append(
            Row(
                "attention_pattern",
                "Attention averaged over the attention probe",
                "1",
                (*head, "query", "key"),
                "float16",
                ceiling=1.0,
                definition="attention_pattern/softmax_row/v1",
            )
        )
    return rows


def _detector(layout: RunLayout) -> list[Row]:
    return [
        _step(),
        *(
            Row(
                signal,
                f"Online change statistic of {signal}",
                definition="detector/online_statistic/v1",
                extra=(("threshold", math.nan),),
            )
            for signal in layout.signals
        ),
    ]
