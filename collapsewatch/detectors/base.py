"""What every detector does: read one step, say what it holds, keep its state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self, overload

import numpy as np

from ..records import Driver, Evidence, Observation, Tier

NOTHING = -20.0
"""The log evidence reported when there is none: finite, because it is stored and printed as JSON."""

MAX_DRIVERS = 20
"""Streams listed in one evidence row: as many as can each hold a twentieth, which makes a culprit."""


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


class Drivers(Sequence[Driver]):
    """Drivers by falling share, made from (S,) columns when somebody looks: most steps nobody does."""

    def __init__(
        self, names: Sequence[str], share: np.ndarray, level: np.ndarray, baseline: np.ndarray, tolerance: np.ndarray
    ) -> None:
        self._columns = names, share, level, baseline, tolerance

    @cached_property
    def _listed(self) -> tuple[Driver, ...]:
        return tuple(map(self._driver, np.argsort(-self._columns[1], kind="stable")[:MAX_DRIVERS].tolist()))

    def _driver(self, i: int) -> Driver:
        names, *columns = self._columns
        return Driver(names[i], *(float(column[i]) for column in columns))

    def of(self, streams: Container[str]) -> list[Driver]:
        """Those of certain streams, listed or not."""
        return [self._driver(i) for i, name in enumerate(self._columns[0]) if name in streams]

    @overload
    def __getitem__(self, at: int) -> Driver: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Driver, ...]: ...
    def __getitem__(self, at: int | slice) -> Driver | tuple[Driver, ...]:
        return self._listed[at]

    def __len__(self) -> int:
        return min(len(self._columns[0]), MAX_DRIVERS)

    def __eq__(self, other: object) -> bool:
        return self._listed == (other._listed if isinstance(other, Drivers) else other)

    def __hash__(self) -> int:
        return hash(self._listed)


def drivers_of(evidence: Evidence, streams: Container[str]) -> list[Driver]:
    """The drivers of certain streams."""
    rows = evidence.drivers
    return rows.of(streams) if isinstance(rows, Drivers) else [d for d in rows if d.stream in streams]
