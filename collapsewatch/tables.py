"""Plain tables on the terminal; text from logs is data, so markup and control characters in it are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .rows import strict_json


class TableError(ValueError):
    """A table that cannot be written in the way asked for."""


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], console: Console) -> None:
    """One row per line, numbers on the right."""
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for i, column in enumerate(table.columns):
        if rows and all(isinstance(row[i], int | float) for row in rows):
            column.justify = "right"
    for row in rows:
        table.add_row(*(Text(printable(value)) for value in row))
    console.print(table)


def rows_json(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A JSON list of one object per row.

    Raises:
        TableError: two columns of one name, of which an object would keep one.
    """
    if len(set(columns)) < len(columns):
        raise TableError(f"query: got columns {', '.join(columns)}, expected distinct names (AS gives one)")
    return strict_json([dict(zip(columns, row, strict=True)) for row in rows])


def printable(value: Any) -> str:
    """A value as one line of text, without the control characters that a terminal would obey."""
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
