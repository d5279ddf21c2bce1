"""The hard limit: two steps in a row far beyond what is tolerated, or half of the outcomes bad."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any, ClassVar

import numpy as np

from ..records import Evidence, Observation
from .base import NOTHING
from .bets import Bettor, Held
from .streams import BAD_OUTCOMES

_WATCHED = frozenset({"total", "outcome", "legal"})  # of tokens, slots and cells there are many: one is high by chance
_LAST, _BEFORE, _MOST = range(3)  # rows of `past`


class HardLimit(Bettor):
    """Speaks when a stream goes where no single batch takes it, however short the evidence.

    Three ways to get there. *Far*: `times` what is tolerated, on two steps in a row, or three where fewer than
    `min_groups` prompts were asked. *Rising*: beyond what is tolerated, then `faster` times as much again, and the
    geometric mean of both is `times` what is tolerated. *Most*: a bad outcome at `level` and at `ratio` times normal,
    on two steps in a row, or at `alone` on one. Less than `least` is neither far nor rising.

    `log_e` is the log of how many times a limit is reached that is, and the bound 0. It stands outside the
    false-alarm budget; what it costs and what it finds is measured in docs/detection.md.
    """

    name: ClassVar[str] = "hard_limit"
    log_bound: ClassVar[float] = 0.0

    def __init__(
        self,
        times: float = 2.25,
        faster: float = 1.5,
        least: float = 0.05,
        level: float = 0.5,
        alone: float = 0.9,
        ratio: float = 2.0,
        min_groups: int = 6,
    ) -> None:
        super().__init__()
        self.far, self.faster = log(times), log(faster)
        self.least, self.level, self.alone, self.ratio, self.min_groups = least, level, alone, ratio, min_groups
        self._clear()

    def _clear(self) -> None:
        self.own = np.zeros(0, dtype=np.intp)  # (W,) the streams that are watched
        self.outcome = np.zeros(0, dtype=bool)  # (W,)
        # (3, W) log excess: over the tolerance, a step ago and two; over `level`, a step ago
        self.past = np.zeros((3, 0))
        self.since = np.zeros(0, dtype=np.int64)  # (W,) since when what is tolerated has been exceeded; 0: it is not
        self._onset, self._mover, self._streams = 0, "", 0

    def reset(self) -> None:
        super().reset()
        self._clear()

    def forget(self) -> None:
        super().forget()
        self.past[:] = NOTHING

    def update(self, step: int, observations: Sequence[Observation]) -> Evidence:
        self.bets.take(self.number, step, observations)
        self._fit()
        if self._calm() and not self.bets.exceeds(self.row, self.own, self.level):
            return Evidence(step, self.name, NOTHING, self.log_bound, self.bets.evidence(self.row)[1])
        now = self.bets.reading(self.row, self.own)
        limit = np.maximum(self.level, self.ratio * now.usual)
        beyond, most = self._excess(now, limit)
        last, before = self.past[_LAST], self.past[_BEFORE]
        enough = now.groups >= self.min_groups
        far = np.minimum(np.minimum(beyond, last), np.where(enough, beyond, before)) - self.far
        rising = enough & (last >= 0) & (beyond - last >= self.faster)
        steep = np.where(rising, (beyond + last) / 2 - self.far, NOTHING)
        certain = enough & (now.level >= self.alone)
        held = np.maximum(np.maximum(far, steep), np.where(certain, most, np.minimum(most, self.past[_MOST])))
        held = np.where(now.seen, np.maximum(held, NOTHING), NOTHING)
        over = now.known & (now.level > now.tolerance) | (most >= 0)
        self.since = np.where(now.seen, np.where(over, np.where(self.since, self.since, step), 0), self.since)
        self.past = np.where(now.seen, np.stack([beyond, last, most]), self.past)
        self._mover, rows = "", self.bets.evidence(self.row)[1]
        speaks = held >= 0
        if speaks.any():
            self._onset = int(self.since[speaks].min())
            among, rows = self.bets.beyond(self.row, self.own[speaks])
            self._mover = self.bets.first_mover(self.row, among)
        return Evidence(step, self.name, float(held.max(initial=NOTHING)), self.log_bound, rows)

    def _calm(self) -> bool:
        """Was no stream beyond anything on the last steps that count?"""
        return not self.since.any() and float(self.past.max(initial=NOTHING)) == NOTHING

    def _excess(self, now: Held, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The logs of how many times tolerance and `limit` are reached, (W,) each; `NOTHING` where they are not."""
        beyond = np.log((now.level + now.floor) / (now.tolerance + now.floor))
        most = np.log(np.maximum(now.level, 1e-6) / limit)
        # A rate that starts high is the health check's business: without a baseline nothing is a jump.
        beyond = np.where(now.known & (beyond >= 0) & (now.level >= self.least), beyond, NOTHING)
        return beyond, np.where(now.known & (most >= 0) & self.outcome, most, NOTHING)

    def onset(self) -> int:
        return self._onset

    def first_mover(self) -> str:
        return self._mover

    def _fit(self) -> None:
        """Watch the streams that have joined."""
        specs = self.bets.table.specs
        if len(specs) == self._streams:
            return
        new = [i for i in range(self._streams, len(specs)) if specs[i].weight_group in _WATCHED]
        self.own = np.concatenate([self.own, np.array(new, dtype=np.intp)])
        self.outcome = np.array([specs[i].name in BAD_OUTCOMES for i in self.own.tolist()], dtype=bool)
        self.past = np.concatenate([self.past, np.full((3, len(new)), NOTHING)], axis=1)
        self.since = np.concatenate([self.since, np.zeros(len(new), dtype=np.int64)])
        self._streams = len(specs)

    def state_dict(self) -> dict[str, Any]:
        self._fit()  # others may have seen streams that this one was not asked about
        own = {"past": self.past.tolist(), "over": self.since.tolist(), "onset": self._onset, "mover": self._mover}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._clear()
        self._fit()
        self.past = np.array(state["past"], dtype=np.float64).reshape(self.past.shape)
        self.since = np.array(state["over"], dtype=np.int64)
        self._onset, self._mover = state["onset"], state["mover"]
