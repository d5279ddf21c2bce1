"""Plain tables on the terminal; text from logs is data, so markup and control characters in it are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .records import Structure
from .rows import strict_json
from .shares import Part, Shares, excerpt

_EACH = 12  # steps, or turn indices, of which all are shown; of more the first, the worst and the last
_EXAMPLE, _BESIDE = 24, 60  # characters of an example at least; of the columns beside it


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


def print_structure(name: str, found: Shares, console: Console) -> None:
    """Shares of the structures in all, by step and by turn index, then the reasons ranked, each with an example."""
    rates = {"strictly": found.parse_rate, "leniently": found.lenient_parse_rate}
    said = ", ".join(f"{rate:.1%} {how}" for how, rate in rates.items() if rate is not None)
    title = f"{printable(name)}: calls that parse: {said}" if said else f"{printable(name)}: no call attempted"
    console.print(Text(f"\n{title}", style="bold"))
    shares = _table("", "turns", *Structure)
    for label, part in [
        ("all", Part(0, found.turns, found.shares)),
        *_labelled("step", found.by_step or (), found),
        *_labelled("turn", found.by_turn or (), found),
    ]:
        shares.add_row(label, str(part.turns), *(f"{part.shares[structure]:.1%}" for structure in Structure))
    console.print(shares)
    if not found.reasons:
        return
    reasons = _table("reason", "turns", "share")
    for column in ("family", "line", "example"):
        reasons.add_column(column, no_wrap=True, justify="right" if column == "line" else "left")
    width = max(_EXAMPLE, console.width - _BESIDE)
    for r in found.reasons:
        line, text = next(((str(e.line), excerpt(printable(e.text), width)) for e in r.examples), ("", ""))
        row = (printable(r.reason), str(r.count), f"{r.share:.1%}", r.family or "", line, text)
        reasons.add_row(*map(Text, row))
    console.print(reasons)


def _table(first: str, *numbers: str) -> Table:
    """An empty table of one column of words and columns of numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _labelled(kind: str, parts: Sequence[Part], whole: Shares) -> list[tuple[str, Part]]:
    """The parts to show, with their labels."""
    if len(parts) <= _EACH:
        return [(f"{kind} {part.at}", part) for part in parts]
    worst = whole.worst(parts)
    shown = (part for i, part in enumerate(parts) if i in (0, len(parts) - 1) or part is worst)
    return [(f"{kind} {part.at}" + (" (worst)" if part is worst else ""), part) for part in shown]


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
