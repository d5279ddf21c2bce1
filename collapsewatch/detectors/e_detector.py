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
from .base import NOTHING, Detector, drivers
from .baseline import SelfStartingBaseline
from .streams import StreamSpec, StreamTable, ToleranceNull

FRACTIONS = np.array([0.1, 0.3, 0.6, 0.9])  # measured: one fraction alone costs 0.23 early recall
GATE = log(150.0)  # a stream holding this much evidence, and rising, stops teaching its baseline
MOVED = log(20.0)  # evidence that makes a stream count as moved when the first mover is sought
_NO_WEALTH = -1e9  # log of nothing, finite so that the state stays plain JSON
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
        self.log_m = np.zeros((0, FRACTIONS.size))  # (S, L) log wealth
        self.since = np.zeros((0, FRACTIONS.size))  # (S, L) posterior mean of the step at which the bet restarted
        self.level = np.zeros(0)  # (S,) last value
        self._fit()

    def forget(self) -> None:
        self.log_m[:] = _NO_WEALTH

    def mark_event(self, step: int, name: str) -> None:
        self.baseline.restart()

    def update(self, step: int, observations: Sequence[Observation]) -> Evidence:
        at, y, _ = self.table.read(observations)
        if len(self.table.specs) > self.level.size:
            self._fit()
        tolerance = self._tolerance()  # fixed before y is looked at
        before = self._stream_wealth(at)
        self.level[at] = y
        bets = self.baseline.usable()[at]
        i, m = at[bets], tolerance[at[bets], None]  # (B,), (B, 1)
        restarted = np.logaddexp(self.log_m[i], 0.0)  # (B, L) log(M + 1)
        stay = np.exp(self.log_m[i] - restarted)  # M / (M + 1): weight of the bets that went on
        self.since[i] = stay * self.since[i] + (1.0 - stay) * step
        self.log_m[i] = restarted + np.log1p(FRACTIONS * (y[bets, None] - m) / m)
        wealth = self._stream_wealth(at)
        self.baseline.update(at, y, (wealth > GATE) & (wealth > before))
        return self._evidence(step, tolerance)

    def onset(self) -> int:
        part = self._parts()
        total = part.sum()
        return round(float((part * self.since).sum() / total)) if total > 0 else 0

    def first_mover(self) -> str:
        wealth = self._stream_wealth(np.arange(self.level.size))
        part = self._parts()
        total = part.sum(axis=1)
        moved = np.flatnonzero((wealth > MOVED) & (total > 0))
        if not moved.size:
            return ""
        since = (part[moved] * self.since[moved]).sum(axis=1) / total[moved]
        return self.table.specs[int(moved[np.argmin(since)])].name

    def _fit(self) -> None:
        """Make the columns as long as the table, and refresh what hangs on the set of streams."""
        specs = self.table.specs
        old, new = self.level.size, len(specs) - self.level.size
        self.log_m = np.concatenate([self.log_m, np.full((new, FRACTIONS.size), _NO_WEALTH)])
        self.since = np.concatenate([self.since, np.zeros((new, FRACTIONS.size))])
        self.level = np.concatenate([self.level, np.zeros(new)])
        self.baseline.grow(self.table.floors[old:])
        self._log_w = np.log(self.table.weights() / FRACTIONS.size)[:, None]  # (S, 1)
        self._abs = np.array([self.null(s).abs for s in specs])
        self._ratio = np.array([self.null(s).ratio for s in specs])

    def _tolerance(self) -> np.ndarray:
        wanted = np.maximum(self._abs, self._ratio * self.baseline.values())
        return np.asarray(np.clip(wanted, LOWEST, HIGHEST))

    def _stream_wealth(self, at: np.ndarray) -> np.ndarray:
        """Log of the mean wealth over fractions, (P,)."""
        m = self.log_m[at]
        top = m.max(axis=1) if at.size else np.zeros(0)
        return np.asarray(top + np.log(np.exp(m - top[:, None]).mean(axis=1)))

    def _parts(self) -> np.ndarray:
        """Each bet's part of the evidence relative to the largest, (S, L); all zero when nothing was bet."""
        terms = self._log_w + self.log_m
        if not terms.size or terms.max() < _NO_WEALTH / 2:
            return np.zeros_like(terms)
        return np.asarray(np.exp(terms - terms.max()))

    def _evidence(self, step: int, tolerance: np.ndarray) -> Evidence:
        part = self._parts()
        total = part.sum()
        log_e, share = NOTHING, part.sum(axis=1)
        if total > 0:
            log_e = max(NOTHING, float((self._log_w + self.log_m).max() + np.log(total)))
            share = share / total
        rows = drivers(self.table.names, share, self.level, self.baseline.values(), tolerance)
        return Evidence(step, self.name, log_e, self.log_bound, rows)

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.table.state_dict(),
            "baseline": self.baseline.state_dict(),
            "log_m": self.log_m.tolist(),
            "since": self.since.tolist(),
            "level": self.level.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self.table.load_state_dict(state)
        self._fit()
        self.baseline.load_state_dict(state["baseline"])
        self.log_m = np.array(state["log_m"], dtype=np.float64).reshape(self.log_m.shape)
        self.since = np.array(state["since"], dtype=np.float64).reshape(self.since.shape)
        self.level = np.array(state["level"], dtype=np.float64)


class WatchEDetector(BettingEDetector):
    """The same machine with tighter tolerances, for free actions only: healthy runs do break its null."""

    name: ClassVar[str] = "watch"
    tier: ClassVar[Tier] = Tier.WATCH

    @staticmethod
    def null(spec: StreamSpec) -> ToleranceNull:
        return spec.watch
