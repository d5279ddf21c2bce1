"""What one browser is shown: the runs of a place as they stand at one moment, and how far a tick has to go back."""

from __future__ import annotations

import hashlib
import secrets
import threading
from pathlib import Path
from typing import Any

from collapsewatch.queries import RunError

from .chronicle import LIVE
from .feed import Feed
from .lines import LINES, OVERVIEW
from .places import Place
from .run_feed import Dots, RunFeed

Cursor = dict[str, Any]

MOST = 4
"""Runs that a page shows where none is picked."""


def shown_runs(feed: Feed, picked: tuple[str, ...], most: int) -> dict[str, RunFeed]:
    """The picked runs that exist, else the `most` latest, live ones before others; in the order of their names.

    Of live runs the latest begun: which one had a step last changes with every tick, and the page with it.
    """
    runs = feed.runs
    keys = [key for key in picked if key in runs]
    if not keys:
        live = {key for key, run in runs.items() if run.status == LIVE}
        told = {key: run.chronicle for key, run in runs.items()}
        age = {key: (c.first_time if key in live else c.last_time) or 0.0 for key, c in told.items()}
        keys = sorted(runs, key=lambda key: (key in live, age[key]), reverse=True)[:most]
    return {key: runs[key] for key in sorted(keys)}


def read_ahead(logdir: Path) -> Feed:
    """A feed that reads in the background what the first page will show, before anybody asks."""
    feed = Feed(logdir)

    def read() -> None:
        feed.refresh_once()
        feed.want(shown_runs(feed, (), MOST), OVERVIEW)

    threading.Thread(target=read, name="collapsewatch-ahead", daemon=True).start()
    return feed


class View:
    """The shown runs of a place, with the lines that a figure is drawn from; `at` names the drawing."""

    def __init__(self, feed: Feed, place: Place, tables: tuple[str, ...], most: int) -> None:
        self.feed, self.place, self.tables = feed, place, tables
        self.runs = shown_runs(feed, place.runs, most)
        self.at = secrets.token_hex(4)
        self.versions: dict[str, int] = {}
        self._lines: dict[str, Dots] = {}
        self._parts: dict[str, Dots] = {}
        for key, run in self.runs.items():
            self.versions[key], self._lines[key] = run.snapshot(tables)

    def lines(self, key: str) -> Dots:
        """A run's lines in the place's range of steps."""
        if not self.place.ranged:
            return self._lines[key]
        if key not in self._parts:
            self._parts[key] = self._part(self.runs[key])
        return self._parts[key]

    def has(self, key: str, name: str) -> bool:
        """Does a run have such a line?"""
        return bool(self._lines[key].get(name))

    def has_any(self, key: str, prefix: str) -> bool:
        """Does a run have a line whose name starts so?"""
        return any(name.startswith(prefix) for name in self.names(key))

    def names(self, key: str) -> list[str]:
        """The names of a run's lines, sorted."""
        return sorted(name for name, dots in self._lines[key].items() if dots)

    def waits(self, key: str) -> bool:
        """Is what the page needs of a run still being read for the first time?"""
        needed = set(self.tables) & LINES.keys()
        runs = [self.runs[key]] if key in self.runs else self.runs.values()
        return any(not run.error and not run.followed >= needed for run in runs)

    def shape(self) -> str:
        """What a page is built for; a tick that finds another one builds it again."""
        seen = [
            (
                key,
                self.waits(key),
                bool(run.error),
                run.chronicle.alarm_count,
                sorted(name for name, dots in self._lines[key].items() if dots),
            )
            for key, run in self.runs.items()
        ]
        return digest(seen)

    def cursor(self) -> Cursor:
        """The browser's place in what it has been sent."""
        return {
            "at": self.at,
            "href": self.place.href,
            "shape": self.shape(),
            "versions": self.versions,
            "hashes": {},
            "runs": digest(sorted(self.feed.runs)),
        }

    def _part(self, run: RunFeed) -> Dots:
        try:
            return run.between(self.place.first or 0, self.place.last, self.tables)
        except (RunError, OSError):
            return {}


def digest(value: object) -> str:
    """What tells two values apart, in a few characters."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]
