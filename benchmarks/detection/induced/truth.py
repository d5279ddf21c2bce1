"""When a run broke, by a rule fixed beforehand that knows nothing of any detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from collapsewatch.records import StepRecord

FIRST, IN_A_ROW, HALF = 10, 5, 0.5
SIGNS = ("sound", "parsed", "calls")
"""Share of turns that are healthy; share of attempted calls that parse strictly; calls that parse, a rollout."""


def signs(record: StepRecord) -> dict[str, float]:
    """The three signs at one step; a step without an attempted call has no `parsed`."""
    m = record.metrics
    told = {"sound": m["structure/tool_call"] + m["structure/response"], "calls": m["tools/call_frequency"]}
    return told | ({"parsed": m["parse_rate"]} if "parse_rate" in m else {})


def broken_step(series: Sequence[Mapping[str, float]]) -> int | None:
    """The index at which `IN_A_ROW` steps begin that each have some sign below half its mean over the `FIRST` steps.

    None for a run that never broke. Which sign it is may change from one step to the next.
    """
    usual = {sign: fmean(row[sign] for row in series[:FIRST] if sign in row) for sign in SIGNS}
    streak = 0
    for i, row in enumerate(series):
        bad = any(row[sign] < HALF * usual[sign] for sign in SIGNS if sign in row)
        streak = streak + 1 if bad else 0
        if streak == IN_A_ROW:
            return i - IN_A_ROW + 1
    return None
