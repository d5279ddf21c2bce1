"""The hard limit: a third to a half of the outcomes are bad, and twice as many as normal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..records import Evidence, Observation
from .base import NOTHING, Detector, Drivers
from .baseline import SelfStartingBaseline, indices
from .streams import BAD_OUTCOMES, StreamTable


class HardLimit(Detector):
    """Speaks on two steps in a row with `level` or more, or `many` where `min_groups` prompts or more were asked.

    With so many prompts one step of `alone` or more is enough. `log_e` is the log of how many times the limit
    `max(level, ratio x baseline)` is reached; the bound is 0. It stands outside the false-alarm bound. On 40,000
    simulated healthy steps these levels made no false alarm, one step at 0.5 eight (docs/measurements.md).
    """

    name: ClassVar[str] = "hard_limit"
    log_bound: ClassVar[float] = 0.0

    def __init__(
        self, level: float = 0.5, many: float = 0.35, alone: float = 0.75, ratio: float = 2.0, min_groups: int = 8
    ) -> None:
        self.few, self.many, self.alone = level, many, alone
        self.ratio, self.min_groups = ratio, min_groups
        self.reset()

    def reset(self) -> None:
        self.table = StreamTable(only=BAD_OUTCOMES)
        self.baseline = SelfStartingBaseline()
        self.level = np.zeros(0)  # (S,) last value
        self.before = np.zeros(0)  # (S,) log excess one step before
        self.since = np.zeros(0, dtype=np.int64)  # (S,) first step of the present streak over the limit
        self._onset = 0

    def forget(self) -> None:
        self.before[:] = NOTHING

    def mark_event(self, step: int, name: str) -> None:
        self.baseline.restart(0)

    def update(self, step: int, observations: Sequence[Observation]) -> Evidence:
        at, y, places = self.table.read(observations)
        n = np.array([observations[i].n for i in places.tolist()], dtype=np.int64)
        self._fit()
        # A rate that starts high is the health check's business: without a baseline nothing is a jump.
        known = self.baseline.usable()[0, at]
        enough = n >= self.min_groups
        limit = np.full(self.level.size, self.few)
        limit[at] = np.where(enough, self.many, self.few)
        limit = np.maximum(limit, self.ratio * self.baseline.values()[0])
        excess = np.log(np.maximum(y, 1e-6) / limit[at])
        over = known & (excess >= 0)
        certain = enough & (y >= self.alone)
        held = np.where(certain, excess, np.minimum(excess, self.before[at]))
        held = np.maximum(np.where(known, held, NOTHING), NOTHING)
        self.since[at] = np.where(self.before[at] >= 0, self.since[at], step)
        self.before[at] = np.where(known, excess, NOTHING)
        self.level[at] = y
        self.baseline.update(at, y, over[None])
        speaks = indices(at, self.level.size)[held >= 0]
        share = np.zeros(self.level.size)
        if speaks.size:
            self._onset = int(self.since[speaks].min())
            share[speaks] = self.level[speaks] / self.level[speaks].sum()
        rows = Drivers(self.table.names, share, self.level.copy(), self.baseline.values()[0], limit)
        return Evidence(step, self.name, float(held.max(initial=NOTHING)), self.log_bound, rows)

    def onset(self) -> int:
        return self._onset

    def first_mover(self) -> str:
        running = np.flatnonzero(self.before >= 0)
        return self.table.specs[int(running[np.argmin(self.since[running])])].name if running.size else ""

    def _fit(self) -> None:
        new = len(self.table.specs) - self.level.size
        if new:
            self.baseline.grow(self.table.floors[-new:])
            self.level = np.concatenate([self.level, np.zeros(new)])
            self.before = np.concatenate([self.before, np.full(new, NOTHING)])
            self.since = np.concatenate([self.since, np.zeros(new, dtype=np.int64)])

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.table.state_dict(),
            "baseline": self.baseline.state_dict(0),
            "level": self.level.tolist(),
            "before": self.before.tolist(),
            "since": self.since.tolist(),
            "onset": self._onset,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self.table.load_state_dict(state)
        self._fit()
        self.baseline.load_state_dict(0, state["baseline"])
        self.level = np.array(state["level"], dtype=np.float64)
        self.before = np.array(state["before"], dtype=np.float64)
        self.since = np.array(state["since"], dtype=np.int64)
        self._onset = state["onset"]
