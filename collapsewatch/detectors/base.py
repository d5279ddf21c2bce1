"""What every detector does: read one step, say what it holds, keep its state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np

from ..records import Driver, Evidence, Observation, Tier

NOTHING = -20.0
"""The log evidence reported when there is none: finite, because it is stored and printed as JSON."""

MAX_DRIVERS = 64
"""Streams listed in one evidence row; beyond it the tail has no share worth a row."""


class Detector(ABC):
    """Watches streams; it speaks when `log_e >= log_bound`."""

    name: ClassVar[str]
    tier: ClassVar[Tier] = Tier.ALARM
    failure: ClassVar[str] = ""  # names the failure whatever the drivers are; '' means: the drivers name it

    @classmethod
    def from_budget(cls, fa_per_10k: float) -> Self:
        """Build with a false-alarm budget per 10,000 steps; a detector without such a promise ignores it."""
        return cls()

    @abstractmethod
    def update(self, step: int, observations: Sequence[Observation]) -> Evidence:
        """Read one step: missing streams keep their evidence, new ones join; NaN is counted and skipped."""

    @abstractmethod
    def onset(self) -> int:
        """The step at which what the detector sees now began, estimated."""

    @abstractmethod
    def forget(self) -> None:
        """Drop the evidence, keep the baseline: the alarm is over."""

    @abstractmethod
    def reset(self) -> None:
        """Back to the first step: evidence and baseline."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue bit for bit where `state_dict` was taken."""

    def mark_event(self, step: int, name: str) -> None:  # noqa: B027 - most need no more than ignoring it
        """An announced change (curriculum, temperature, learning rate): what follows has a new normal."""

    def first_mover(self) -> str:
        """The stream whose part in the evidence began first; '' when the detector cannot tell."""
        return ""


def drivers(
    names: list[str], share: np.ndarray, level: np.ndarray, baseline: np.ndarray, tolerance: np.ndarray
) -> tuple[Driver, ...]:
    """Drivers by falling share, from (S,) columns."""
    order = np.argsort(-share, kind="stable")[:MAX_DRIVERS].tolist()
    s, y, b, m = share.tolist(), level.tolist(), baseline.tolist(), tolerance.tolist()
    return tuple(Driver(names[i], s[i], y[i], b[i], m[i]) for i in order)
