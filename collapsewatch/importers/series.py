"""Rows of a foreign log as step records: in order, once each, and never more than memory has room for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from ..records import Observation, StepRecord
from .columns import EVALUATION, Columns

ROWS = 5_000
"""Rows kept of a run; of a longer one, means of neighbouring rows: they cost little, and an onset stays within them."""
_RATES = {"completions/clipped_ratio": "truncated", "empty_rate": "empty", "repetition_rate": "repeated"}
_MANY = 2**62  # no count of steps; beyond it nothing can store one

Row = tuple[int | None, dict[str, float]]


class Series(NamedTuple):
    """Rows as records in step order; the columns without a meaning here; what was left out."""

    records: tuple[StepRecord, ...]
    unmapped: tuple[str, ...]
    faults: tuple[str, ...]


def series(rows: Iterable[tuple[int | None, Mapping[str, Any]]], columns: Columns) -> Series:
    """Records out of (step, logged values) rows; without any step the rows are counted.

    Rows without a training metric are left out, but that the scores of an evaluation join the record of their
    step. Rows of one step are one record, of a value logged twice the later counts. Where steps go back, a resumed
    run has begun again: what was logged from there on before is left out, and so is a lone row out of order, unless
    steps go back all the time. Values that are not finite are left out, and a KL divergence that is zero throughout,
    because then it was not measured. What logs say of structure becomes a stream; one prompt group is assumed,
    because no log tells how many there were.
    """
    read, evaluated, faults = _read(rows, columns)
    if all(step is None for step, _ in read):
        read = [(i, found) for i, (_, found) in enumerate(read, 1)]
    told = [(step, found) for step, found in read if step is not None and 0 <= step < _MANY]
    if len(told) < len(read):
        faults.append(f"{len(read) - len(told)} of {len(read)} rows left out, without a step")
    stray = _stray([step for step, _ in told])
    if 0 < len(stray) <= max(1, len(told) // 10):
        faults.append(f"{len(stray)} of {len(told)} rows left out, their steps out of order")
        told = [row for i, row in enumerate(told) if i not in stray]
    back = [after for (before, _), (after, _) in pairwise(told) if after < before]
    steps, dropped = _ordered(told, resumed=len(back) <= max(1, len(told) // 10))
    if dropped:
        faults.append(f"steps go back to {', '.join(map(str, back[:3]))}: {dropped} earlier records left out")
    for step, scores in evaluated:
        if step in steps:
            steps[step] |= scores
    if not any(metrics.get("kl") for metrics in steps.values()):
        for metrics in steps.values():
            metrics.pop("kl", None)
    records = tuple(StepRecord(s, 0.0, steps[s], tuple(_streams(steps[s]))) for s in sorted(steps))
    return Series(records, columns.unmapped(), tuple(faults))


def _read(
    rows: Iterable[tuple[int | None, Mapping[str, Any]]], columns: Columns
) -> tuple[list[Row], list[tuple[int, dict[str, float]]], list[str]]:
    """The rows of training, at most `ROWS` means of equally many; scores of evaluations that stand in other rows."""
    read: list[Row] = []
    evaluated: list[tuple[int, dict[str, float]]] = []
    waiting: list[Row] = []
    every, count = 1, 0
    for step, row in rows:
        metrics, training = columns.metrics(row)
        if not training:
            scores = {name: value for name, value in metrics.items() if EVALUATION.search(name)}
            if scores and step is not None and len(evaluated) < ROWS:
                evaluated.append((step, scores))
            continue
        count += 1
        waiting.append((step, metrics))
        if len(waiting) == every:
            read.append(_mean(waiting))
            waiting = []
        if len(read) == ROWS:
            read = [_mean(read[i : i + 2]) for i in range(0, ROWS, 2)]
            every *= 2
    if waiting:
        read.append(_mean(waiting))
    return read, evaluated, [f"{count} rows: read as means of {every}"] * (every > 1)


def _mean(rows: Sequence[Row]) -> Row:
    """The first step, and of each metric the mean over the rows that have it."""
    if len(rows) == 1:
        return rows[0]
    total: dict[str, float] = defaultdict(float)
    count = Counter[str]()
    for _, metrics in rows:
        count.update(metrics.keys())
        for name, value in metrics.items():
            total[name] += value
    return rows[0][0], {name: total[name] / count[name] for name in total}


def _stray(steps: Sequence[int]) -> set[int]:
    """The rows whose step is not between those around it, where these go on: one digit of it was damaged."""
    stray: set[int] = set()
    before = steps[0] if steps else 0
    for i, (step, after) in enumerate(pairwise(steps)):
        if before < after and not before <= step <= after:
            stray.add(i)
        else:
            before = step
    return stray


def _ordered(rows: Iterable[tuple[int, dict[str, float]]], resumed: bool) -> tuple[dict[int, dict[str, float]], int]:
    """Metrics by step, and how many steps were dropped because a resumed run did them again."""
    steps: dict[int, dict[str, float]] = {}
    last, dropped = -1, 0
    for step, found in rows:
        while resumed and step < last and steps and next(reversed(steps)) >= step:
            steps.popitem()  # the newest: while steps only go on, they stand in their order
            dropped += 1
        if step in steps:
            steps[step] |= found
        else:
            steps[step] = found
        last = step
    return steps, dropped


def _streams(metrics: Mapping[str, float]) -> Iterator[Observation]:
    for name, stream in _RATES.items():
        if 0 <= metrics.get(name, -1.0) <= 1:
            yield Observation(stream, metrics[name], 1)
    if 0 <= metrics.get("parse_rate", -1.0) <= 1:
        yield Observation("parse_failure", 1.0 - metrics["parse_rate"], 1)
    if (calls := metrics.get("tools/call_frequency", -1.0)) >= 0:
        # Calls per rollout: at least 1 - calls of the rollouts made none.
        yield Observation("no_call", max(0.0, 1.0 - calls), 1)
