"""What the transition detector gets right and wrong, by family of synthetic curves, beside other rules.

    python -m benchmarks.detector [--sections nulls runs abrupt ...] [--curves 400] [--seed 1] [--json FILE]

Sections: nulls (false alarms of one signal), runs (false alarms of runs of two correlated signals), alone (runs judged
on the spectrum alone), abrupt (recall, error, coverage, F1, covering), several (two steps), widths (verdict by width),
power (by number of snapshots), order (lead and lag), uniform (p-values on a curve of the null grid), online,
online_nulls, baselines, speed. Role: "test" families were never seen by calibration; "calib." ones were, with other
seeds. Rates carry 95 % Wilson intervals.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats
from tqdm import tqdm

from benchmarks.detector_baselines import baselines
from benchmarks.report import machine
from spectral.detection import OnlineDetector, Transition, detect_run, detect_transition
from spectral.detection.curves.families import ar1
from spectral.detection.curves.splits import ALL_ABRUPT, ALL_NULL, TEST_ABRUPT, TEST_NULL
from spectral.detection.curves.training_curves import two_steps
from spectral.detection.online_calibration import kept_statistics
from spectral.detection.rounds import WANDERING
from spectral.detection.scoring import covering, f1_margin, wilson
from spectral.detection.statistic import hampel, jump_ratio, scan_rows, sigmoid
from spectral.detection.tables import calibrated_p, calibration_id
from spectral.detection.thresholds import kind_scales, threshold
from spectral.randomness import numpy_generator

Rows = list[dict[str, Any]]
SURROGATES = 199
MARGIN = 0.02
INTERVALS = ("interval", "onset_interval", "end_interval", "width_interval")


def generator(options: argparse.Namespace, section: str, family: str, i: int) -> np.random.Generator:
    """Return the stream of one curve: fresh for each seed, section, family and index."""
    return numpy_generator(options.seed, f"benchmark/{section}/{family}", i)


def axis(n: int, kind: str = "even") -> np.ndarray:
    """Return [n] times on [0, 1]: even, or denser early as on a logarithmic schedule."""
    if kind == "even":
        return np.linspace(0, 1, n)
    return (np.geomspace(1, 30, n) - 1) / 29


def judged(t: np.ndarray, y: np.ndarray, seed: int, *, n_surrogates: int = SURROGATES, **more: Any) -> Transition:
    """Judge one curve at significance 0.01."""
    return detect_transition(t, y, n_surrogates=n_surrogates, seed=seed, bumps=False, **more)


def rate(hits: int, n: int) -> str:
    """Return a rate with its Wilson interval."""
    low, high = wilson(hits, n)
    return f"{hits}/{n} = {hits / n:.3f} [{low:.3f}, {high:.3f}]" if n else "-"


def role(family: str) -> str:
    """Return whether calibration saw the family."""
    return "test" if family in (*TEST_NULL, *TEST_ABRUPT, "ALL TEST FAMILIES") else "calib."


def judged_families(options: argparse.Namespace, of: dict[str, Any]) -> tuple[str, ...]:
    """Return the families to run: all, or only those that calibration never saw, or did see."""
    return tuple(name for name in of if options.families in ("all", role(name).removesuffix(".")))


def each(names: list[str] | tuple[str, ...], n: int, label: str) -> Iterator[tuple[str, int]]:
    """Yield (family, index) under a progress bar."""
    yield from tqdm([(name, i) for name in names for i in range(n)], desc=label, mininterval=5)


def nulls(options: argparse.Namespace) -> Rows:
    """False alarms of a single signal at significance 0.01."""
    rows = []
    for n in options.snapshots:
        t = axis(n, options.axis)
        names = judged_families(options, ALL_NULL)
        verdicts: dict[str, Counter[str]] = {name: Counter() for name in names}
        for name, i in each(names, options.curves, f"nulls {n}"):
            y, _ = ALL_NULL[name](t, generator(options, f"nulls/{n}", name, i))
            found = judged(t, y, i, several=False)
            verdicts[name][found.verdict] += 1
        for name, count in verdicts.items():
            shares = {kind: count[kind] / options.curves for kind in ("gradual", "none", "inconclusive")}
            alarms = rate(count["abrupt"], options.curves)
            rows.append({"snapshots": n, "role": role(name), "family": name, "false alarms": alarms} | shares)
    return rows


def correlated(t: np.ndarray, name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return two null signals of one run with correlation near 0.8: the second is mostly the first."""
    one, _ = ALL_NULL[name](t, rng)
    other, _ = ALL_NULL[name](t, rng)
    return one, 0.8 * one / max(float(np.std(one)), 1e-12) + 0.6 * other / max(float(np.std(other)), 1e-12)


