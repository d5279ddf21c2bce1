"""A betting e-detector: is any structural failure rate beyond its tolerance?

Each stream's null is "the mean, given the past, is at most `m_t`". A bet of fraction `lam` against it
multiplies wealth by `L = 1 + lam (y - m) / m`, whose conditional mean is at most one; the Shiryaev-Roberts
form `M <- (M + 1) L` restarts the bet at every step. The weighted sum `E` over streams and fractions less the
number of steps is a supermartingale whatever the dependence, so the mean time to a false alarm at `E >= A` is
at least `A`. Source: Shin, Ramdas and Rinaldo, E-detectors; measured in docs/measurements.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any, ClassVar, Self

import numpy as np

from ..records import Evidence, Observation, Tier
from .base import NOTHING, Detector, Drivers
from .baseline import Index, SelfStartingBaseline, indices
from .streams import StreamSpec, StreamTable, ToleranceNull

FRACTIONS = np.array([[0.1], [0.3], [0.6], [0.9]])  # (L, 1); measured: one fraction alone costs 0.23 early recall
GATE = 150.0  # a stream holding this much evidence, and rising, stops teaching its baseline
MOVED = 20.0  # evidence that makes a stream count as moved when the first mover is sought
RICHEST = 1e250  # a bet wins no more: wealth needs no logarithms, and what it may claim only shrinks
LOWEST, HIGHEST = 1e-4, 0.995  # tolerances: below, one batch could alarm; above, nothing could


class BettingEDetector(Detector):
    """Mixture betting e-detector over all streams; alarms at `log(10_000 / fa_per_10k)`.

    >>> BettingEDetector(fa_per_10k=50).log_bound == log(200)
    True
    """

    name: ClassVar[str] = "e_detector"

    def __init__(self, fa_per_10k: float = 50.0) -> None:
        if not 0 < fa_per_10k <= 10_000:
            raise ValueError(f"fa_per_10k: got {fa_per_10k}, expected more than 0 and at most 10000")
        self.log_bound = log(10_000.0 / fa_per_10k)
        self.reset()

    @classmethod
    def from_budget(cls, fa_per_10k: float) -> Self:
        return cls(fa_per_10k)

    @staticmethod
    def null(spec: StreamSpec) -> ToleranceNull:
        """The tolerance this detector grants a stream."""
        return spec.null

    def reset(self) -> None:
        self.table = StreamTable()
        self.baseline = SelfStartingBaseline()
        self.bets = np.zeros((FRACTIONS.size, 0))  # (L, S) wealth of each fraction
        self.since = np.zeros((FRACTIONS.size, 0))  # (L, S) posterior mean of the step at which the bet restarted
        self.wealth = np.zeros(0)  # (S,) mean over fractions
        self.level = np.zeros(0)  # (S,) last value
        self._fit()

    def forget(self) -> None:
        self.bets[:] = 0.0
        self.wealth[:] = 0.0

    def mark_event(self, step: int, name: str) -> None:
        self.baseline.restart()

    def update(self, step: int, observations: Sequence[Observation]) -> Evidence:
        at, y, _ = self.table.read(observations)
        if len(self.table.specs) > self.level.size:
            self._fit()
        usual = self.baseline.values()
        tolerance = self._tolerance(usual)  # fixed before y is looked at
        self.level[at] = y
        before = self.wealth[at].copy()
        known = self.baseline.usable()[at]
        if np.count_nonzero(known) == known.size:
            self._bet(step, at, y / tolerance[at] - 1.0)
        else:
            i = indices(at, self.level.size)[known]
            self._bet(step, i, y[known] / tolerance[i] - 1.0)
        after = self.wealth[at]
        self.baseline.update(at, y, (after > GATE) & (after > before))
        return self._evidence(step, tolerance)

    def onset(self) -> int:
        part = self._weight * self.bets  # (L, S)
        total = part.sum()
        return round(float((part * self.since).sum() / total)) if total > 0 else 0

    def first_mover(self) -> str:
        moved = np.flatnonzero(self.wealth > MOVED)
        if not moved.size:
            return ""
        bets = self.bets[:, moved]
        since = (bets * self.since[:, moved]).sum(axis=0) / bets.sum(axis=0)
        return self.table.names[int(moved[np.argmin(since)])]

    def _fit(self) -> None:
        """Make the columns as long as the table, and refresh what hangs on the set of streams."""
        specs = self.table.specs
        old, new = self.level.size, len(specs) - self.level.size
        none = np.zeros((FRACTIONS.size, new))
        self.bets = np.concatenate([self.bets, none], axis=1)
        self.since = np.concatenate([self.since, none], axis=1)
        self.wealth = np.concatenate([self.wealth, none[0]])
        self.level = np.concatenate([self.level, none[0]])
        self.baseline.grow(self.table.floors[old:])
        self._weight = self.table.weights()
        self._abs = np.array([self.null(s).abs for s in specs])
        self._ratio = np.array([self.null(s).ratio for s in specs])

    def _tolerance(self, usual: np.ndarray) -> np.ndarray:
        wanted = np.maximum(self._abs, self._ratio * usual)
        return np.asarray(np.minimum(np.maximum(wanted, LOWEST), HIGHEST))

    def _bet(self, step: int, i: Index, excess: np.ndarray) -> None:
        """Bet on the streams `i`, whose values are `1 + excess` (P,) times what is tolerated."""
        bets = self.bets[:, i]  # (L, P)
        restarted = bets + 1.0
        since = self.since[:, i]
        # M / (M + 1) is the weight of the bets that went on.
        self.since[:, i] = step + bets / restarted * (since - step)
        bets = np.minimum(restarted * (1.0 + FRACTIONS * excess), RICHEST)
        self.bets[:, i] = bets
        self.wealth[i] = np.add.reduce(bets) / FRACTIONS.size

    def _evidence(self, step: int, tolerance: np.ndarray) -> Evidence:
        part = self._weight * self.wealth
        total = float(part.sum())
        log_e = max(NOTHING, log(total)) if total > 0 else NOTHING
        share = part / total if total > 0 else part
        rows = Drivers(self.table.names, share, self.level.copy(), self.baseline.values(), tolerance)
        return Evidence(step, self.name, log_e, self.log_bound, rows)

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.table.state_dict(),
            "baseline": self.baseline.state_dict(),
            "bets": self.bets.tolist(),
            "since": self.since.tolist(),
            "wealth": self.wealth.tolist(),
            "level": self.level.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self.table.load_state_dict(state)
        self._fit()
        self.baseline.load_state_dict(state["baseline"])
        for name in ("bets", "since", "wealth", "level"):
            own = getattr(self, name)
            setattr(self, name, np.array(state[name], dtype=np.float64).reshape(own.shape))


class WatchEDetector(BettingEDetector):
    """The same machine with tighter tolerances, for free actions only: healthy runs do break its null."""

    name: ClassVar[str] = "watch"
    tier: ClassVar[Tier] = Tier.WATCH

    @staticmethod
    def null(spec: StreamSpec) -> ToleranceNull:
        return spec.watch
