"""A run read from its start: the alarms it raises, and what one pass over its records leaves for the verdict."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import exp, isfinite
from typing import Any

from .course import watched
from .curves import Curves
from .detectors import FA_PER_10K, Detection, build, spec
from .detectors.policy import OUTCOMES
from .detectors.streams import BAD_OUTCOMES
from .levels import HUGE, WINDOW, Series
from .marks import acting
from .records import NOT_FINITE, VITAL, Alarm, Event, StepRecord, Tier


@dataclass(slots=True)
class Trace:
    """What one pass over the records leaves."""

    steps: list[int] = field(default_factory=list)
    failure: list[float] = field(default_factory=list)  # structural failure rate of the records that tell one
    reward: list[float] = field(default_factory=list)
    tail: dict[str, deque[float]] = field(default_factory=dict)  # last levels per stream, as the detector reads
    counts: dict[str, int] = field(default_factory=dict)
    alarms: list[Alarm] = field(default_factory=list)
    movers: dict[int, str] = field(default_factory=dict)  # by the step of the alarm
    told: dict[str, Series] = field(default_factory=dict)  # the watched metrics, and the rates that detectors read
    curves: Curves = field(default_factory=Curves)


def replay(records: Iterable[StepRecord], events: Iterable[Event] = (), fa_per_10k: float = FA_PER_10K) -> Trace:
    """Read a run from its start with the monitor's own detection; stored alarms are not looked at."""
    detection = Detection(build(fa_per_10k=fa_per_10k))
    trace = Trace()
    for record, alarms in judged(detection, records, events):
        for alarm in alarms:
            trace.alarms.append(alarm)
            if alarm.tier is Tier.ALARM:
                trace.movers[alarm.step] = detection.first_mover()
        trace.steps.append(record.step)
        trace.curves.take(record)
        reward = record.metrics.get("reward")
        if reward is not None and abs(reward) < HUGE:
            trace.reward.append(reward)
        for name, value in record.metrics.items():
            if watched(name) and isfinite(value):
                trace.told.setdefault(name, Series()).add(record.step, value)
        if NOT_FINITE in record.metrics or not all(isfinite(record.metrics.get(name, 0.0)) for name in VITAL):
            trace.told.setdefault(NOT_FINITE, Series()).add(record.step, 1.0)
        levels: dict[str, float] = {}
        for o in record.observations:
            if isfinite(o.value):
                levels[o.stream] = 1 - exp(-o.value) if spec(o.stream).kind == "hazard" else o.value
        for stream, level in levels.items():
            trace.tail.setdefault(stream, deque(maxlen=WINDOW)).append(level)
            trace.counts[stream] = trace.counts.get(stream, 0) + 1
            if stream in OUTCOMES:
                trace.told.setdefault(stream, Series()).add(record.step, level)
        if BAD_OUTCOMES & levels.keys():
            trace.failure.append(_failure_rate(levels))
    return trace


def judged(
    detection: Detection, records: Iterable[StepRecord], events: Iterable[Event]
) -> Iterator[tuple[StepRecord, list[Alarm]]]:
    """Each record with the alarm rows it raises; marks and rollbacks among the events act where they acted live."""
    waiting = deque(acting(events))
    kept: dict[int, dict[str, Any] | None] = {int(e.detail): None for e in waiting if e.name == "rolled_back"}

    def act(event: Event) -> None:
        if event.name == "mark":
            detection.mark_event(event.step, event.detail)
        elif event.name == "checkpoint" and event.step in kept:
            kept[event.step] = detection.state_dict()
        elif event.name == "rolled_back" and (state := kept[int(event.detail)]) is not None:
            detection.load_state_dict(state)

    for record in records:
        # An event carries the step of the last record before it: it acts on what comes after.
        while waiting and waiting[0].step < record.step:
            act(waiting.popleft())
        yield record, detection.update(record)[0]
    for event in waiting:
        act(event)


def _failure_rate(levels: dict[str, float]) -> float:
    """The share of outcomes that failed structurally: the worst way to fail counts."""
    ways = [levels.get("polluted", 0.0) + levels.get("collapsed", 0.0)]
    ways += [levels.get(s, 0.0) for s in ("empty", "repeated", "truncated")]
    if "polluted" not in levels:  # a broken call pollutes its turn; its share of the calls alone may be of one call
        ways.append(levels.get("parse_failure", 0.0))
    return max(ways)
