"""What the dashboard holds of the runs in a log folder: one reader per process for all its browsers.

A run grows by batches of news, so that a browser's place in it is a single number and a tick sends exactly what came
after that place.
"""

from __future__ import annotations

import atexit
import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from collapsewatch.queries import find_runs

from .chronicle import LIVE
from .run_feed import RunFeed

REFRESH_S = 0.1
"""Least time between two looks at the files; a look at files that stayed the same opens none of them."""

SEARCH_S = 1.0
"""Least time between two searches for runs, which walk through the whole folder."""

SHOWN_S = 30.0
"""How long a run is followed after a browser last asked for it."""


class Feed:
    """The runs of a log folder, looked at by one thread at a time; `runs` is keyed by the path below the folder."""

    def __init__(self, logdir: Path) -> None:
        self.logdir = logdir.resolve()
        self.runs: dict[str, RunFeed] = {}
        self._wanted: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()
        self._looked = self._asked = self._searched = -math.inf
        self._follower: threading.Thread | None = None
        self._closed = False
        atexit.register(self.close)  # DuckDB complains of what is open when the interpreter ends

    def want(self, keys: Iterable[str], tables: Iterable[str], wait: float = 0.0) -> None:
        """Follows tables of runs in the background from now on, for as long as somebody asks.

        Waits at most `wait` seconds for what was not followed before.
        """
        if self._closed:
            return
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
        """Stop looking, for good, and let go of all files."""
        self._closed = True
        if self._follower is not None:
            self._follower.join()
        with self._lock:
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
        while not self._closed and time.monotonic() - self._asked < SHOWN_S:
            self.refresh()
            time.sleep(REFRESH_S)

    def refresh(self) -> None:
        """Brings `runs` up to date, unless another thread is doing so or just has: then what stands is fresh
        enough.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._closed or time.monotonic() - self._looked < REFRESH_S:
                return
            now = time.monotonic()
            if now - self._searched >= SEARCH_S:
                found = find_runs(self.logdir) if self.logdir.is_dir() else []
                keys = {_key(self.logdir, path): path for path in found}
                self.runs = {key: self.runs.get(key) or RunFeed(key, path) for key, path in sorted(keys.items())}
                self._searched = now
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
        return {key for key, _ in list(self._wanted)}


def _key(logdir: Path, path: Path) -> str:
    return path.name if path == logdir else path.relative_to(logdir).as_posix()