def hopeless(t: np.ndarray, y: np.ndarray) -> bool:
    """Tell cheaply that a verdict cannot be abrupt: no surrogate saves what fails the calibrated test."""
    scan = scan_rows(t, hampel(((y - np.median(y)) / np.ptp(y))[None]))
    phi = float(scan.phi[0])
    p = calibrated_p(float(scan.statistic[0]), phi, len(t), jump_ratio(t, scan, 0))
    return p > 0.01 and phi < WANDERING  # where noise wanders, several steps may be sought together


def runs(options: argparse.Namespace) -> Rows:
    """False alarms of one signal, and of runs of two families of signals, correlated 0.8 or independent."""
    rows = []
    t = axis(options.snapshots[0], options.axis)
    families = {"a": "behaviour", "b": "spectrum"}
    alarms: Counter[tuple[str, str]] = Counter()
    names = judged_families(options, ALL_NULL)
    for name, i in each(names, options.curves, "runs"):
        rng = generator(options, "runs", name, i)
        one, shared = correlated(t, name, rng)
        # A run needs both signals: where the first is not abrupt, no second can make it one.
        if hopeless(t, one) or not judged(t, one, i, signal="a").detected:
            continue
        alarms[name, "alone"] += 1
        for kind, other in (("shared", shared), ("independent", ALL_NULL[name](t, rng)[0])):
            verdict = detect_run(t, {"a": one, "b": other}, families, n_surrogates=499, seed=i, log_axis=False)
            alarms[name, kind] += verdict.detected
    for name in names:
        rows.append(
            {
                "role": role(name),
                "family": name,
                "one signal": rate(alarms[name, "alone"], options.curves),
                "noise shared 0.8": rate(alarms[name, "shared"], options.curves),
                "independent": rate(alarms[name, "independent"], options.curves),
            }
        )
    return rows


