"""The console output of a verl run: `step:12 - actor/entropy:0.31 - ...`, between whatever else Ray prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from .base import Imported, Importer, beside_wandb
from .source import CONSOLE, Source

_STEP = re.compile(r"(?<![\w/])step:(\d{1,18}) - (?=\S+:)")
_STEP_BYTES = re.compile(_STEP.pattern.encode())
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_REPEATED = re.compile(r" \[repeated \d+x across cluster\].*$")  # what Ray adds to a line that several workers print


class VerlConsole(Importer):
    """Reads the step lines, whatever stands before them: a worker's prefix, colours, a progress bar."""

    source: ClassVar[str] = "verl_console"

    def sniff(self, source: Source) -> bool:
        return source.suffix in CONSOLE and ("(TaskRunner pid=" in source.head or _STEP.search(source.head) is not None)

    def superseded(self, path: Path) -> bool:
        return beside_wandb(path)

    def read(self, source: Source) -> list[Imported]:
        return [self.scalars(source, _rows(source))]


def _rows(source: Source) -> Iterator[tuple[int, dict[str, str]]]:
    for line in source.raw_lines(b"step:"):
        found = _STEP_BYTES.search(line)
        if found is None:
            continue
        text = line[found.end() :].decode("utf-8", "replace")
        if "\x1b" in text or text.endswith("]"):
            text = _REPEATED.sub("", _ANSI.sub("", text))
        pairs = [pair.rpartition(":") for pair in text.split(" - ")]
        if source.cut:
            pairs.pop()  # a number may be half written
        yield int(found[1]), {name: value for name, _, value in pairs}
