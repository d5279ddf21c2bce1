"""Transcripts: one assistant turn per JSON line.

`text`, and if known `model`, `step`, `turn` (its index in the dialogue), `dialogue`, `stop` (a finish reason).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from .base import Imported, Importer, ImportFailed, run_name
from .columns import whole
from .source import JSON_LINES, Source
from .turns import Place, Turns, stop_of

_KNOWN = frozenset({"text", "model", "step", "turn", "dialogue", "stop"})


class Transcripts(Importer):
    """Classifies every turn; each model in the file is a run. Without step numbers the run is one record."""

    source: ClassVar[str] = "transcripts"

    def sniff(self, source: Source) -> bool:
        return source.suffix in JSON_LINES and any(isinstance(row.get("text"), str) for row in source.head_rows)

    def read(self, source: Source) -> list[Imported]:
        runs: dict[str, Turns] = {}
        names: set[str] = set()
        lines, wrong = 0, Wrong(source)
        for count, line in enumerate(source.lines(), 1):
            if not line.strip():
                continue
            lines += 1
            row = object_with("text", line)
            if isinstance(row, str):
                wrong.add(count, line, row)
                continue
            model = _told(row, "model", run_name(source))
            place = Place(count, whole(row.get("step")), whole(row.get("turn")), _told(row, "dialogue", ""))
            runs.setdefault(model, Turns(self.options.format)).add(row["text"], place, stop_of(row.get("stop")))
            names |= row.keys()
        if not lines:
            raise ImportFailed(f"{source.name}: got no line, expected one assistant turn per line")
        if not runs:
            raise ImportFailed(f"{wrong.first}, expected an object with `text`; so in all {lines} lines")
        unmapped, faults = tuple(sorted(names - _KNOWN)), wrong.faults(lines)
        return [turns.imported(name, self.source, source.path, unmapped, faults) for name, turns in runs.items()]


class Wrong:
    """The lines of a file that could not be read: how many, and the first."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.count, self.first = 0, ""

    def add(self, number: int, line: str, reason: str) -> None:
        self.count += 1
        self.first = self.first or f"{self._source.name}:{number}: got {line.strip()[:60]!r} ({reason})"

    def faults(self, lines: int) -> tuple[str, ...]:
        """What to say of them, and of what the source could not get at."""
        said = [f"{self.count} of {lines} lines left out, the first {self.first}"] if self.count else []
        return (*self._source.faults, *said)


def object_with(name: str, line: str) -> dict[str, Any] | str:
    """A line's object with text under this name, or what is wrong with the line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return str(error)
    if not isinstance(row, dict):
        return "no object"
    return row if isinstance(row.get(name), str) else f"no `{name}`"


def _told(row: Mapping[str, Any], name: str, default: str) -> str:
    return default if row.get(name) is None else str(row[name])
