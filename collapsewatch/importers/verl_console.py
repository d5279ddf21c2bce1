"""The console output of a verl run: `step:12 - actor/entropy:0.31 - ...`, between whatever else Ray prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from .base import Imported, Importer, beside_wandb
from .source import CONSOLE, Source

_STEP = re.compile(rb"step:(\d{1,18}) - (?=[^\s:]+:)")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_REPEATED = re.compile(r" \[repeated \d+x across cluster\].*$")  # what Ray adds to a line that several workers print
# Two thirds of a line, and of no use: left out before anything else is done with them.
_IDLE = ("timing_", "perf/", "prompt_length/", "critic/advantages/", "critic/returns/", "response_length_non_aborted/")


class VerlConsole(Importer):
    """Reads the step lines, whatever stands before them: a worker's prefix, colours, a progress bar."""

    source: ClassVar[str] = "verl_console"

    def sniff(self, source: Source) -> bool:
        if source.suffix not in CONSOLE:
            return False
        return "(TaskRunner pid=" in source.head or _STEP.search(source.head.encode()) is not None

    def superseded(self, path: Path) -> bool:
        return beside_wandb(path)

    def read(self, source: Source) -> list[Imported]:
        return [self.scalars(source, _rows(source))]


def _rows(source: Source) -> Iterator[tuple[int, dict[str, str]]]:
    for line in source.raw_lines(_STEP):
        found = _STEP.search(line)
        if found is None or line[: found.start()][-1:].isalnum() or line[: found.start()].endswith((b"_", b"/")):
            continue
        text = line[found.end() :].decode("utf-8", "replace")
        if "\x1b" in text or text.endswith("]"):
            text = _REPEATED.sub("", _ANSI.sub("", text))
        pairs = text.split(" - ")
        if source.cut:
            pairs.pop()  # a number may be half written
        told = (pair.rpartition(":") for pair in pairs if not pair.startswith(_IDLE))
        yield int(found[1]), {name: value for name, _, value in told}
