"""Tables as JSON: a row per line, a list of rows, an object of columns, or several of those by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

from .base import Imported, Importer, ImportFailed, NoTraining, run_name
from .columns import Columns, whole
from .grouping import Row, by_run, long_to_wide
from .json_rows import document, flat, objects
from .source import CONSOLE, JSON_LINES, Source, parse

_KEYS = 200_000  # characters of a document in which a metric is named, if it holds any
_KEY = re.compile(r'"([^"\\\n]{1,100})"\s*:')

Table = tuple[tuple[str, ...], list[Row]]


class JsonTable(Importer):
    """Reads rows with a metric of training; lists of rows below different names are different runs."""

    source: ClassVar[str] = "json"

    def sniff(self, source: Source) -> bool:
        columns = Columns(self.options.names)
        if source.suffix in (*JSON_LINES, *CONSOLE) and any(_tells(flat(row), columns) for row in source.head_rows):
            return True
        if source.suffix != ".json" or source.head.lstrip()[:1] not in ("{", "["):
            return False
        return bool(columns.known(_KEY.findall(source.head[:_KEYS])))

    def superseded(self, path: Path) -> bool:
        return path.name == "wandb-summary.json"  # the last values of what stands beside it

    def read(self, source: Source) -> list[Imported]:
        columns = Columns(self.options.names)
        faults: tuple[str, ...] = ()
        begin = [line for line in source.head.split("\n", 100) if line.strip()][:2]
        alone = source.suffix == ".json" and len(begin) == 1
        first = None if alone or not begin else parse(begin[0])
        if source.suffix != ".json" or (isinstance(first, dict) and _tells(flat(first), columns)):
            return self._runs(source, "", objects(source), ())
        try:
            value, faults = document(source)
        except ValueError as error:
            rows = [flat(row) for row in objects(source)]
            if not columns.known({name for row in rows for name in row}):
                raise ImportFailed(f"{source.name}: got broken JSON ({error}), expected rows of training") from error
            return self._runs(source, "", rows, (f"broken JSON ({error}): read line by line",))
        tables = list(_tables(value, (), columns))
        if not tables and isinstance(value, dict) and _tells(flat(value), columns):
            tables = [((), [value])]
        if not tables:
            raise NoTraining(f"{source.name}: got no rows with a metric of training, expected rows of training")
        named = (run for path, rows in _told_apart(tables) for run in self._runs(source, path, rows, faults))
        return list(named)

    def _runs(self, source: Source, path: str, rows: Any, faults: tuple[str, ...]) -> list[Imported]:
        found = []
        for name, own in by_run((flat(row) for row in rows), Columns(self.options.names)).items():
            label = "/".join(filter(None, (path, name)))
            run = self.scalars(source, own, f"{run_name(source)}/{label}" if label else "", faults)
            found.append(run)
        return found


def _tells(row: Row, columns: Columns) -> bool:
    """Is this a row with the value of a metric, or one that names it?"""
    told = long_to_wide(row)
    names = {str(row[told[0]])} if told else {n for n, v in row.items() if isinstance(v, int | float | str)}
    return bool(columns.known(names))


def _tables(value: Any, path: tuple[str, ...], columns: Columns) -> Iterator[Table]:
    """Every table in a document, with the names that lead to it."""
    if isinstance(value, list):
        rows: list[Row] = [row for row in value if isinstance(row, dict)]
        if any(_tells(flat(row), columns) for row in rows[:100]):
            yield path, rows
            return
        children: Iterator[tuple[str, Any]] = ((str(i), child) for i, child in enumerate(value))
    elif isinstance(value, dict):
        table = _by_step(value, columns) or _by_column(value, columns)
        if table:
            yield path, table
            return
        children = iter(value.items())
    else:
        return
    for name, child in children:
        if isinstance(child, list | dict):
            yield from _tables(child, (*path, name), columns)


def _by_step(value: dict[str, Any], columns: Columns) -> list[Row]:
    """`{"50": {"reward": 0.5}, ...}` as rows."""
    if len(value) < 2 or not all(name.isdecimal() and isinstance(row, dict) for name, row in value.items()):
        return []
    rows = [flat(row) for row in value.values()]
    if not any(_tells(row, columns) for row in rows[:100]):
        return []
    return [{"step": whole(name)} | row for name, row in zip(value, rows, strict=True)]


def _by_column(value: dict[str, Any], columns: Columns) -> list[Row]:
    """`{"step": [...], "reward": [...]}` as rows; a column may also be an object by row, as of a data frame."""
    lists = {n: list(v.values()) if isinstance(v, dict) else v for n, v in value.items() if isinstance(v, list | dict)}
    lists = {n: v for n, v in lists.items() if v and not any(isinstance(x, list | dict) for x in v)}
    known = [n for n in lists if columns.known([n])]
    if not known:
        return []
    length = Counter(len(lists[n]) for n in known).most_common(1)[0][0]
    told = {n: v for n, v in lists.items() if len(v) == length}
    return [dict(zip(told, cells, strict=True)) for cells in zip(*told.values(), strict=True)]


def _told_apart(tables: Sequence[Table]) -> Iterator[tuple[str, list[Row]]]:
    """Tables by the part of their names that is not common to all."""
    common = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, zip(*(p for p, _ in tables), strict=False)))
    for path, rows in tables:
        yield ("/".join(path[common:]) if len(tables) > 1 else ""), rows
