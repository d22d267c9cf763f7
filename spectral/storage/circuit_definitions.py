"""The `/circuits` group: what attention patterns and weights show of every head and every pair of heads.

Definitions of weight scores end in `v2` where LayerNorm is folded into the weights and in `v1` where there is none, in
which case nothing changed; before schema 1.2 raw weights were scored, gains left out.
"""

import math

from spectral.storage.entry import SECONDS, SHARE, SIGNED_SHARE, UNBOUNDED, Row, step_row
from spectral.storage.layout import RunLayout

TOP1_MULTIPLICATIONS = 2 * 10**9
"""Price of `ov_top1_copying`, layers * heads * d_head * vocab^2, above which runs do not store it."""

HEAD = ("layer", "head")
PAIR = ("layer_from", "head_from", "layer_to", "head_to")
PATTERN_SCORES = {
    "induction_score": ("Attention to the tokens after earlier occurrences of the current token", "sum_targets"),
    "previous_token_score": ("Attention to the previous token", "mean_mass"),
    "duplicate_token_score": ("Attention to earlier occurrences of the current token", "sum_targets"),
    "first_token_score": ("Attention to the first token", "mean_mass"),
    "current_token_score": ("Attention to the own position", "mean_mass"),
    "attention_entropy": ("Entropy of the attention row over its maximum: 0 one-hot, 1 uniform", "row_normalised"),
}
_ALWAYS = ("induction_score", "previous_token_score", "duplicate_token_score", "first_token_score", "attention_entropy")
_ALWAYS_CORRECTED = ("induction_score", "previous_token_score", "duplicate_token_score")


def stores_top1_copying(*, n_layers: int, n_heads: int, d_head: int, vocab_size: int) -> bool:
    """Return whether `ov_top1_copying`, whose price grows with the square of the vocabulary, is stored."""
    return n_layers * n_heads * d_head * vocab_size**2 <= TOP1_MULTIPLICATIONS


def circuit_rows(layout: RunLayout) -> list[Row]:
    """Return the rows of `/circuits`; what needs a kind of probe that the run does not have is left out."""
    length = layout.seq_length
    # One visible target among q + 1 keys under uniform attention, averaged over the queries q >= 1.
    one_target = sum(1.0 / (q + 1) for q in range(1, length)) / (length - 1) if length > 1 else None
    repeat = (("probe", "repeat"),) if layout.probe_kinds else ()
    rows = [step_row()]
    for name in _ALWAYS:
        chance = one_target if name in ("previous_token_score", "first_token_score") else None
        rows.append(_pattern_score(name, HEAD, chance, extra=repeat))
    rows += [_corrected(name, HEAD, extra=repeat) for name in _ALWAYS_CORRECTED]
    queries = (
        ("queries", "of the induction score: all with a target on repeat and no_repeat, predictable ones elsewhere"),
        ("nan_where", "no query has a target"),
    )
    for name in PATTERN_SCORES:
        rows.append(_pattern_score(name, ("probe", *HEAD), None, prefix="probe_", extra=queries))
        rows.append(_corrected(name, ("probe", *HEAD), prefix="probe_", extra=queries))
    rows += [*_told_apart_by_probes(layout), *_weight_scores(layout), *_compositions(layout)]
    if layout.attention_positions:
        rows.append(
            Row(
                "attention_pattern",
                "Attention averaged over the attention probe",
                "1",
                (*HEAD, "query", "key"),
                "float16",
                ceiling=1.0,
                range=SHARE,
                definition="attention_pattern/softmax_row/v1",
            )
        )
    if layout.probe_kinds:
        rows.append(
            Row(
                "seconds",
                "Wall-clock time of all circuit and behaviour metrics of this snapshot",
                SECONDS,
                extra=(("wall_clock", 1),),
            )
        )
    return rows


def _pattern_score(
    name: str,
    dims: tuple[str, ...],
    chance: float | None,
    *,
    prefix: str = "",
    extra: tuple[tuple[str, str], ...] = (),
) -> Row:
    text, formula = PATTERN_SCORES[name]
    entropy = name == "attention_entropy"
    given = ",queries=given" if prefix and name == "induction_score" else ""
    return Row(
        f"{prefix}{name}",
        text,
        dims=dims,
        chance=1.0 if entropy else chance,
        ceiling=0.0 if entropy else 1.0,
        range=SHARE,
        definition=f"{name.removesuffix('_score')}/{formula}{given}/v1",
        extra=extra,
    )


def _corrected(name: str, dims: tuple[str, ...], *, prefix: str = "", extra: tuple[tuple[str, str], ...] = ()) -> Row:
    kind, formula = name.removesuffix("_score"), PATTERN_SCORES[name][1]
    if formula == "mean_mass":
        formula = "mean"
    given = ",queries=given" if prefix and name == "induction_score" else ""
    return Row(
        f"{prefix}{name}_corrected",
        f"{kind.replace('_', ' ').capitalize()}, with uniform attention at 0 and perfect (for the entropy, one-hot) "
        "attention at 1",
        dims=dims,
        chance=0.0,
        ceiling=1.0,
        # Without any mass on its targets a query scores -c / (1 - c), c the share of visible keys that are targets.
        range=SHARE if name == "attention_entropy" else (-math.inf, 1.0),
        definition=f"{kind}/{formula}_chance_corrected{given}/v1",
        extra=extra,
    )


