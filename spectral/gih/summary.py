"""A run in a few lines: what each stage found, beside what was to be found."""

from spectral.gih.results import GIHResults


def describe(run: GIHResults) -> str:
    """Return a line per stage, the end losses beside those of the Bayes observer, and what the detector dated."""
    lines, found = [], run.transitions.get("stages", [])
    for stage, trained in enumerate(run.stage_names):
        rows = run.rows_of(stage)
        if len(rows) == 0:
            continue
        facts = [
            _effect(run, name, int(rows[0]), int(rows[-1])) for name in ("c", "w", "a") if name in trained.split("+")
        ]
        line = f"stage {stage + 1} ({trained}): " + ("; ".join(facts) or "see the figures")
        dated = [
            f"{name} {_number(verdict['half'])} ({_number(verdict['tenth'])} to {_number(verdict['nine_tenths'])})"
            + (", abrupt" if verdict["detected"] else "")
            for entry in found
            if entry["stage"] == stage
            for name, verdict in entry["signals"].items()
            if verdict["half"] is not None and name != "loss"
        ]
        unit = "flow time" if run.config.stages()[stage].flow_time else "epoch"
        lines.append(line + (f"\n  half done (10 to 90 %), {unit}: {'; '.join(dated)}" if dated else ""))
    return "\n".join([*lines, _end(run)])


def _effect(run: GIHResults, name: str, first: int, last: int) -> str:
    shares = run.read("shares")[last]
    winner = str(run.dataset["subset"].values[int(shares.argmax())])
    if name == "c":
        wanted = run.dataset.attrs["information_set"]
        heads = [place + 1 for place, member in enumerate(winner) if member == "1"]
        beside = "" if wanted == "not computed" else f" (information set {wanted})"
        return f"heads {heads} hold a share of {shares.max():.3f}{beside}"
    if name == "w":
        own = run.read("own_offset")
        heads = [place for place, member in enumerate(winner) if member == "1"]
        moved = ", ".join(f"{own[first, head]:.3f} -> {own[last, head]:.3f}" for head in heads)
        return f"attention on the own offset, heads {[head + 1 for head in heads]}: {moved}"
    a = run.read("a")
    return f"a {a[first]:.3g} -> {a[last]:.4g}"


def _end(run: GIHResults) -> str:
    kind = "validation" if run.config.n_validation else "train"
    names = [str(name) for name in run.dataset["reference"].values] if "reference" in run.dataset else []
    parts = []
    for loss, text in (("double_softmax", "double-softmax loss"), ("nll", "cross-entropy")):
        beside = ""
        if "bayes" in names:
            beside = f" (Bayes {run.read(f'reference_{loss}')[names.index('bayes')]:.4f})"
        parts.append(f"{text} {run.read(f'{kind}_{loss}')[-1]:.4f}{beside}")
    return f"{'held-out' if run.config.n_validation else 'training'} chains: {', '.join(parts)}"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
