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
from typing import ClassVar, Self

from ..records import Evidence, Observation, Tier
from .base import NOTHING
from .bets import Bettor
from .streams import StreamSpec, ToleranceNull

MOVED = 20.0  # evidence that makes a stream count as moved when the first mover is sought


class BettingEDetector(Bettor):
    """Mixture betting e-detector over all streams; alarms at `log(10_000 / fa_per_10k)`.

    >>> BettingEDetector(fa_per_10k=50).log_bound == log(200)
    True
    """

    name: ClassVar[str] = "e_detector"

    def __init__(self, fa_per_10k: float = 50.0) -> None:
        if not 0 < fa_per_10k <= 10_000:
            raise ValueError(f"fa_per_10k: got {fa_per_10k}, expected more than 0 and at most 10000")
        super().__init__()
        self.log_bound = log(10_000.0 / fa_per_10k)

    @classmethod
    def from_budget(cls, fa_per_10k: float) -> Self:
        return cls(fa_per_10k)

    def update(self, step: int, observations: Sequence[Observation]) -> Evidence:
        self.bets.take(self.number, step, observations)
        total, rows = self.bets.evidence(self.row)
        log_e = max(NOTHING, log(total)) if total > 0 else NOTHING
        return Evidence(step, self.name, log_e, self.log_bound, rows)

    def onset(self) -> int:
        return self.bets.onset(self.row)

    def first_mover(self) -> str:
        return self.bets.first_mover(self.row, self.bets.wealth[self.row] > MOVED)


class WatchEDetector(BettingEDetector):
    """The same machine with tighter tolerances, for free actions only: healthy runs do break its null."""

    name: ClassVar[str] = "watch"
    tier: ClassVar[Tier] = Tier.WATCH

    @staticmethod
    def null(spec: StreamSpec) -> ToleranceNull:
        return spec.watch
