"""Logs that are still being written: judged again whenever they have grown."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .report import ReportError, RunReport

PAUSE_S = 2.0
"""Between two looks at the files."""
_SHARE = 4  # times as long as judging took is waited before the next: it takes a fifth of one core at most


def follow(paths: Sequence[Path], judge: Callable[[], list[RunReport]]) -> Iterator[tuple[list[RunReport], bool]]:
    """The reports of `judge`, and again after anything below `paths` has grown; endless.

    With them comes whether a verdict changed: another verdict, kind or onset, or another run. Before the first
    run is there, there are no reports, once. What cannot be read for a moment, because it is being replaced, is
    read at the next look.

    Raises:
        ReportError: a path does not exist at the start, or no file at it can be judged.
    """
    shown: list[Any] | None = None
    state: object = None
    while True:
        now = _state(paths)
        if now != state:
            began = time.monotonic()
            try:
                reports = judge()
            except ReportError:
                if shown is None and not all(path.is_dir() for path in paths):
                    raise
                reports = []
            state = now
            verdicts = [(r.path, r.name, r.verdict, r.kind, r.onset_step) for r in reports]
            if reports or shown is None:
                yield reports, verdicts != shown
                shown = verdicts
            time.sleep(_SHARE * (time.monotonic() - began))
        time.sleep(PAUSE_S)


def _state(paths: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Size and time of every file."""
    found: dict[str, tuple[int, int]] = {}
    for path in paths:
        files = [str(path)] if path.is_file() else [os.path.join(at, f) for at, _, own in os.walk(path) for f in own]
        for name in files:
            try:
                told = os.stat(name)
            except OSError:  # gone meanwhile, or a dead link
                continue
            found[name] = (told.st_size, told.st_mtime_ns)
    return found
