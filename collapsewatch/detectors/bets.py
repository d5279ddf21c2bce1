"""Bets against several sets of tolerances over the same streams: one pass for all detectors that bet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..records import Observation
from .base import Detector, Drivers
from .baseline import Index, SelfStartingBaseline
from .streams import Observed, StreamSpec, StreamTable, ToleranceNull

FRACTIONS = np.array([[0.1], [0.3], [0.6], [0.9]])  # (L, 1); measured: one fraction alone costs 0.23 early recall
GATE = 150.0  # a stream holding this much evidence, and rising, stops teaching its baseline
RICHEST = 1e250  # a bet wins no more: wealth needs no logarithms, and what it may claim only shrinks
LOWEST, HIGHEST = 1e-4, 0.995  # tolerances: below, one batch could alarm; above, nothing could

Null = Callable[[StreamSpec], ToleranceNull]
"""The tolerance that a detector grants a stream."""


class Held(NamedTuple):
    """A step beside what was usual and tolerated before it, of some streams (S)."""

    seen: np.ndarray  # (S,) bool: observed on this step
    known: np.ndarray  # (S,) bool: has a baseline
    groups: np.ndarray  # (S,) prompt groups behind the value; 0 where it was not observed
    level: np.ndarray  # (S,) last value
    usual: np.ndarray  # (S,) baseline
    tolerance: np.ndarray  # (S,)
    floor: np.ndarray  # (S,) below it a difference means nothing


class Bets:
    """The wealth of bets on streams (S) in fractions (L), for one null in each row (R).

    Rows share what was observed and nothing else: each has a baseline of its own. Each of the detectors that
    look in names its null; those of one null look at one row. A step that one of them has taken is there for the
    others, if they are given the same observations.
    """

    def __init__(self, wanted: Sequence[Null]) -> None:
        self.nulls = list(dict.fromkeys(wanted))
        self.row = [self.nulls.index(null) for null in wanted]  # by detector
        self.clear()

    def clear(self) -> None:
        """Back to the first step, all rows."""
        rows = len(self.nulls)
        self.table = StreamTable()
        self.baseline = SelfStartingBaseline(rows)
        self.held = np.zeros((rows, FRACTIONS.size, 0))  # (R, L, S) wealth of each fraction
        self.since = np.zeros((rows, FRACTIONS.size, 0))  # (R, L, S) posterior mean of when the bet restarted
        self.wealth = np.zeros((rows, 0))  # (R, S) mean over fractions
        self.level = np.zeros(0)  # (S,) last value
        self._taken: Sequence[Observation] | None = None
        self._waiting: set[int] = set()
        self._fit()

    def forget(self, row: int) -> None:
        """Drop a row's wealth."""
        self.held[row] = 0.0
        self.wealth[row] = 0.0

    def reset(self, row: int) -> None:
        """Drop all that a row knows."""
        if len(self.nulls) == 1:
            self.clear()
            return
        self.forget(row)
        self.since[row] = 0.0
        self.baseline.reset(row)

    def take(self, detector: int, step: int, observations: Sequence[Observation]) -> None:
        """Bet on a step, unless that was done for another of the detectors."""
        if observations is not self._taken or detector not in self._waiting:
            self._update(step, observations)
            self._taken, self._waiting = observations, set(range(len(self.row)))
        self._waiting.discard(detector)

    def evidence(self, row: int) -> tuple[float, Drivers]:
        """A row's evidence after the last step, and what it rests on."""
        columns = (self._share[row], self._level, self._usual[row], self._tolerance[row])
        return float(self._total[row]), Drivers(self.table.names, *columns)

    def exceeds(self, row: int, own: np.ndarray, level: float) -> bool:
        """Does any of the streams `own` lie beyond what is tolerated, or at `level`?"""
        now = self._level[own]
        return bool((now >= np.minimum(self._tolerance[row, own], level)).any())

    def reading(self, row: int, own: np.ndarray) -> Held:
        """What the last step said of the streams `own`."""
        at, places = self._at, self._places
        seen = np.zeros(self.level.size, dtype=bool)
        seen[at] = True
        groups = np.zeros(self.level.size, dtype=np.int64)
        groups[at] = self._observed.groups[places]
        return Held(
            seen[own],
            self._known[row, own],
            groups[own],
            self._level[own],
            self._before[row, own],
            self._tolerance[row, own],
            self.baseline.floor[row, own],
        )

    def _update(self, step: int, observations: Sequence[Observation]) -> None:
        self._observed = Observed.of(observations)
        at, y, places = self.table.read(self._observed)
        if len(self.table.specs) > self.level.size:
            self._fit()
        usual = self.baseline.values()
        wanted = np.maximum(self._abs, self._ratio * usual)
        tolerance = np.minimum(np.maximum(wanted, LOWEST), HIGHEST)  # (R, S), fixed before y is looked at
        self._level = self.level.copy()
        self._level[at] = y
        self.level = self._level
        self._at, self._places, self._before, self._known = at, places, usual, self.baseline.usable()
        known = self._known[:, at]
        before = self.wealth[:, at].copy()
        self._bet(step, at, y / tolerance[:, at] - 1.0, None if np.count_nonzero(known) == known.size else known)
        after = self.wealth[:, at]
        self.baseline.update(at, y, (after > GATE) & (after > before))
        part = self._weight * self.wealth  # (R, S)
        self._total = part.sum(axis=1)
        self._share = part / np.where(self._total > 0, self._total, 1.0)[:, None]
        self._usual, self._tolerance = self.baseline.values(), tolerance

    def _bet(self, step: int, i: Index, excess: np.ndarray, known: np.ndarray | None) -> None:
        """Bet on the streams `i`, whose values are `1 + excess` (R, P) times what is tolerated, where that is known."""
        held, since = self.held[:, :, i], self.since[:, :, i]  # (R, L, P), views where `i` is a slice
        richer = held + 1.0
        part = held / richer  # M / (M + 1): the weight of the bets that went on
        if known is not None:
            part, richer = np.where(known[:, None], part, 1.0), np.where(known[:, None], richer, held)
            excess = np.where(known, excess, 0.0)
        # In place from here on: with thousands of streams new arrays cost more than what is done to them.
        since -= step
        since *= part
        since += step
        np.multiply(FRACTIONS, excess[:, None], out=part)
        part += 1.0
        np.multiply(richer, part, out=held)
        np.minimum(held, RICHEST, out=held)
        if not isinstance(i, slice):
            self.held[:, :, i], self.since[:, :, i] = held, since
        self.wealth[:, i] = np.add.reduce(held, axis=1) / FRACTIONS.size

    def _fit(self) -> None:
        """Make the columns as long as the table, and refresh what hangs on the set of streams."""
        specs, rows = self.table.specs, len(self.nulls)
        old, new = self.level.size, len(specs) - self.level.size
        none = np.zeros((rows, FRACTIONS.size, new))
        self.held = np.concatenate([self.held, none], axis=2)
        self.since = np.concatenate([self.since, none], axis=2)
        self.wealth = np.concatenate([self.wealth, none[:, 0]], axis=1)
        self.level = np.concatenate([self.level, np.zeros(new)])
        self.baseline.grow(self.table.floors[old:])
        self._weight = self.table.weights()
        self._abs = np.array([[null(s).abs for s in specs] for null in self.nulls])
        self._ratio = np.array([[null(s).ratio for s in specs] for null in self.nulls])

    def beyond(self, row: int, also: np.ndarray) -> tuple[np.ndarray, Drivers]:
        """The streams that lie beyond their tolerance, and those `also` (indices): (S,) bool, and what they hold."""
        among = self._level > self._tolerance[row]
        among[also] = True
        part = np.where(among, self._weight * self.wealth[row], 0.0)
        share = part / (part.sum() or 1.0)
        return among, Drivers(self.table.names, share, self._level, self._before[row], self._tolerance[row])

    def onset(self, row: int) -> int:
        """When what a row holds began, estimated; 0 when it holds nothing."""
        part = self._weight * self.held[row]  # (L, S)
        total = part.sum()
        return round(float((part * self.since[row]).sum() / total)) if total > 0 else 0

    def first_mover(self, row: int, among: np.ndarray) -> str:
        """Of the streams `among` (S,) bool, the one whose bets began first; '' where none holds any."""
        moved = np.flatnonzero(among & (self.wealth[row] > 0))
        if not moved.size:
            return ""
        held = self.held[row][:, moved]
        since = (held * self.since[row][:, moved]).sum(axis=0) / held.sum(axis=0)
        return self.table.names[int(moved[np.argmin(since)])]

    def state_dict(self, row: int) -> dict[str, Any]:
        """A row and the table, as plain JSON-able values."""
        columns = {"held": self.held, "since": self.since, "wealth": self.wealth}
        own = {name: column[row].tolist() for name, column in columns.items()}
        return self.table.state_dict() | {"baseline": self.baseline.state_dict(row), "level": self.level.tolist()} | own

    def load_state_dict(self, row: int, state: dict[str, Any]) -> None:
        """Continue a row; rows of other streams begin anew."""
        if self.table.names != state["streams"]:
            self.clear()
            self.table.load_state_dict(state)
            self._fit()
        self.table.ignored = state["ignored"]
        self.baseline.load_state_dict(row, state["baseline"])
        for name in ("held", "since", "wealth"):
            getattr(self, name)[row] = np.array(state[name], dtype=np.float64).reshape(getattr(self, name)[row].shape)
        self.level = np.array(state["level"], dtype=np.float64)
        self._taken, self._waiting = None, set()


class Bettor(Detector):
    """A detector that looks at bets; several of one run share them, so that a step is read once.

    Alone or together they hold the same: whatever one of them does to a row, the others of that row do, too.
    """

    def __init__(self) -> None:
        self.bets, self.number = Bets([self.null]), 0

    @staticmethod
    def null(spec: StreamSpec) -> ToleranceNull:
        """The tolerance this detector grants a stream."""
        return spec.null

    @property
    def row(self) -> int:
        return self.bets.row[self.number]

    def share(self, bets: Bets, number: int) -> None:
        """Look at bets that others look at: this is detector `number` of them."""
        self.bets, self.number = bets, number

    def reset(self) -> None:
        self.bets.reset(self.row)

    def forget(self) -> None:
        self.bets.forget(self.row)

    def mark_event(self, step: int, name: str) -> None:
        self.bets.baseline.restart(self.row)

    def state_dict(self) -> dict[str, Any]:
        return self.bets.state_dict(self.row)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bets.load_state_dict(self.row, state)
