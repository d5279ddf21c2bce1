"""What the dashboard holds of the runs in a log folder: one reader per process for all its browsers.

A run is held as one append-only list of points, so that a browser's place in it is a single number and a tick
sends exactly what came after that place.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from collapsewatch.queries import Run, RunError, find_runs, open_run
from collapsewatch.words import cause, number, plain, token_of

from .words import drivers, outcome

METRICS = {
    "reward": "reward",
    "parse_rate": "parse_rate",
    "structure/tool_call": "tool_call",
    "structure/response": "response",
    "structure/polluted": "polluted",
    "structure/collapsed": "collapsed",
}
"""Metrics that are drawn, and the trace each becomes."""

REFRESH_S = 0.5
"""Least time between two looks at the files: half a tick, so that no browser waits for another one's turn."""

HAZARD_FLOOR = 1e-6
"""A hazard below this is drawn here, since a logarithmic axis has no zero; the hover text says the true
value.
"""

EXCESS_RANGE = (-8.0, 20.0)
"""Log evidence less its bound is drawn within these, the same in every run: beyond them more decides nothing."""

MARKS = {"alarm": 1.0, "cleared": 1.0, "intervention": 0.86}
"""Traces of marks, and how high in a panel each stands: an alarm and what it asked for often share a step."""

LIVE = "running"


class Point(NamedTuple):
    """One point of one trace; `y` is None where a line breaks, `text` is what hovering shows (not yet
    escaped).
    """

    trace: str
    x: int
    y: float | None
    text: str


class Entry(NamedTuple):
    """One line of a run's log: what happened at a step, in words; `kind` is alarm, good, action or note."""

    step: int
    kind: str
    words: str


class RunFeed:
    """All that is shown of one run, grown by `refresh`; never shrinks, so that an index into `points` stays
    valid.
    """

    def __init__(self, key: str, path: Path) -> None:
        self.key = key
        self.path = path
        self.points: list[Point] = []
        self.traces: set[str] = set()
        self.log: list[Entry] = []
        self.status = "running"
        self.error = ""
        self.first_step: int | None = None
        self.first_time: float | None = None
        self.last_step: int | None = None
        self.last_time: float | None = None
        self.max_steps: int | None = None
        self.latest: dict[str, float] = {}
        self.best: tuple[float, int] | None = None
        self.alarm: Entry | None = None
        self.alarm_count = 0
        self.action: Entry | None = None
        self._gaps: deque[float] = deque(maxlen=20)
        self._applied: dict[str, tuple[int | None, int]] = {}
        self._tiers: dict[str, str] = {}
        self._seen: dict[str, int] = {}
        self._stamp: tuple[Any, ...] = ()
        self._run: Run | None = None
        self._lines: dict[str, int] = {}

    @property
    def step_seconds(self) -> float | None:
        """Median time of the last steps in seconds; None before the second step."""
        return median(self._gaps) if self._gaps else None

    def refresh(self) -> None:
        """Reads what came since the last time; a store that cannot be read becomes `error`, never an
        exception.
        """
        stamp = _stamp(self.path)
        # A file that did not change has no news, but a writer that was killed changes no file.
        if stamp == self._stamp and self.status != LIVE and not self.error:
            return
        try:
            self._run = self._run or open_run(self.path)
            # First, for of a live run `since` gives what is merged: the rest comes once it is not.
            self.status = self._run.status()
            for table, take in _TAKERS.items():
                rows, self._seen[table] = self._run.since(table, self._seen.get(table, 0))
                for row in _records(rows):
                    take(self, row)
        except (RunError, OSError) as error:  # OSError: removed just now, or not ours to read
            self.error = plain(error)
            self._close()
            return
        if self.status != LIVE:  # a reader is several threads and megabytes, and most runs of a folder are over
            self._close()
        self.error = ""
        self._stamp = stamp

    def _close(self) -> None:
        if self._run is not None:
            self._run.close()
        self._run = None

    def _add(self, trace: str, step: int, value: float, text: str) -> None:
        # A resumed run logs a step again: the line breaks there instead of running back across the panel.
        if step <= self._lines.get(trace, step - 1):
            self.points.append(Point(trace, step, None, ""))
        self._lines[trace] = step
        self.points.append(Point(trace, step, value if math.isfinite(value) else None, text))
        self.traces.add(trace)

    def _step(self, row: Mapping[str, Any]) -> None:
        if row["rank"]:
            return
        if self.last_time is not None and row["time"] > self.last_time:
            self._gaps.append(row["time"] - self.last_time)
        if self.first_step is None:
            self.first_step, self.first_time = row["step"], row["time"]
        self.last_step, self.last_time = row["step"], row["time"]

    def _metric(self, row: Mapping[str, Any]) -> None:
        trace = METRICS.get(row["metric"])
        if trace is None or row["rank"]:
            return
        step, value = row["step"], row["value"]
        self._add(trace, step, value, number(value))
        self.latest[trace] = value
        if trace == "reward" and math.isfinite(value) and (self.best is None or value > self.best[0]):
            self.best = (value, step)

    def _observation(self, row: Mapping[str, Any]) -> None:
        stream, value = row["stream"], row["value"]
        if stream in ("hazard", f"hazard:{token_of(stream)}"):
            self._add(stream, row["step"], max(value, HAZARD_FLOOR), number(value))

    def _evidence(self, row: Mapping[str, Any]) -> None:
        if row["stream"] or row["log_e"] is None:
            return
        # Detectors have bounds of their own; less the bound, all of them alarm at 0.
        low, high = EXCESS_RANGE
        excess = min(max(row["log_e"] - row["log_bound"], low), high)
        text = f"{number(row['log_e'])}, bound {number(row['log_bound'])}"
        self._add(f"evidence:{row['detector']}", row["step"], excess, text)

    def _alarm(self, row: Mapping[str, Any]) -> None:
        step, tier, detector, why = row["step"], row["tier"], row["detector"], cause(drivers(row["drivers"]))
        if tier in ("alarm", "watch"):
            self._tiers[detector] = tier
        if self._tiers.get(detector) == "watch":  # it begins, holds and clears like an alarm, but is none
            self.log.append(Entry(step, "note", f"watch: {why}" if tier == "watch" else f"watch: {plain(tier)}"))
        elif tier == "alarm":
            self.alarm = Entry(row["onset_step"], "alarm", f"ALARM since step {row['onset_step']}: {why}")
            self.alarm_count += 1
            self._mark("alarm", Entry(step, "alarm", f"alarm ({plain(detector)}): {why}"))
        elif tier == "hold":
            self.log.append(Entry(step, "alarm", f"the alarm holds: {why}"))
        elif tier in ("cleared", "rebaselined"):
            self.alarm = None
            said = "alarm cleared" if tier == "cleared" else "alarm ended: the new level was taken as normal"
            self._mark("cleared", Entry(step, "good", said))

    def _intervention(self, row: Mapping[str, Any]) -> None:
        step, name, status = row["step"], plain(row["name"], 60), row["status"]
        if status == "applied":
            last, count = self._applied.get(name, (None, 0))
            self._applied[name] = (step, count + 1)
            times = f", {count + 1} times in all" if count else ""
            self.action = Entry(step, "action", f"intervention {name} applied at step {step}{times}")
            if last != step - 1:  # applications at successive steps are one action: marked where it starts
                asked = f", asked for by the alarm at step {row['trigger_step']}" if row["trigger_step"] else ""
                self._mark("intervention", Entry(step, "action", f"intervention {name} applied{asked}"))
        else:
            self.log.append(Entry(step, "action", f"intervention {name} {plain(status, 20)}{outcome(row['detail'])}"))

    def _event(self, row: Mapping[str, Any]) -> None:
        if row["name"] == "started":
            self.max_steps = _max_steps(row["detail"]) or self.max_steps
        detail = "" if row["name"] == "started" else plain(row["detail"] or "", 120)
        words = plain(row["name"], 40) + (f": {detail}" if detail else "")
        self.log.append(Entry(row["step"], "note", words))

    def _mark(self, trace: str, entry: Entry) -> None:
        self.log.append(entry)
        self.points.append(Point(trace, entry.step, MARKS[trace], entry.words))


