"""What happened to a run, in words: its steps, alarms, interventions and events, read as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

from collapsewatch.queries import Run
from collapsewatch.words import cause, plain

from .lines import MARKS, Dot
from .words import drivers, outcome

LIVE = "running"
_PACE_STEPS = 20

Mark = tuple[str, Dot]


class Entry(NamedTuple):
    """One line of a run's log: what happened at a step, in words; `kind` is alarm, good, action or note."""

    step: int
    kind: str
    words: str


class Chronicle:
    """The short tables of a run. `alarms` and `applied` hold their rows, `log` says everything in words."""

    def __init__(self) -> None:
        self.log: list[Entry] = []
        self.alarms: list[dict[str, Any]] = []
        self.applied: list[dict[str, Any]] = []
        self.first_time: float | None = None
        self.last_time: float | None = None
        self.last_step: int | None = None
        self.step_seconds: float | None = None
        self.max_steps: int | None = None
        self.alarm: Entry | None = None
        self.alarm_count = 0
        self.action: Entry | None = None
        self._seen: dict[str, int] = {}
        self._tiers: dict[str, str] = {}
        self._times: dict[str, tuple[int | None, int]] = {}

    def read(self, run: Run) -> list[Mark]:
        """Takes in what came since the last time; what of it is marked in the panels."""
        marks: list[Mark] = []
        self._steps(run)
        for table, take in (("alarms", self._alarm), ("interventions", self._intervention), ("events", self._event)):
            rows, self._seen[table] = run.since(table, self._seen.get(table, 0))
            for row in _records(rows):
                marks.extend(take(row))
        return marks

    def _steps(self, run: Run) -> None:
        seen = self._seen.get("steps", 0)
        sql = """SELECT max(_row) + 1, min(time), arg_max(step, _row), arg_max(time, _row)
            FROM rows WHERE rank = 0 AND _row >= $seen"""
        end, first_time, step, time = run.lasting("steps", sql, {"seen": seen}).rows[0]
        if end is None:
            return
        self._seen["steps"] = end
        self.first_time = first_time if self.first_time is None else self.first_time
        self.last_step, self.last_time = step, time
        sql = "SELECT time FROM rows WHERE rank = 0 AND _row >= $end ORDER BY _row"
        times = [t for (t,) in run.lasting("steps", sql, {"end": end - _PACE_STEPS}).rows]
        gaps = [b - a for a, b in pairwise(times) if b > a]
        self.step_seconds = median(gaps) if gaps else self.step_seconds

    def _alarm(self, row: dict[str, Any]) -> Iterator[Mark]:
        step, tier, detector, why = row["step"], row["tier"], row["detector"], cause(drivers(row["drivers"]))
        self.alarms.append(row)
        if tier in ("alarm", "watch"):
            self._tiers[detector] = tier
        if self._tiers.get(detector) == "watch":  # it begins, holds and clears like an alarm, but is none
            self.log.append(Entry(step, "note", f"watch: {why}" if tier == "watch" else f"watch: {plain(tier)}"))
        elif tier == "alarm":
            self.alarm = Entry(row["onset_step"], "alarm", f"ALARM since step {row['onset_step']}: {why}")
            self.alarm_count += 1
            yield self._mark("alarm", Entry(step, "alarm", f"alarm ({plain(detector)}): {why}"))
        elif tier == "hold":
            self.log.append(Entry(step, "alarm", f"the alarm holds: {why}"))
        elif tier in ("cleared", "rebaselined"):
            self.alarm = None
            said = "alarm cleared" if tier == "cleared" else "alarm ended: the new level was taken as normal"
            yield self._mark("cleared", Entry(step, "good", said))

    def _intervention(self, row: dict[str, Any]) -> Iterator[Mark]:
        step, name, status = row["step"], plain(row["name"], 60), row["status"]
        self.applied.append(row)
        if status != "applied":
            self.log.append(Entry(step, "action", f"intervention {name} {plain(status, 20)}{outcome(row['detail'])}"))
            return
        last, count = self._times.get(name, (None, 0))
        self._times[name] = (step, count + 1)
        times = f", {count + 1} times in all" if count else ""
        self.action = Entry(step, "action", f"intervention {name} applied at step {step}{times}")
        if last != step - 1:  # applications at successive steps are one action: marked where it starts
            asked = f", asked for by the alarm at step {row['trigger_step']}" if row["trigger_step"] else ""
            yield self._mark("intervention", Entry(step, "action", f"intervention {name} applied{asked}"))
            yield "band", Dot(step, None)
        yield "band", Dot(step, MARKS["band"], name)
        yield "band", Dot(step + 1, MARKS["band"], name)

    def _event(self, row: Mapping[str, Any]) -> Iterator[Mark]:
        if row["name"] == "started":
            self.max_steps = _max_steps(row["detail"]) or self.max_steps
        detail = "" if row["name"] == "started" else plain(row["detail"] or "", 120)
        words = plain(row["name"], 40) + (f": {detail}" if detail else "")
        self.log.append(Entry(row["step"], "note", words))
        yield from ()

    def _mark(self, name: str, entry: Entry) -> Mark:
        self.log.append(entry)
        return name, Dot(entry.step, MARKS[name], entry.words)


def _records(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _max_steps(detail: str | None) -> int | None:
    """How many steps the run was started for, when its `started` event says so (JSON, `max_steps`)."""
    try:
        planned = json.loads(detail or "{}").get("max_steps")
    except (ValueError, AttributeError):
        return None
    return planned if isinstance(planned, int) and planned > 0 else None
