"""Losses that only the scalars of a run tell, looked for while it goes on, with the rules of `analyze`."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from .course import Finding, judge, watched
from .levels import Series
from .records import NOT_FINITE, VITAL

EVERY = 5  # steps between two looks at least
SHARE = 40  # of the run so far: looks at a long run take long, and are farther apart
FIRST = 10  # steps before the first one


class Losses:
    """What the scalars of a run tell so far; each kind of loss is told once, and again if it gets worse.

    A notice and no alarm: it promises no bound. On simulated runs it said nothing in 23,000 healthy steps and
    found 25 of 25 losses of content, 29 to 55 steps after their onset (docs/measurements.md).
    """

    def __init__(self) -> None:
        self.told: dict[str, Series] = {}
        self.steps, self._next = 0, FIRST
        self._said: set[tuple[str, str]] = set()

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a step, in as many parts as they come."""
        for name, value in metrics.items():
            if watched(name) and isfinite(value):
                self._add(name, step, value)
        if not all(isfinite(metrics.get(name, 0.0)) for name in VITAL):
            self._add(NOT_FINITE, step, 1.0)

    def update(self, step: int) -> Finding | None:
        """A step is over: what is newly lost, if it is time to look."""
        self.steps += 1
        if self.steps < self._next:
            return None
        self._next = self.steps + max(EVERY, self.steps // SHARE)
        found = judge(self.told)
        if found is None or (found.kind, str(found.verdict)) in self._said:
            return None
        self._said.add((found.kind, str(found.verdict)))
        return found

    def _add(self, name: str, step: int, value: float) -> None:
        series = self.told.setdefault(name, Series())
        if not series.steps or series.steps[-1] < step:  # of a step told twice the first: order makes the series
            series.add(step, value)
