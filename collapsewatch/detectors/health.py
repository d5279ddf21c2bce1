"""The initial health check: does the run start broken? A null relative to a baseline is blind to that."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, log
from statistics import median
from typing import Any, ClassVar

from ..records import Driver, Evidence, Observation, Tier
from .base import NOTHING, Detector
from .streams import BAD_OUTCOMES


class HealthCheck(Detector):
    """Speaks when the median of a bad-outcome rate over the first 5 to 10 values is at least `level`.

    A notice (tier `watch`), because a run may start broken and learn. `log_e` is the log of median over
    `level`, the bound is 0.
    """

    name: ClassVar[str] = "health"
    tier: ClassVar[Tier] = Tier.WATCH
    failure: ClassVar[str] = "broken_start"
    log_bound: ClassVar[float] = 0.0

    def __init__(self, level: float = 0.3, first: int = 5, last: int = 10) -> None:
        self.limit, self.first, self.last = level, first, last
        self.reset()

    def reset(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.begin = 0
        self.done = False

    def forget(self) -> None:
        self.done = True  # said once

    def update(self, step: int, observations: Sequence[Observation]) -> Evidence:
        self.begin = self.begin or step
        found: dict[str, float] = {}
        for o in observations if not self.done else ():
            if o.stream not in BAD_OUTCOMES or not isfinite(o.value):
                continue
            seen = self.values.setdefault(o.stream, [])
            if len(seen) <= self.last:  # one more than counts: where a stream is rare, the others wait for it
                seen.append(o.value)
            if self.first <= len(seen) <= self.last and median(seen) > 0:
                found[o.stream] = median(seen)
        if self.values and all(len(v) >= self.last for v in self.values.values()):
            self.done = True
        worst = max(found.values(), default=0.0)
        log_e = max(NOTHING, log(worst / self.limit)) if worst > 0 else NOTHING
        total = sum(found.values())
        rows = (Driver(s, v / total, v, 0.0, self.limit) for s, v in found.items())
        return Evidence(step, self.name, log_e, self.log_bound, tuple(sorted(rows, key=lambda d: -d.share)))

    def onset(self) -> int:
        return self.begin

    def state_dict(self) -> dict[str, Any]:
        return {
            "values": {k: list(v) for k, v in self.values.items()},
            "begin": self.begin,
            "done": self.done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = {k: list(v) for k, v in state["values"].items()}
        self.begin, self.done = state["begin"], state["done"]
