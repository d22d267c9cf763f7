"""Which signal moved first: differences of midpoints between families, with intervals, corrected for their number."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spectral.detection.multiple import holm
from spectral.detection.transition import Interval, Transition, midpoint_bounds

FAMILIES = ("spectrum", "circuits", "behaviour")  # order of lead/lag differences: first minus second
LEAD_LAG_LEVEL = 0.1


@dataclass(frozen=True, kw_only=True)
class LeadLag:
    """How much later one signal changed than another of a different family.

    Attributes:
        first: name of the signal whose midpoint is taken.
        second: name of the signal whose midpoint is subtracted.
        first_family: family of `first`.
        second_family: family of `second`.
        difference: midpoint(first) - midpoint(second) in steps; positive: `first` came later.
        interval: nominal 90 % interval; independent errors assumed, so noise shared by both makes it too wide.
        resolved: whether the order is certain: the interval excludes 0 and `holm_p` is at most 0.1.
        p_value: two-sided, of a difference of 0, from the interval taken as Gaussian.
        holm_p: the same, Holm-corrected over the pairs of the table.
    """

    first: str
    second: str
    first_family: str
    second_family: str
    difference: float
    interval: Interval
    resolved: bool
    p_value: float
    holm_p: float


def lead_lag_table(abrupt: Mapping[str, Transition], families: Mapping[str, str]) -> list[LeadLag]:
    """Return one entry per pair of abrupt signals (name -> transition) of different families (name -> family)."""

    def place(name: str) -> int:
        family = families[name]
        return FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)

    names = sorted(abrupt, key=place)
    pairs: list[dict[str, Any]] = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if families[first] == families[second]:
                continue
            a, b = abrupt[first], abrupt[second]
            difference = float(a.midpoint or 0.0) - float(b.midpoint or 0.0)
            (a_low, a_high), (b_low, b_high) = midpoint_bounds(a), midpoint_bounds(b)
            m_a, m_b = float(a.midpoint or 0.0), float(b.midpoint or 0.0)
            interval = (
                difference - math.hypot(m_a - a_low, b_high - m_b),
                difference + math.hypot(a_high - m_a, m_b - b_low),
            )
            toward_zero = difference - interval[0] if difference > 0 else interval[1] - difference
            z = abs(difference) / max(toward_zero / 1.645, 1e-12)
            pairs.append(
                {
                    "first": first,
                    "second": second,
                    "first_family": families[first],
                    "second_family": families[second],
                    "difference": difference,
                    "interval": interval,
                    "p_value": math.erfc(z / math.sqrt(2)),
                }
            )
    corrected = holm({str(i): pair["p_value"] for i, pair in enumerate(pairs)})
    table = []
    for i, pair in enumerate(pairs):
        low, high = pair["interval"]
        p = corrected[str(i)]
        table.append(LeadLag(**pair, holm_p=p, resolved=(low > 0 or high < 0) and p <= LEAD_LAG_LEVEL))
    return table
