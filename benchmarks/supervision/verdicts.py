"""Tables with bootstrap intervals, and what they say of the paper's claims."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from course import MEASURED, Row
from grid import Cell

DRAWS = 4000
COLUMNS = ("final reward", "best", "parse rate", "alive", "supervised steps", "held out", "format OOD", "content OOD")
HEAD = "| " + " | ".join(("arm", "schedule", "rate", "seeds", *COLUMNS)) + " |"
"""Of the measured ones in the order of `course.Row`."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95 % percentile bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Claim:
    """A difference that a claim is about; `agrees` is None where the interval holds zero, or nothing was measured."""

    claim: str
    difference: Estimate | None
    agrees: bool | None

    def __str__(self) -> str:
        told = {True: "agrees", False: "disagrees", None: "open"}[self.agrees]
        return f"| {self.claim} | {self.difference or 'not run'} | {told} |"


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean and interval of what each seed gave; values that are NaN are left out."""
    kept = np.array([value for value in values if value == value])
    if not len(kept):
        return Estimate(float("nan"), float("nan"), float("nan"))
    draws = np.random.default_rng(seed).choice(kept, (DRAWS, len(kept))).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Estimate(float(kept.mean()), float(low), float(high))


def cells(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by cell, in the order they come."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.cell, []).append(row)
    return found


def summary(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One plain object a cell."""
    return [
        {"cell": name, "seeds": len(own)} | {key: asdict(estimate([getattr(r, key) for r in own])) for key in MEASURED}
        for name, own in cells(rows).items()
    ]


def table(rows: Iterable[Row]) -> str:
    """One line a cell, in Markdown."""
    lines = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
    for own in cells(rows).values():
        first = own[0]
        arm = {"none": "RL alone"}.get(first.arm, first.arm) + (f" ({label})" if (label := _label(first)) else "")
        shown = [str(estimate([getattr(row, key) for row in own])) for key in MEASURED]
        lines.append(f"| {arm} | {first.schedule or '-'} | {first.rate:g} | {len(own)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _label(row: Row) -> str:
    """What a cell of a sweep has beside its arm, schedule and rate."""
    return row.cell.removeprefix(Cell(row.arm, row.schedule, row.rate).name).lstrip("-")


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The paper's order of arms, and ours of schedules, each as a difference paired by seed and learning rate."""
    grid = [row for row in rows if not _label(row)]

    def of(arm: str, schedule: str | None = None) -> Callable[[Row], bool]:
        return lambda row: row.arm == arm and schedule in (None, row.schedule)

    alone = of("none")
    found = [
        _claim("paper: SFT then RL ends above RL alone", grid, of("sft_first"), alone, "final"),
        _claim("paper: ETS, interleaved, ends above RL alone", grid, of("erroneous", "interleaved"), alone, "final"),
        _claim("paper: PRS, interleaved, ends above RL alone", grid, of("reflection", "interleaved"), alone, "final"),
    ]
    for strong in ("erroneous", "reflection"):
        for weak in ("off_policy", "hint"):
            what = f"paper: {strong}, interleaved, ends above {weak}, synchronous"
            found.append(_claim(what, grid, of(strong, "interleaved"), of(weak, "synchronous"), "final"))
    found += [
        _claim("paper: SFT first harms format OOD more than RL alone", grid, alone, of("sft_first"), "format_ood"),
        _claim("paper: ETS harms format OOD more than RL alone", grid, alone, of("erroneous"), "format_ood"),
        _claim("paper: RL alone harms content OOD more than ETS", grid, of("erroneous"), alone, "content_ood"),
    ]
    for arm in ("off_policy", "hint", "erroneous", "reflection", "control_clamp", "lr_cut"):
        pair = (of(arm, "triggered"), of(arm, "interleaved"))
        found.append(_claim(f"{arm}: triggered ends above interleaved", grid, *pair, "final"))
        found.append(_claim(f"{arm}: triggered takes fewer supervised steps", grid, *pair[::-1], "supervised"))
    return found


def _claim(what: str, rows: Sequence[Row], high: Callable[[Row], bool], low: Callable[[Row], bool], key: str) -> Claim:
    """Whether `key` is higher in the one set of rows than in the other, run by run of the same seed and rate."""

    def by_pair(wanted: Callable[[Row], bool]) -> dict[tuple[float, int], float]:
        grouped: dict[tuple[float, int], list[float]] = {}
        for row in filter(wanted, rows):
            grouped.setdefault((row.rate, row.seed), []).append(getattr(row, key))
        return {pair: float(np.mean(values)) for pair, values in grouped.items()}

    above, below = by_pair(high), by_pair(low)
    differences = [above[pair] - below[pair] for pair in sorted(above.keys() & below.keys())]
    if len(differences) < 2:
        return Claim(what, estimate(differences) if differences else None, None)
    found = estimate(differences)
    return Claim(what, found, True if found.low > 0 else False if found.high < 0 else None)


def kept_alive(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of the seeds that RL alone loses: the share that each cell of the same rate keeps alive."""
    grid = [row for row in rows if not _label(row)]
    lost = {(row.rate, row.seed) for row in grid if row.arm == "none" and not row.alive}
    found = []
    for name, own in cells(grid).items():
        there = [row for row in own if (row.rate, row.seed) in lost]
        if there and there[0].arm != "none":
            share = estimate([row.alive for row in there])
            steps = float(np.mean([row.supervised for row in there]))
            found.append({"cell": name, "lost_alone": len(there), "alive": asdict(share), "supervised": steps})
    return found
