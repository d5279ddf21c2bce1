"""What the dashboard holds of one run: lines of bounded length, grown by batches of news, and what happened to it."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from collapsewatch.queries import Run, RunError, open_run
from collapsewatch.slices import EVERY_STEP, end_of, points
from collapsewatch.words import plain

from .chronicle import LIVE, Chronicle
from .lines import LINES, MARKS, Dot

LIVE_S = 1.0
"""Time after which a run that is being written is read even if its file stayed the same."""

KEPT_DOTS = 4000
"""Dots of one line that may be held; then the run is read again, thinned to a quarter of them."""

KEPT_NEWS = 600
"""Batches of news that are held: a browser that slept for longer is drawn anew."""

KEPT_ANSWERS = 64

Dots = Mapping[str, list[Dot]]


class RunFeed:
    """All that is shown of one run, grown by `refresh`; `version` counts the batches of news."""

    def __init__(self, key: str, path: Path) -> None:
        self.key = key
        self.path = path
        self.lines: dict[str, list[Dot]] = defaultdict(list)
        self.chronicle = Chronicle()
        self.status = LIVE
        self.error = ""
        self.version = 0
        self.followed: set[str] = set()
        self._news: deque[Dots] = deque(maxlen=KEPT_NEWS)
        self._seen: dict[str, int] = {}
        self._stamp: tuple[Any, ...] = ()
        self._looked = -math.inf
        self._run: Run | None = None
        self._origin: dict[str, str] = {}  # the table of each line; marks have none
        self._memo: dict[Any, tuple[Any, Any]] = {}
        self._asked: dict[Any, tuple[Any, Callable[[Run], Any]]] = {}
        self._guard = threading.RLock()  # held while the run is read
        self._publishing = threading.Lock()  # held while `lines`, `version` and the news change together

    def refresh(self, tables: Collection[str]) -> None:
        """Reads what came since the last time into the lines of `tables`, and what happened to the run.

        A store that cannot be read becomes `error`, never an exception.
        """
        with self._guard:
            self._answer()
            stamp, now = _stamp(self.path), time.monotonic()
            # A file that did not change has no news; only that its writer was killed shows in none.
            still = self.status != LIVE or now - self._looked < LIVE_S
            if stamp == self._stamp and still and not self.error and self.followed >= set(tables):
                return
            self._looked = now
            try:
                self._read(tables)
                self.error, self._stamp = "", stamp
            except (RunError, OSError) as error:  # OSError: removed just now, or not ours to read
                self.error = plain(error)
                self.close()

    def fresh(self, version: int) -> tuple[int, Dots | None]:
        """The version now, and the dots that came after another one, by line; None when that is too long ago."""
        with self._publishing:
            missing = self.version - version
            if not 0 <= missing <= len(self._news):
                return self.version, None
            found: dict[str, list[Dot]] = defaultdict(list)
            for batch in list(self._news)[len(self._news) - missing :]:
                for name, dots in batch.items():
                    found[name].extend(dots)
            return self.version, found

    def between(self, first: int, last: int | None, tables: Iterable[str]) -> Dots:
        """The lines in a range of steps, thinned only as far as that range needs; the run as it was last read."""
        found: dict[str, list[Dot]] = defaultdict(list)
        steps = (first, EVERY_STEP if last is None else last)
        for table in sorted(set(tables) & LINES.keys() & self._seen.keys()):
            for lines in LINES[table]:
                for name, step, value in points(self.run, lines, (0, self._seen[table]), steps):
                    found[name].append(Dot(step, value))
        for name in MARKS:
            found[name] = [dot for dot in self.lines[name] if steps[0] <= dot.x <= steps[1]]
        return found

    def snapshot(self, tables: Collection[str]) -> tuple[int, Dots]:
        """The version and the lines of some tables that belong together, while another thread may be reading on."""
        with self._publishing:
            shown = {name: dots for name, dots in self.lines.items() if self._origin.get(name) in {None, *tables}}
            return self.version, {name: list(dots) for name, dots in shown.items()}

    @property
    def run(self) -> Run:
        """The run, open for queries; raises RunError when it cannot be read."""
        with self._guard:
            self._run = self._run or open_run(self.path)
            return self._run

    @property
    def last_step(self) -> int | None:
        """The newest step; None before the first."""
        return self.chronicle.last_step

    @property
    def judged(self) -> bool:
        """Has a detector reported?"""
        return any(name.startswith("evidence:") for name in list(self.lines))

    def last(self, name: str) -> float | None:
        """The newest value of a line; None without one."""
        return next((dot.y for dot in reversed(self.lines.get(name, ())) if dot.y is not None), None)

    def memo(self, key: Any, ask: Callable[[Run], Any], version: Any = None) -> Any:
        """The answer to a question that every tick asks, asked of the run once; a few answers are kept.

        Of another `version` than the answer's the old answer is given, and the new one found while the run is next
        read: no tick waits for it. Raises RunError when the run cannot be read.
        """
        held = self._memo.get(key)
        if held is None:
            while len(self._memo) >= KEPT_ANSWERS:
                self._memo.pop(next(iter(self._memo)), None)
            held = self._memo[key] = version, ask(self.run)
        if held[0] != version:
            self._asked[key] = version, ask
        return held[1]

    def close(self) -> None:
        """Let go of the file: a reader is several threads and megabytes, and most runs of a folder are over."""
        with self._guard:
            if self._run is not None:
                self._run.close()
            self._run = None

    def _answer(self) -> None:
        while self._asked:
            key, (version, ask) = self._asked.popitem()
            try:
                self._memo[key] = version, ask(self.run)
            except (RunError, OSError):  # said where the run is read
                return

    def _read(self, tables: Collection[str]) -> None:
        # First, for of a live run only what is merged is read: the rest comes once it is not live any more.
        status = self.run.status()
        fresh: dict[str, list[Dot]] = defaultdict(list)
        thinned: dict[str, list[Dot]] = {}
        for name, dot in self.chronicle.read(self.run):
            fresh[name].append(dot)
        for table in sorted((self.followed | set(tables)) & LINES.keys()):
            thinned |= self._follow(table, fresh)
        with self._publishing:
            self.status = status
            self.followed |= set(tables)
            for name, dots in fresh.items():
                self.lines[name].extend(dots)
            self.lines.update(thinned)
            if fresh:
                self.version += 1
                self._news.append(fresh)

    def _follow(self, table: str, fresh: dict[str, list[Dot]]) -> dict[str, list[Dot]]:
        """Adds a table's new dots to `fresh`; gives its lines anew, thinned, once one has become too long."""
        end, seen = end_of(self.run, table), self._seen.get(table, 0)
        if end <= seen:
            return {}
        new: dict[str, list[Dot]] = defaultdict(list)
        for lines in LINES[table]:
            for name, step, value in points(self.run, lines, (seen, end)):
                before = new[name] or self.lines.get(name)
                # A resumed run logs a step again: the line breaks there instead of running back across the panel.
                if before and step <= before[-1].x and lines.keep == "both":
                    new[name].append(Dot(step, None))
                new[name].append(Dot(step, value))
        fresh.update(new)
        self._origin |= dict.fromkeys(new, table)
        self._seen[table] = end
        if all(len(self.lines.get(name, ())) <= KEPT_DOTS for name in new):
            return {}
        thinned: dict[str, list[Dot]] = defaultdict(list)
        for lines in LINES[table]:
            for name, step, value in points(self.run, lines, (0, end)):
                thinned[name].append(Dot(step, value))
        return thinned


def _stamp(path: Path) -> tuple[Any, ...]:
    """What changes when there is more to read: size and time of the database, and which journals there are.

    No file is opened: in the process that writes it that would drop DuckDB's lock.
    """
    stamp: list[Any] = sorted(file.name for file in path.glob("journal/*"))
    for file in (path / "run.duckdb", path / "run.duckdb.wal"):
        try:
            stat = file.stat()
        except OSError:  # not there yet, or merged and removed meanwhile: the next look sees the new state
            continue
        stamp.append((file.name, stat.st_size, stat.st_mtime_ns))
    return tuple(stamp)
