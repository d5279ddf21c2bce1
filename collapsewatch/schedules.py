"""Schedules: when an intervention acts, or is on.

To add one: a subclass of `Schedule`, and its line in the table. Outside code is named `pkg.mod:Class`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar

SCHEDULES: dict[str, str] = {
    name: f"{__name__}:{kind}"
    for name, kind in (
        ("triggered", "Triggered"),
        ("interleaved", "Interleaved"),
        ("synchronous", "Synchronous"),
        ("first", "First"),
    )
}


class Schedule(ABC):
    """Decides at the end of each step, on the same values on every rank; step 0 is before the first.

    `alarmed`: an alarm stands. `last`: the step of the last act, None before the first.
    """

    name: ClassVar[str]

    @abstractmethod
    def due(self, step: int, alarmed: bool, last: int | None) -> bool:
        """Whether an intervention that acts is to act now."""

    @abstractmethod
    def on(self, step: int, alarmed: bool) -> bool:
        """Whether an intervention that stands is to be on in the next step."""


class Triggered(Schedule):
    """While an alarm stands: it starts the intervention, and its own clearing, after good steps, ends it.

    An intervention that acts does so again every `cooldown` steps. Never blind for longer than 10 steps, by default:
    in a simulated closed loop a cool-down of 10 cost 3 broken steps a run, one of 50 cost 53.
    """

    name: ClassVar[str] = "triggered"

    def __init__(self, cooldown: int = 10) -> None:
        self.cooldown = _positive("cooldown", cooldown)

    def due(self, step: int, alarmed: bool, last: int | None) -> bool:
        return alarmed and (last is None or step - last >= self.cooldown)

    def on(self, step: int, alarmed: bool) -> bool:
        return alarmed


class Interleaved(Schedule):
    """RL, supervision, RL, supervision, RL: between `segments` of so many RL steps each.

    An intervention that stands is on in the first `hold` steps of each segment but the first. The paper's are
    50, 100, 150 for 1.5 B parameters.
    """

    name: ClassVar[str] = "interleaved"

    def __init__(self, segments: Sequence[int] = (50, 100, 150), hold: int = 10) -> None:
        if len(segments) < 2:
            raise ValueError(f"segments: got {list(segments)}, expected at least 2 lengths")
        self.segments = tuple(_positive("segments", length) for length in segments)
        self.hold = _positive("hold", hold)
        self._ends = tuple(accumulate(self.segments))[:-1]

    def due(self, step: int, alarmed: bool, last: int | None) -> bool:
        return step in self._ends

    def on(self, step: int, alarmed: bool) -> bool:
        return any(end <= step < end + self.hold for end in self._ends)


class Synchronous(Schedule):
    """Within RL: on from the first step to the last; what acts, acts after every `every` steps."""

    name: ClassVar[str] = "synchronous"

    def __init__(self, every: int = 1) -> None:
        self.every = _positive("every", every)

    def due(self, step: int, alarmed: bool, last: int | None) -> bool:
        return step > 0 and step % self.every == 0

    def on(self, step: int, alarmed: bool) -> bool:
        return True


class First(Schedule):
    """Once, before the first step of RL."""

    name: ClassVar[str] = "first"

    def due(self, step: int, alarmed: bool, last: int | None) -> bool:
        return step == 0

    def on(self, step: int, alarmed: bool) -> bool:
        return False


def _positive(knob: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{knob}: got {value!r}, expected a whole number of at least 1")
    return value
