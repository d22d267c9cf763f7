"""Tables of a comparison: the transition and the spectrum of every run, and the spread of every group."""

from typing import TYPE_CHECKING, Any

import numpy as np

from spectral.plots.compare.runs import Comparison, Member
from spectral.plots.source import nearest, values_or_none

if TYPE_CHECKING:
    import pandas

PHASES = ("before", "midpoint", "after")
_UNDATED_PHASES = ("first", "middle", "last")


def run_table(comparison: Comparison) -> "pandas.DataFrame":
    """Return one row per run: verdict, times with their interval, mechanism, and largest eigenvalues."""
    import pandas

    return pandas.DataFrame([_run_row(group.label, member) for group in comparison.groups for member in group.members])


def group_table(comparison: Comparison) -> "pandas.DataFrame":
    """Return one row per group: how many runs have a dated transition, and the spread of their midpoints."""
    import pandas

    rows = []
    for group in comparison.groups:
        midpoints = np.array([member.midpoint for member in group.members if member.midpoint is not None])
        spread: dict[str, Any] = dict.fromkeys(("midpoint_median", "midpoint_q25", "midpoint_q75"), np.nan)
        if len(midpoints):
            q25, median, q75 = np.quantile(midpoints, [0.25, 0.5, 0.75])
            spread = {"midpoint_median": median, "midpoint_q25": q25, "midpoint_q75": q75}
            spread |= {"midpoint_min": midpoints.min(), "midpoint_max": midpoints.max()}
        rows.append({"group": group.label, "runs": len(group.members), "dated": len(midpoints)} | spread)
    return pandas.DataFrame(rows)


def spectrum_table(comparison: Comparison) -> "pandas.DataFrame":
    """Return the eigenvalues of every run in long form: run, group, phase, step, end, rank, eigenvalue, error_bound.

    Phases are `before` (one width ahead of the onset), `midpoint` and `after` (one width behind the end), at the
    nearest snapshot; `first`, `middle` and `last` for a run without a dated transition. Rank 0 is the outermost.
    """
    import pandas

    rows = []
    for group in comparison.groups:
        for member in group.members:
            steps = member.run.steps
            for end, prefix in (("top", ""), ("bottom", "negative_")):
                spectrum = values_or_none(member.run, f"hessian/{prefix}eigenvalues")
                bounds = values_or_none(member.run, f"hessian/{prefix}error_bounds")
                for phase, i in phases(member).items() if spectrum is not None else ():
                    for rank, value in enumerate(spectrum[i]):  # type: ignore[index]
                        rows.append(
                            {
                                "run": member.name,
                                "group": group.label,
                                "phase": phase,
                                "step": int(steps[i]),
                                "end": end,
                                "rank": rank,
                                "eigenvalue": value,
                                "error_bound": np.nan if bounds is None else bounds[i, rank],
                            }
                        )
    columns = ["run", "group", "phase", "step", "end", "rank", "eigenvalue", "error_bound"]
    return pandas.DataFrame(rows, columns=columns)


def phases(member: Member) -> dict[str, int]:
    """Return the snapshots before, in and after the transition: phase -> index."""
    steps, verdict = member.run.steps, member.verdict
    if verdict.onset is None or verdict.midpoint is None or verdict.end is None:
        return dict(zip(_UNDATED_PHASES, (0, len(steps) // 2, len(steps) - 1), strict=True))
    width = verdict.end - verdict.onset
    wanted = (verdict.onset - width, verdict.midpoint, verdict.end + width)
    return {phase: nearest(steps, place) for phase, place in zip(PHASES, wanted, strict=True)}


def _run_row(label: str, member: Member) -> dict[str, Any]:
    run, verdict = member.run, member.verdict
    consensus, mechanism = run.transitions.get("consensus") or {}, run.transitions.get("mechanism") or {}
    low, high = verdict.interval or (np.nan, np.nan)
    row: dict[str, Any] = {
        "run": member.name,
        "group": label,
        "seed": run.config.get("seed"),
        "status": run.status,
        "snapshots": len(run.steps),
        "last_step": int(run.steps[-1]),
        "verdict": verdict.verdict or "not judged",
        "reason": verdict.reason or "",
        "onset": _number(verdict.onset),
        "midpoint": _number(verdict.midpoint),
        "interval_low": low,
        "interval_high": high,
        "end": _number(verdict.end),
        "abruptness": _number(consensus.get("abruptness")),
        "p_value": _number(verdict.p_value),
        "mechanism": mechanism.get("label", ""),
    }
    accuracy = values_or_none(run, "behaviour/induction_accuracy")
    row["last_induction_accuracy"] = np.nan if accuracy is None else accuracy[-1]
    return row | _spectrum_facts(member)


def _spectrum_facts(member: Member) -> dict[str, Any]:
    names = ("lambda_1_before", "lambda_1_midpoint", "lambda_1_after", "lambda_1_largest", "lambda_1_largest_step")
    facts: dict[str, Any] = dict.fromkeys(names, np.nan)
    spectrum = values_or_none(member.run, "hessian/eigenvalues")
    if spectrum is not None:
        top = spectrum[:, 0]
        if member.midpoint is not None:
            facts |= {f"lambda_1_{phase}": top[i] for phase, i in phases(member).items()}
        if np.isfinite(top).any():
            peak = int(np.nanargmax(top))
            facts |= {"lambda_1_largest": top[peak], "lambda_1_largest_step": int(member.run.steps[peak])}
    return facts


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
