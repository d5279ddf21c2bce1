"""The course of a run for drawing: a bounded number of series, each thinned as it grows, its extremes kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite

from .records import StepRecord

LIMIT = 1000
"""Points kept of one series: a chart has about as many pixels."""
NAMES = 100
"""Series kept of one run: six control tokens in seven slots, the rates and the metrics are some 80."""
METRICS = frozenset(
    {"reward", "accuracy", "parse_rate", "lenient_parse_rate", "entropy", "kl", "grad_norm", "turns"}
    | {"completions/mean_length", "tools/call_frequency", "frac_reward_zero_std"}
    | {f"{probe}/{metric}" for probe in ("fixed", "alternate") for metric in ("format", "content", "turn")}
)
"""Metrics that are kept, beside the scores of an evaluation and whatever a detector reads."""
_EVALUATION = re.compile(r"(eval|val|test)[_/-]")
_SCORE = re.compile(r"reward|score|acc|pass|success", re.IGNORECASE)

Point = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """One series: at most `LIMIT` + 2 of its `count` finite values, with the first, the last and every extreme.

    `lost` counts the values that were NaN or infinite.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]
    count: int
    lost: int = 0

    def thinned(self, limit: int) -> Curve:
        """At most `limit` + 2 points of it, again with every extreme."""
        line = _Line(limit)
        for point in zip(self.steps, self.values, strict=True):
            line.add(point)
        return replace(line.curve(), count=self.count, lost=self.lost)


class Curves:
    """Series by name, out of one pass over the records of a run; memory does not grow with the run."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def take(self, record: StepRecord) -> None:
        """The charted metrics and all observations of one record."""
        for name, value in record.metrics.items():
            if name in METRICS or is_score(name):
                self._add(name, record.step, value)
        for o in record.observations:
            self._add(o.stream, record.step, o.value)

    def done(self) -> Mapping[str, Curve]:
        """What was kept; a series without a finite value is left out."""
        return {name: line.curve() for name, line in self._lines.items() if line.count}

    def _add(self, name: str, step: int, value: float) -> None:
        line = self._lines.get(name)
        if line is None:
            if len(self._lines) == NAMES:
                return
            line = self._lines[name] = _Line()
        line.add((step, value))


def is_score(metric: str) -> bool:
    """Is this metric a score of an evaluation, and no spread of one?

    >>> is_score("eval_reward"), is_score("val-core/gsm8k/acc/mean@8"), is_score("eval_reward_std"), is_score("reward")
    (True, True, False, False)
    """
    return bool(_EVALUATION.match(metric) and _SCORE.search(metric)) and "std" not in metric


class _Line:
    """Lowest and highest point of each bucket of equally many; when there are too many, every two become one."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.count, self.lost = 0, 0
        self._most = limit // 2
        self._size = 1
        self._buckets: list[tuple[Point, Point]] = []
        self._ends: list[Point] = []

    def add(self, point: Point) -> None:
        if not isfinite(point[1]):
            self.lost += 1
            return
        if self.count // self._size == len(self._buckets):
            self._buckets.append((point, point))
        else:
            self._buckets[-1] = _merged(self._buckets[-1], (point, point))
        self._ends = [*self._ends[:1], point]
        self.count += 1
        if len(self._buckets) > self._most:
            pairs = [self._buckets[i : i + 2] for i in range(0, len(self._buckets), 2)]
            self._buckets = [_merged(pair[0], pair[-1]) for pair in pairs]
            self._size *= 2

    def curve(self) -> Curve:
        kept = sorted({*self._ends, *(point for bucket in self._buckets for point in bucket)})
        return Curve(tuple(step for step, _ in kept), tuple(value for _, value in kept), self.count, self.lost)


def _merged(a: tuple[Point, Point], b: tuple[Point, Point]) -> tuple[Point, Point]:
    """The lowest and the highest point of two buckets, the earlier where they are level."""
    return a[0] if a[0][1] <= b[0][1] else b[0], a[1] if a[1][1] >= b[1][1] else b[1]
