"""What verl's `file` logger writes: `{"step": 12, "data": {"actor/entropy": 0.31, ...}}`, one step per line."""

from __future__ import annotations

from typing import Any, ClassVar

from .base import Imported, Importer
from .columns import whole
from .json_rows import objects
from .source import JSON_LINES, Source


class VerlFile(Importer):
    """Reads the steps; a line that is no JSON is left out."""

    source: ClassVar[str] = "verl_file"

    def sniff(self, source: Source) -> bool:
        return source.suffix in JSON_LINES and any(_is_step(row) for row in source.head_rows)

    def read(self, source: Source) -> list[Imported]:
        rows = ((whole(row["step"]), row["data"]) for row in objects(source) if _is_step(row))
        return [self.scalars(source, rows)]


def _is_step(row: dict[str, Any]) -> bool:
    return row.keys() == {"step", "data"} and isinstance(row["data"], dict)