def alone(options: argparse.Namespace) -> Rows:
    """False alarms of runs judged on the spectrum alone, with two of its signals."""
    rows = []
    t = axis(options.snapshots[0], options.axis)
    families = {"a": "spectrum", "b": "spectrum", "c": "behaviour"}
    alarms: Counter[str] = Counter()
    count = max(options.curves // 4, 1)
    names = judged_families(options, ALL_NULL)
    for name, i in each(names, count, "alone"):
        one, other = correlated(t, name, generator(options, "alone", name, i))
        signals = {"a": one, "b": other, "c": t}
        verdict = detect_run(
            t, signals, families, n_surrogates=399, seed=i, log_axis=False, select_families=["spectrum"]
        )
        alarms[name] += verdict.detected
    for name in names:
        rows.append({"role": role(name), "family": name, "false alarms": rate(alarms[name], count)})
    return rows


def abrupt(options: argparse.Namespace) -> Rows:
    """Recall, error, coverage, F1 and covering on curves with one transition."""
    rows = []
    count = max(options.curves // 2, 1)
    for n in options.snapshots:
        t = axis(n, options.axis)
        names = judged_families(options, ALL_ABRUPT)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for name, i in each(names, count, f"abrupt {n}"):
            y, truth = ALL_ABRUPT[name](t, generator(options, f"abrupt/{n}", name, i))
            assert truth is not None
            found[name].append(one_score(t, judged(t, y, i), truth))
        pooled = [entry for name in TEST_ABRUPT if name in found for entry in found[name]]
        together = [("ALL TEST FAMILIES", pooled)] if pooled else []
        for name, entries in [*found.items(), *together]:
            rows.append({"snapshots": n, "role": role(name)} | summary(name, entries))
    return rows


def one_score(t: np.ndarray, found: Transition, truth: tuple[float, float, float]) -> dict[str, float]:
    """Return the scores of one verdict against the 10, 50 and 90 % points."""
    n = len(t)
    predicted = [one.midpoint for one in (found, *found.further) if one.detected and one.midpoint is not None]
    points = {int(np.argmin(np.abs(t - m))) for m in predicted}
    true = {int(np.argmin(np.abs(t - truth[1])))}
    scores = {
        "hit": float(any(abs(m - truth[1]) <= MARGIN for m in predicted)),
        "extra": float(len(points) > 1),
        "f1": f1_margin([true], points, margin=max(round(MARGIN * n), 1)),
        "covering": covering([true], points, n=n),
    }
    if found.detected and found.midpoint is not None:
        scores["error"] = abs(found.midpoint - truth[1])
        right = (truth[1], truth[0], truth[2], truth[2] - truth[0])
        for name, value in zip(INTERVALS, right, strict=True):
            low, high = getattr(found, name)
            scores[name] = float(low <= value <= high)
            scores[f"{name} length"] = high - low
    return scores


def summary(name: str, entries: list[dict[str, float]]) -> dict[str, Any]:
    """Average the scores of one family."""
    dated = [entry for entry in entries if "error" in entry]
    errors = [entry["error"] for entry in dated] or [float("nan")]
    row: dict[str, Any] = {
        "family": name,
        "hit within 2 %": rate(int(sum(entry["hit"] for entry in entries)), len(entries)),
        "F1": statistics.mean(entry["f1"] for entry in entries),
        "covering": statistics.mean(entry["covering"] for entry in entries),
        "extra": sum(entry["extra"] for entry in entries) / len(entries),
        "error median": float(np.median(errors)),
        "error 90 %": float(np.quantile(errors, 0.9)),
    }
    for interval in INTERVALS:
        covered = int(sum(entry[interval] for entry in dated))
        low, high = wilson(covered, len(dated))
        label = "midpoint" if interval == "interval" else interval.removesuffix("_interval")
        row[f"covers {label}"] = f"{covered / max(len(dated), 1):.3f} [{low:.2f}, {high:.2f}]"
    row["length"] = float(np.median([entry["interval length"] for entry in dated])) if dated else float("nan")
    return row


def several(options: argparse.Namespace) -> Rows:
    """Two steps in one curve: how many are found."""
    rows = []
    count = max(options.curves // 2, 1)
    for n in options.snapshots:
        t = axis(n, options.axis)
        hits: Counter[int] = Counter()
        f1, extra = [], 0
        for i in tqdm(range(count), desc=f"several {n}"):
            y, truths = two_steps(t, generator(options, f"several/{n}", "two_steps", i))
            found = judged(t, y, i, n_surrogates=399)  # Holm over three searches
            places = [one.midpoint for one in (found, *found.further) if one.detected and one.midpoint is not None]
            hits[sum(any(abs(m - truth[1]) <= MARGIN for m in places) for truth in truths)] += 1
            extra += len(places) > 2
            points = {int(np.argmin(np.abs(t - m))) for m in places}
            true = {int(np.argmin(np.abs(t - truth[1]))) for truth in truths}
            f1.append(f1_margin([true], points, margin=max(round(MARGIN * n), 1)))
        rows.append(
            {
                "snapshots": n,
                "both found": rate(hits[2], count),
                "one found": rate(hits[1], count),
                "none": rate(hits[0], count),
                "F1": statistics.mean(f1),
                "more than two": rate(extra, count),
            }
        )
    return rows


def widths(options: argparse.Namespace) -> Rows:
    """Verdicts by the true width of a clean sigmoid; abrupt means at most 0.12."""
    rows = []
    t = axis(options.snapshots[0], options.axis)
    count = max(options.curves // 4, 1)
    for width in (0.02, 0.05, 0.09, 0.11, 0.13, 0.16, 0.2, 0.3, 0.4):
        verdicts: Counter[str] = Counter()
        for i in tqdm(range(count), desc=f"width {width}"):
            rng = generator(options, "widths", str(width), i)
            noise = ar1(len(t), rng.uniform(0, 0.6), rng.uniform(0.01, 0.04), rng)
            verdicts[judged(t, sigmoid(t, rng.uniform(0.3, 0.7), width) + noise, i, several=False).verdict] += 1
        kinds = ("abrupt", "inconclusive", "gradual", "none")
        rows.append({"true width": width} | {kind: rate(verdicts[kind], count) for kind in kinds})
    return rows


def power(options: argparse.Namespace) -> Rows:
    """Share of test curves found within 2 %, by number of snapshots; and verdicts of curves too short to judge."""
    rows = []
    count = max(options.curves // 8, 1)
    for n in (30, 40, 60, 100, 200):
        t = axis(n, options.axis)
        hits, inconclusive, alarms = 0, 0, 0
        for name, i in each(TEST_ABRUPT, count, f"power {n}"):
            y, truth = ALL_ABRUPT[name](t, generator(options, f"power/{n}", name, i))
            found = judged(t, y, i, several=False)
            assert truth is not None
            hits += found.detected and abs(float(found.midpoint or 0) - truth[1]) <= MARGIN
            inconclusive += found.verdict == "inconclusive"
        for name, i in each(TEST_NULL, count, f"nulls {n}"):
            y, _ = ALL_NULL[name](t, generator(options, f"power/{n}", name, i))
            alarms += judged(t, y, i, several=False).detected
        total = count * len(TEST_ABRUPT)
        rows.append(
            {
                "snapshots": n,
                "found within 2 %": rate(hits, total),
                "inconclusive": rate(inconclusive, total),
                "false alarms, all test nulls": rate(alarms, count * len(TEST_NULL)),
            }
        )
    return rows


def order(options: argparse.Namespace) -> Rows:
    """Lead and lag: two families with a true shift; how often it is resolved, rightly, and covered."""
    rows = []
    t = axis(options.snapshots[0], options.axis)
    count = max(options.curves // 2, 1)
    families = {"loss": "behaviour", "score": "circuits", "eigenvalue": "spectrum"}
    for shift in (0.0, 0.01, 0.03):
        detected, resolved, wrong, covered, pairs = 0, 0, 0, 0, 0
        for i in tqdm(range(count), desc=f"shift {shift}"):
            rng = generator(options, "order", str(shift), i)
            m, w = rng.uniform(0.25, 0.75), rng.uniform(0.02, 0.08)
            places = {"loss": m, "score": m, "eigenvalue": m - shift}
            signals = {
                name: sigmoid(t, place, w) + ar1(len(t), rng.uniform(0, 0.6), rng.uniform(0.01, 0.05), rng)
                for name, place in places.items()
            }
            verdict = detect_run(t, signals, families, n_surrogates=399, seed=i, log_axis=False)
            detected += verdict.detected
            for pair in verdict.lead_lag:
                truth = places[pair.first] - places[pair.second]
                pairs += 1
                covered += pair.interval[0] <= truth <= pair.interval[1]
                if pair.resolved and truth != 0:
                    resolved += np.sign(pair.difference) == np.sign(truth)
                wrong += pair.resolved and np.sign(pair.difference) != np.sign(truth)
        shifted = 2 * count if shift else 0
        rows.append(
            {
                "shift of the spectrum": shift,
                "run detected": rate(detected, count),
                "pairs resolved rightly": rate(resolved, shifted),
                "resolved wrongly": rate(wrong, pairs),
                "90 % interval covers": rate(covered, pairs),
            }
        )
    return rows


def uniform(options: argparse.Namespace) -> Rows:
    """P-values against surrogates where the null hypothesis is exactly true: a line, an exponential, AR(1) noise."""
    rows = []
    n = options.snapshots[0]
    t = axis(n, options.axis)
    for phi in (0.0, 0.5):
        p = []
        for i in tqdm(range(options.curves), desc=f"phi {phi}"):
            rng = generator(options, "uniform", str(phi), i)
            y = np.exp(-t / 0.2) + ar1(n, phi, 0.03, rng)
            p.append(judged(t, y, i, several=False).p_value)
        share = {f"p <= {level}": rate(int(np.sum(np.array(p) <= level)), len(p)) for level in (0.01, 0.05, 0.2)}
        rows.append({"phi": phi} | share | {"KS p-value": float(stats.kstest(p, "uniform").pvalue)})
    return rows


def followed(t: np.ndarray, y: np.ndarray) -> dict[str, list[float]]:
    """Feed one curve to the online detector; return the times of its candidates and confirmations."""
    watcher = OnlineDetector({"y": "behaviour"}, planned_steps=1, significance=0.05)
    times: dict[str, list[float]] = {"candidate": [], "confirmed": []}
    for step, value in zip(t, y, strict=True):
        for event in watcher.update(step, {"y": value}):
            if event.kind in times:
                times[event.kind].append(event.step)
    return times


def online(options: argparse.Namespace) -> Rows:
    """Transitions of the test families, followed snapshot by snapshot at significance 0.05 per run."""
    rows: Rows = []
    count = max(options.curves // 4, 1)
    for n in options.snapshots:
        t = axis(n, options.axis)
        pooled: dict[str, list[float]] = {"candidate": [], "confirmed": []}
        for name in TEST_ABRUPT:
            row = {"snapshots": n, "role": role(name), "family": name}
            delays, early = _delays(options, t, name, count)
            for kind, values in delays.items():
                pooled[kind].extend(values)
            rows.append(row | _online_row(delays, early, count))
        row = {"snapshots": n, "role": "test", "family": "ALL TEST FAMILIES"}
        rows.append(row | _online_row(pooled, None, count * len(TEST_ABRUPT)))
    return rows


def online_nulls(options: argparse.Namespace) -> Rows:
    """Null runs of the test families in which a signal is confirmed at 0.05: T above h until confirmed, gates held.

    The simulation of the calibration, hundreds of curves at a time; the detector itself takes 200 updates a curve.
    """
    rows: Rows = []
    for n in options.snapshots:
        h = threshold(n, 0.05)
        kept = kept_statistics(TEST_NULL, n, options.curves, options.seed)
        for name, heights in kept.items():
            alarms = int(np.count_nonzero(np.max(heights * kind_scales(n), axis=1) > h))
            rows.append({"snapshots": n, "role": role(name), "family": name, "confirmed": rate(alarms, options.curves)})
    return rows


def _delays(options: argparse.Namespace, t: np.ndarray, name: str, count: int) -> tuple[dict[str, list[float]], int]:
    delays: dict[str, list[float]] = {"candidate": [], "confirmed": []}
    early = 0
    for i in tqdm(range(count), desc=f"online {len(t)} {name}", leave=False):
        y, truth = ALL_ABRUPT[name](t, generator(options, f"online/{len(t)}", name, i))
        assert truth is not None
        times = followed(t, y)
        early += any(moment < truth[0] for moment in times["confirmed"])
        for kind, moments in times.items():
            after = [moment for moment in moments if moment >= truth[0]]
            if after:
                delays[kind].append(after[0] - truth[1])
    return delays, early


def _online_row(delays: dict[str, list[float]], early: int | None, count: int) -> dict[str, Any]:
    row: dict[str, Any] = {f"{kind}: false alarms or hits": rate(len(values), count) for kind, values in delays.items()}
    row["before onset"] = None if early is None else rate(early, count)
    for kind, values in delays.items():
        known = values or [float("nan")]
        row[f"{kind} delay"] = float(np.median(known))
        row[f"{kind} 90 %"] = float(np.quantile(known, 0.9))
    return row


def compared(options: argparse.Namespace) -> Rows:
    """This detector beside other rules, same curves: test families only."""
    n = options.snapshots[0]
    t = axis(n, options.axis)
    count = max(options.curves // 10, 1)

    def ours(_: np.ndarray, y: np.ndarray) -> list[int]:
        found = judged(t, y, 0)
        places = [one.midpoint for one in (found, *found.further) if one.detected and one.midpoint is not None]
        return [int(np.argmin(np.abs(t - m))) for m in places]

    methods: dict[str, Callable[[np.ndarray, np.ndarray], list[int]]] = {"this detector": ours} | baselines()
    rows = []
    for name, method in methods.items():
        scores: dict[str, list[tuple[float, float, bool, bool]]] = {"abrupt": [], "null": []}
        started = time.perf_counter()
        for kind, group in (("abrupt", TEST_ABRUPT), ("null", TEST_NULL)):
            source = ALL_ABRUPT if kind == "abrupt" else ALL_NULL
            for family, i in each(group, count, name):
                y, truth = source[family](t, generator(options, "baselines", family, i))
                points = set(method(t, y))
                true = set() if truth is None else {int(np.argmin(np.abs(t - truth[1])))}
                margin = max(round(MARGIN * n), 1)
                near = any(abs(point - index) <= margin for point in points for index in true)
                f1 = f1_margin([true], points, margin=margin)
                scores[kind].append((f1, covering([true], points, n=n), near, bool(points)))
        total = sum(len(entries) for entries in scores.values())
        row: dict[str, Any] = {"detector": name}
        for kind, entries in scores.items():
            row[f"F1, {kind}"] = statistics.mean(entry[0] for entry in entries)
            row[f"covering, {kind}"] = statistics.mean(entry[1] for entry in entries)
        row["hit within 2 %"] = rate(sum(entry[2] for entry in scores["abrupt"]), len(scores["abrupt"]))
        row["false alarms"] = rate(sum(entry[3] for entry in scores["null"]), len(scores["null"]))
        row["ms / curve"] = 1000 * (time.perf_counter() - started) / total
        rows.append(row)
    return rows


def speed(options: argparse.Namespace) -> Rows:
    """CPU seconds, as wall time depends on who shares the machine: one verdict on 20 signals, one update of 6."""
    rows = []
    for n in (50, 100, 200):
        t = axis(n, options.axis)
        for content in ("transitions", "nulls"):
            group = list(ALL_ABRUPT if content == "transitions" else ALL_NULL)
            source = ALL_ABRUPT if content == "transitions" else ALL_NULL
            signals, families = {}, {}
            for k in range(20):
                name = f"s{k}"
                signals[name] = source[group[k % len(group)]](t, generator(options, "speed", name, n))[0]
                families[name] = ("behaviour", "circuits", "spectrum")[k % 3]
            started = time.process_time()
            detect_run(t, signals, families)
            rows.append(
                {"what": f"detect_run, 20 signals, {content}", "snapshots": n, "seconds": time.process_time() - started}
            )
        watcher = OnlineDetector({name: families[name] for name in list(signals)[:6]}, planned_steps=1)
        spent = []
        for i, step in enumerate(t):
            started = time.process_time()
            watcher.update(step, {name: signals[name][i] for name in list(signals)[:6]})
            spent.append(time.process_time() - started)
        rows.append({"what": "online update, 6 signals, median", "snapshots": n, "seconds": statistics.median(spent)})
        rows.append({"what": "online update, 6 signals, largest", "snapshots": n, "seconds": max(spent)})
    return rows


SECTIONS: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "nulls": nulls,
    "runs": runs,
    "alone": alone,
    "abrupt": abrupt,
    "several": several,
    "widths": widths,
    "power": power,
    "order": order,
    "uniform": uniform,
    "online": online,
    "online_nulls": online_nulls,
    "baselines": compared,
    "speed": speed,
}


def show(title: str, rows: Rows) -> None:
    """Print one table."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("-" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=240).print(table)


def main() -> None:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--curves", type=int, default=400, help="null curves per family; other sections take a share")
    parser.add_argument("--snapshots", type=int, nargs="+", default=[200])
    parser.add_argument(
        "--families", default="all", choices=("all", "test", "calib"), help="nulls, runs, alone and abrupt"
    )
    parser.add_argument("--axis", default="even", choices=("even", "log"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None, help="also write the numbers to this file")
    options = parser.parse_args()
    facts = machine() | {"calibration_id": calibration_id(), "seed": options.seed, "curves": options.curves}
    written: dict[str, Any] = {"machine": facts, "sections": {}}
    for name in options.sections:
        started = time.perf_counter()
        rows = SECTIONS[name](options)
        show(f"{name}: {SECTIONS[name].__doc__}", rows)
        written["sections"][name] = {"rows": rows, "seconds": time.perf_counter() - started}
        if options.json:
            options.json.write_text(json.dumps(written, indent=1, default=str), encoding="utf-8")
    print(", ".join(f"{name}: {value}" for name, value in facts.items()))


if __name__ == "__main__":
    main()
