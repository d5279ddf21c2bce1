"""Tables as text: a header and rows with commas, tabs, semicolons or bars between the cells."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from .base import Imported, Importer, ImportFailed, run_name
from .columns import Columns
from .grouping import by_run, long_to_wide
from .source import Source

_SUFFIXES = (".csv", ".tsv", ".txt", ".tab", ".dat")
_DELIMITERS = ",\t;|"


class TextTable(Importer):
    """Reads rows whose header names a metric of training; a column of runs or seeds makes several runs."""

    source: ClassVar[str] = "csv"

    def sniff(self, source: Source) -> bool:
        if source.suffix not in _SUFFIXES:
            return False
        header = _header(source.head.split("\n", 1)[0])
        columns = Columns(self.options.names)
        return len(header) > 1 and bool(columns.known(header) or long_to_wide(header))

    def read(self, source: Source) -> list[Imported]:
        runs = by_run(_rows(source), Columns(self.options.names))
        return [self.scalars(source, own, name and f"{run_name(source)}/{name}") for name, own in runs.items()]


def _header(line: str) -> list[str]:
    line = line.strip("\ufeff\r\n# ")
    return next(csv.reader([line], delimiter=_delimiter(line)), []) if line else []


def _delimiter(line: str) -> str:
    return max(_DELIMITERS, key=line.count)


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    lines = (line for line in source.lines() if line.strip())
    first = next(lines, "")
    header = _header(first)
    if not header:
        raise ImportFailed(f"{source.name}: got no header, expected a table with a header")
    names, lost = [name.strip() for name in header], list[int]()
    for number, cells in enumerate(_cells(lines, _delimiter(first)), 2):
        if len(cells) < len(names):
            lost.append(number)
        else:
            yield dict(zip(names, cells, strict=False))
    if lost:
        source.faults.append(f"{len(lost)} rows left out, the first {source.name}:{lost[0]}: cells are missing")


def _cells(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """The cells of each line; a quoted cell of several lines loses its row, never the rest of the file."""
    for line in lines:
        try:
            yield next(csv.reader([line.replace("\0", "")], delimiter=delimiter), [])
        except csv.Error:
            yield []
