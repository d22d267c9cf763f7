"""The detector's verdict as a sentence."""

from typing import Any

REMEDIES = {  # what to change when the detector could not tell
    "too_few_snapshots": "fewer than 40: lower --eigen_interval",
    "too_wide": "long for this run: raise --num_steps, or read the curves",
    "at_edge": "too near the start or the end: raise --num_steps",
}

FORMED = {
    "induction": "\n  what formed: induction heads, which match content",
    "positional": "\n  what formed: heads that look back a fixed way, no induction (content_match_fraction near 0)",
    "mixed": "\n  what formed: heads that match content in part; see content_match_fraction",
    "none": "\n  what formed: no head that continues repeats",
}


def describe_verdict(transitions: dict[str, Any]) -> str:
    """Return the content of `transitions.json` as a sentence or two."""
    consensus = transitions.get("consensus", {})
    if not consensus:
        return "no verdict: the run holds no snapshot"
    if not consensus["detected"]:
        reason = consensus.get("reason") or ""
        hint = f"; {REMEDIES[reason]}" if reason in REMEDIES else ""
        return f"transition: {consensus['verdict']}" + (f" ({reason.replace('_', ' ')}{hint})" if reason else "")
    low, high = consensus["interval"]
    formed = FORMED.get(str(transitions.get("mechanism", {}).get("label")), "")
    families = "; ".join(f"{family}: {', '.join(names)}" for family, names in consensus["agreeing_signals"].items())
    return (
        f"transition: abrupt, midpoint at step {consensus['midpoint']:.0f} (90 % interval {low:.0f} to {high:.0f}), "
        f"from {consensus['onset']:.0f} to {consensus['end']:.0f}, p = {consensus['p_value']:.2g}\n"
        f"  signals that agree: {families}{formed}"
    )
