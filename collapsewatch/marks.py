"""What changes a run on purpose: switches seen by themselves, and the events that act on detection, in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from .records import Event, StepRecord

RATE = "learning_rate"
SETTINGS = frozenset({RATE, "temperature", "max_completion_length"})
"""What is known to give a run a new normal when it is changed; data and prompts nobody can see change."""
FACTOR = 2.0  # between two learning rates: less moves no run within the baseline's memory
BEND = 3.0  # times the change before: a warm-up or a decay goes on as it went, a switch does not
ACTING = frozenset({"mark", "checkpoint", "rolled_back"})
RESUMED = "resumed"


class Switches:
    """Tells a setting that was switched from one that follows its schedule."""

    def __init__(self) -> None:
        self.step = 0
        self.last: dict[str, float] = {}
        self.change: float | None = None  # of the learning rate, at the step before

    def update(self, step: int, values: Mapping[str, float]) -> list[str]:
        """What was switched since the step before, in words; a second look at a step sees nothing."""
        if step <= self.step:
            return []
        now = {k: float(values[k]) for k in SETTINGS & values.keys() if isfinite(values[k])}
        if not now:
            return []
        self.step = step
        found = [
            f"{name} {self.last[name]:g} to {value:g}"
            for name, value in sorted(now.items())
            if name in self.last and (self._bent(value) if name == RATE else value != self.last[name])
        ]
        if RATE in now:
            self.change = abs(now[RATE] - self.last[RATE]) if RATE in self.last else None
        self.last |= now
        return found

    def _bent(self, rate: float) -> bool:
        before = self.last[RATE]
        apart = max(rate, before) >= FACTOR * min(rate, before)
        return self.change is not None and apart and abs(rate - before) > BEND * self.change

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "last": dict(self.last), "change": self.change}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.last, self.change = state["step"], dict(state["last"]), state["change"]


def switched(records: Iterable[StepRecord]) -> list[Event]:
    """The marks of a log that nobody watched live: from its own scalars, where a monitor would have set them."""
    switches = Switches()
    return [
        Event(record.step, record.time, "mark", name)
        for record in records
        for name in switches.update(record.step, record.metrics)
    ]


def acting(events: Iterable[Event]) -> list[Event]:
    """The events that acted on detection, in order: not those of steps that a resumed training took again."""
    found: list[Event] = []
    for event in events:
        if event.name in ACTING:
            found.append(event)
        elif event.name == RESUMED:
            found = [e for e in found if e.step <= event.step]
            if event.detail == "checkpoint":  # whatever came after it was saved is not in it
                saved = [i for i, e in enumerate(found) if (e.name, e.step) == ("checkpoint", event.step)]
                found = found[: saved[-1] + 1] if saved else found
    return sorted(found, key=lambda event: event.step)