def _told_apart_by_probes(layout: RunLayout) -> list[Row]:
    kinds = set(layout.probe_kinds)
    rows = []
    if {"repeat", "random_gap"} <= kinds:
        shuffled = "shuffled_segments" in kinds
        compared = "random_gap, shuffled_segments" if shuffled else "random_gap"
        rows.append(
            Row(
                "content_match_fraction",
                "Share of the induction score that survives unseen gaps: 1 matches content, 0 is positional",
                dims=HEAD,
                chance=0.0,
                ceiling=1.0,
                range=SHARE,
                definition=f"content_match_fraction/{'min_gap_shuffled' if shuffled else 'gap'}/v1",
                extra=(
                    ("probe", f"{compared}; over repeat"),
                    ("nan_where", "the corrected induction score on repeat is below 0.2"),
                ),
            )
        )
    if "repeated_tokens" in kinds:
        for name, text in (
            ("right_successor_attention", "Attention to the right one of two earlier successors of the current token"),
            ("competing_successor_attention", "Attention to the wrong one of two earlier successors"),
        ):
            rows.append(
                Row(
                    name,
                    text,
                    dims=HEAD,
                    ceiling=1.0,
                    range=SHARE,
                    definition=f"{name}/sum_targets/v1",
                    extra=(("probe", "repeated_tokens"), ("nan_where", "no token of the probe has two successors")),
                )
            )
    return rows


def _weight_scores(layout: RunLayout) -> list[Row]:
    version, treatment = _folding(layout)
    zero = (("nan_where", "the circuit is zero up to rounding"),)
    rows = [
        Row(
            "ov_copying_score",
            "Sum of OV eigenvalues over the sum of their moduli: +1 copies, -1 suppresses",
            "1",
            HEAD,
            chance=0.0,
            ceiling=1.0,
            range=SIGNED_SHARE,
            definition=f"ov_copying/eigenvalue_ratio{version}",
            extra=(*treatment, *zero),
        ),
        Row(
            "qk_matching_score",
            "Sum of QK eigenvalues over the sum of their moduli: +1 attends to the same token",
            "1",
            HEAD,
            chance=0.0,
            ceiling=1.0,
            range=SIGNED_SHARE,
            definition=f"qk_matching/eigenvalue_ratio{version}",
            extra=(*treatment, *zero),
        ),
        Row(
            "ov_eigenvalues",
            "Eigenvalues of the full OV circuit",
            "logit",
            (*HEAD, "eigen", "part"),
            definition=f"ov_circuit/eigenvalues_float64{version}",
            extra=treatment,
        ),
        Row(
            "qk_eigenvalues",
            "Eigenvalues of the full QK circuit",
            "attention_score",
            (*HEAD, "eigen", "part"),
            definition=f"qk_circuit/eigenvalues_float64{version}",
            extra=treatment,
        ),
    ]
    sizes = {"n_layers": layout.n_layers, "n_heads": layout.n_heads, "d_head": layout.d_head}
    if layout.ln_treatment and stores_top1_copying(**sizes, vocab_size=layout.vocab_size):
        rows.append(
            Row(
                "ov_top1_copying",
                "Share of tokens whose own logit the OV circuit raises most",
                dims=HEAD,
                chance=1.0 / layout.vocab_size if layout.vocab_size else None,
                ceiling=1.0,
                range=SHARE,
                definition="ov_top1_copying/argmax_ties_shared/v1",
                extra=treatment,
            )
        )
    if layout.learned_positions > 1:
        n = layout.learned_positions
        rows.append(
            Row(
                "qk_positional_previous",
                "Share of positions whose positional query prefers the position before",
                dims=HEAD,
                chance=sum(1.0 / (i + 1) for i in range(1, n)) / (n - 1),
                ceiling=1.0,
                range=SHARE,
                definition="qk_positional_previous/causal_argmax_ties_shared/v1",
                extra=treatment,
            )
        )
    return rows


def _compositions(layout: RunLayout) -> list[Row]:
    version, treatment = _folding(layout)
    later = (("nan_where", "layer_from >= layer_to, or a circuit is zero"),)
    rows = []
    for letter, what in (("k", "keys"), ("q", "queries"), ("v", "values")):
        rows.append(
            Row(
                f"{letter}_composition",
                f"How far the later head's {what} read the earlier head's output (chance: 1/sqrt(d_model))",
                "1",
                PAIR,
                ceiling=1.0,
                range=SHARE,
                definition=f"{letter}_composition/frobenius_ratio{version}",
                extra=(*treatment, *later),
            )
        )
    rows.append(
        Row(
            "k_composition_matching",
            "Matching score of the later head's keys read through the earlier head",
            "1",
            PAIR,
            chance=0.0,
            ceiling=1.0,
            range=SIGNED_SHARE,
            definition=f"k_composition_matching/eigenvalue_ratio{version}",
            extra=(*treatment, *later),
        )
    )
    if not layout.ln_treatment:
        return rows
    for letter, what in (("k", "keys"), ("q", "queries"), ("v", "values")):
        rows += [
            Row(
                f"{letter}_composition_z",
                f"{letter.upper()}-composition in standard deviations from its mean over random weights",
                dims=PAIR,
                chance=0.0,
                range=UNBOUNDED,
                definition=f"{letter}_composition_z/gaussian_null/v1",
                extra=(*treatment, ("nan_where", f"{later[0][1]}, or random weights have no spread")),
            ),
            Row(
                f"{letter}_subspace_overlap",
                f"Mean squared cosine between the space written and the space that {what} are read from",
                dims=PAIR,
                ceiling=1.0,
                range=SHARE,
                definition=f"{letter}_subspace_overlap/mean_squared_cosine/v1",
                extra=(*treatment, *later),
            ),
        ]
    return rows


def _folding(layout: RunLayout) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the end of the definitions, and the attribute, that say what was done with LayerNorm."""
    version = ",ln=folded/v2" if layout.ln_treatment == "folded" else "/v1"
    return version, (("ln_treatment", layout.ln_treatment),) if layout.ln_treatment else ()
