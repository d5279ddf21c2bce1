"""Databases of experiment trackers, opened so that nothing is written beside them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from .base import ImportFailed

_MAGIC = b"SQLite format 3\0"


def columns(path: Path, table: str) -> set[str]:
    """The columns of a table of the database; none where the file is no database or has no such table."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return set()
    try:
        with opened(path) as db:
            # A view would compute whatever its author likes.
            tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name = ?", (table,))
            return {row[1] for (name,) in tables for row in db.execute("SELECT * FROM pragma_table_info(?)", (name,))}
    except ImportFailed:
        return set()


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The database, for reading alone.

    Raises:
        ImportFailed: it is broken, or locked for longer than a second.
    """
    mode = "immutable=1" if _at_rest(path) else "mode=ro"
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", timeout=1.0, uri=True)) as db:
            db.text_factory = lambda raw: raw.decode("utf-8", "replace")
            yield db
    except (sqlite3.Error, UnicodeError) as error:  # SQLite decodes its own messages, with names of the file in them
        raise ImportFailed(f"{path.name}: got a broken database ({error}), expected one of SQLite") from error


def _at_rest(path: Path) -> bool:
    """Does it keep a journal ahead of itself (byte 18), and has none? To read it SQLite would make one beside it."""
    with path.open("rb") as file:
        head = file.read(19)
    journal = path.with_name(f"{path.name}-wal")
    return head[18:] == b"\x02" and not (journal.exists() and journal.stat().st_size)