_TAKERS = {
    "steps": RunFeed._step,
    "metrics": RunFeed._metric,
    "observations": RunFeed._observation,
    "evidence": RunFeed._evidence,
    "alarms": RunFeed._alarm,
    "interventions": RunFeed._intervention,
    "events": RunFeed._event,
}


class Feed:
    """The runs of a log folder, looked at by one thread at a time; `runs` is keyed by the path below the
    folder.
    """

    def __init__(self, logdir: Path) -> None:
        self.logdir = logdir
        self.runs: dict[str, RunFeed] = {}
        self._lock = threading.Lock()
        self._looked = -math.inf

    def refresh(self) -> None:
        """Brings `runs` up to date, unless another thread is doing so or just has: then what stands is fresh
        enough.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if time.monotonic() - self._looked < REFRESH_S:
                return
            found = {_key(self.logdir, path): path for path in find_runs(self.logdir)} if self.logdir.is_dir() else {}
            runs = {key: self.runs.get(key) or RunFeed(key, path) for key, path in sorted(found.items())}
            for run in runs.values():
                run.refresh()
            self.runs = runs
            self._looked = time.monotonic()
        finally:
            self._lock.release()


def _key(logdir: Path, path: Path) -> str:
    return path.name if path == logdir else path.relative_to(logdir).as_posix()


def _stamp(path: Path) -> tuple[Any, ...]:
    """What changes when a run is written: size and time of its files (never opened: that would drop DuckDB's
    lock).
    """
    stamp = []
    for file in (path / "run.duckdb", *sorted(path.glob("journal/*"))):
        try:
            stat = file.stat()
        except OSError:  # merged and removed meanwhile: the next look sees the new state
            continue
        stamp.append((file.name, stat.st_size, stat.st_mtime_ns))
    return tuple(stamp)


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
