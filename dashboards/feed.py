"""What the dashboard holds of the runs in a log folder: one reader per process for all its browsers.

A run is held as lines of bounded length and grows by batches of news, so that a browser's place in it is a single
number and a tick sends exactly what came after that place.
"""

from __future__ import annotations

import atexit
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from collapsewatch.queries import Run, RunError, find_runs, open_run
from collapsewatch.slices import EVERY_STEP, end_of, points
from collapsewatch.words import plain

from .chronicle import LIVE, Chronicle, Entry
from .lines import LINES, MARKS, Dot

REFRESH_S = 0.4
"""Least time between two looks at the files: half a tick, so that no browser waits for another one's turn."""

KEPT_DOTS = 4000
"""Dots of one line that may be held; then the run is read again, thinned to half as many."""

KEPT_NEWS = 600
"""Batches of news that are held: a browser that slept for longer is drawn anew."""

KEPT_ANSWERS = 64
SHOWN_S = 30.0
"""How long a run is followed after a browser last asked for it."""

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
        self._run: Run | None = None
        self._memo: dict[Any, Any] = {}
        self._guard = threading.RLock()  # held while the run is read
        self._publishing = threading.Lock()  # held while `lines`, `version` and the news change together

    def refresh(self, tables: Collection[str]) -> None:
        """Reads what came since the last time into the lines of `tables`, and what happened to the run.

        A store that cannot be read becomes `error`, never an exception.
        """
        with self._guard:
            stamp = _stamp(self.path)
            # A file that did not change has no news, but a writer that was killed changes no file.
            same = stamp == self._stamp and self.status != LIVE and not self.error
            if same and self.followed >= set(tables):
                return
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

    def snapshot(self) -> tuple[int, Dots]:
        """The version and the lines that belong together, while another thread may be reading on."""
        with self._publishing:
            return self.version, {name: list(dots) for name, dots in self.lines.items()}

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

    def memo(self, key: Any, ask: Callable[[Run], Any]) -> Any:
        """The answer to a question that is asked again at every tick, asked once for each key; a few are kept.

        Raises RunError when the run cannot be read.
        """
        if key not in self._memo:
            answer = ask(self.run)
            while len(self._memo) >= KEPT_ANSWERS:
                self._memo.pop(next(iter(self._memo)))
            self._memo[key] = answer
        return self._memo[key]

    def close(self) -> None:
        """Let go of the file: a reader is several threads and megabytes, and most runs of a folder are over."""
        with self._guard:
            if self._run is not None:
                self._run.close()
            self._run = None

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
        self._seen[table] = end
        if all(len(self.lines.get(name, ())) <= KEPT_DOTS for name in new):
            return {}
        thinned: dict[str, list[Dot]] = defaultdict(list)
        for lines in LINES[table]:
            for name, step, value in points(self.run, lines, (0, end)):
                thinned[name].append(Dot(step, value))
        return thinned


class Feed:
    """The runs of a log folder, looked at by one thread at a time; `runs` is keyed by the path below the folder."""

    def __init__(self, logdir: Path) -> None:
        self.logdir = logdir
        self.runs: dict[str, RunFeed] = {}
        self._wanted: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()
        self._looked = self._asked = -math.inf
        self._follower: threading.Thread | None = None
        atexit.register(self.close)  # DuckDB complains of what is open when the interpreter ends

    def want(self, keys: Iterable[str], tables: Iterable[str], wait: float = 0.0) -> None:
        """Follows tables of runs in the background from now on, for as long as somebody asks.

        Waits at most `wait` seconds for what was not followed before.
        """
        now = time.monotonic()
        wanted = {(key, table): now for key in keys for table in tables}
        self._wanted |= wanted
        self._asked = now
        if self._follower is None or not self._follower.is_alive():
            self._follower = threading.Thread(target=self._follow, name="collapsewatch-feed", daemon=True)
            self._follower.start()
        while time.monotonic() < now + wait and not all(self._followed(*pair) for pair in wanted):
            time.sleep(0.01)

    def close(self) -> None:
        """Stop looking and let go of all files."""
        self._asked = -math.inf
        if self._follower is not None:
            self._follower.join()
        for run in self.runs.values():
            run.close()

    def refresh_once(self) -> None:
        """The first look at the folder, by whoever comes first; later ones are the background's."""
        if self._looked == -math.inf:
            self.refresh()

    def _followed(self, key: str, table: str) -> bool:
        run = self.runs.get(key)
        return run is None or bool(run.error) or table in run.followed

    def _follow(self) -> None:
        while time.monotonic() - self._asked < SHOWN_S:
            self.refresh()
            time.sleep(REFRESH_S / 4)

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
            self.runs = {key: self.runs.get(key) or RunFeed(key, path) for key, path in sorted(found.items())}
            now = time.monotonic()
            tables: dict[str, set[str]] = defaultdict(set)
            for (key, table), asked in list(self._wanted.items()):
                if now - asked < SHOWN_S:
                    tables[key].add(table)
                else:
                    del self._wanted[key, table]
            for key, run in self.runs.items():
                run.refresh(tables[key])
                if run.status != LIVE and key not in self._wanted_runs():
                    run.close()
            self._looked = time.monotonic()
        finally:
            self._lock.release()

    def _wanted_runs(self) -> set[str]:
        return {key for key, _ in self._wanted}


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


__all__ = ["LIVE", "Dots", "Entry", "Feed", "RunFeed"]
