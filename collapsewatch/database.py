"""The one way to `run.duckdb`: attached for the length of a block, by a DuckDB that opens no other file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from .journal import read_committed, segments

SCHEMA = Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")


class StoreError(ValueError):
    """A run folder that cannot be written, said before step 1."""


class DatabaseLocked(Exception):
    """Somebody else holds `run.duckdb`; try again later."""


@cache
def arrow_schemas() -> dict[str, Any]:
    """The Arrow schema of every public table of `schema.sql`, by name, in its order."""
    with duckdb.connect() as con:
        con.execute(SCHEMA)
        names = [name for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        return {
            name: con.sql(f'SELECT * FROM "{name}" LIMIT 0').to_arrow_table().schema
            for name in sorted(names, key=SCHEMA.index)
            if not name.startswith("_")
        }


def connect(db: Path, *, writable: bool) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB that can attach `db` and touch no other file, so that a malicious run cannot."""
    safe: dict[str, str | bool | int | float | list[str]] = {
        "threads": 1 if writable else 2,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,
    }
    con = duckdb.connect(config=safe)
    if writable:  # the folder, for files are created in it
        con.execute(f"SET allowed_directories = [{_quote(db.parent)}]")
    else:
        con.execute(f"SET allowed_paths = [{_quote(db)}, {_quote(f'{db}.wal')}]")
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")
    return con


@contextmanager
def attached(con: duckdb.DuckDBPyConnection, db: Path, *, writable: bool, timeout: float) -> Iterator[None]:
    """`db` as catalog `d` of `con`, locked only inside the block; waits up to `timeout` seconds for others.

    Raises:
        DatabaseLocked: others held it all the time.
        duckdb.Error: the file is no DuckDB database, or too new.
    """
    # New files can be read by DuckDB 1.5, which cannot read 2.0's own format; an old file keeps what it has.
    new = "" if db.exists() else "(STORAGE_VERSION 'v1.5.0')"
    mode = new if writable else "(READ_ONLY)"
    deadline, pause = time.monotonic() + timeout, 0.001
    while True:
        try:
            con.execute(f"ATTACH {_quote(db)} AS d {mode}")
            break
        except duckdb.Error as error:
            text = str(error)
            if "Could not set lock" not in text and "Unique file handle conflict" not in text:
                raise
            if time.monotonic() >= deadline:
                raise DatabaseLocked(first_line(error)) from error
        time.sleep(pause)
        pause = min(1.6 * pause, 0.03)
    try:
        yield
    finally:
        con.execute("DETACH d")


def check_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Raise StoreError unless the attached `d` has every table and column of `schema.sql`."""
    found = con.execute("SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = 'd'").fetchall()
    for table, schema in arrow_schemas().items():
        missing = {(table, column) for column in schema.names} - set(found)
        if missing:
            columns = ", ".join(sorted(column for _, column in missing))
            raise StoreError(f"run.duckdb: got no {table}.({columns}), expected the tables of docs/schema.md")


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name when it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _quote(path: Path | str) -> str:
    return "'" + str(path).replace("'", "''") + "'"  # ATTACH takes no parameter in DuckDB 1.5


def insert(con: duckdb.DuckDBPyConnection, table: str, batches: Sequence[Any]) -> None:
    """Append Arrow record batches to a table, column by name."""
    con.register("_batch", pa.Table.from_batches(batches))
    con.execute(f"INSERT INTO {table} BY NAME SELECT * FROM _batch")
    con.unregister("_batch")


class Reader:
    """Bare table names over a run's merged rows and those that only a journal holds."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.db = run_dir / "run.duckdb"
        self.con = connect(self.db, writable=False)
        self.con.execute("CREATE SCHEMA tail")
        self.con.execute(f"USE memory.tail; {SCHEMA}; USE memory.main")
        self._viewed = self._tailed = False

    @contextmanager
    def reading(self, tail: bool, timeout: float) -> Iterator[duckdb.DuckDBPyConnection]:
        """The connection, while the database is attached as `d`; without `tail`, of the merged rows only.

        Raises:
            DatabaseLocked: others held the database for `timeout` seconds.
            duckdb.Error, StoreError: it is broken, or no run's.
        """
        if self.db.exists():
            with attached(self.con, self.db, writable=False, timeout=timeout):
                yield self._ready(tail)
            return
        self.con.execute(f"ATTACH ':memory:' AS d; USE d; {SCHEMA}; USE memory.main")
        try:
            yield self._ready(tail)
        finally:
            self.con.execute("DETACH d")

    def _ready(self, tail: bool) -> duckdb.DuckDBPyConnection:
        if not self._viewed:
            check_tables(self.con)
            for table in arrow_schemas():
                both = f'SELECT * FROM d."{table}" UNION ALL BY NAME SELECT * FROM tail."{table}"'
                self.con.execute(f'CREATE VIEW memory.main."{table}" AS {both}')
            self._viewed = True
        if tail:
            self._read_tail()
        return self.con

    def _read_tail(self) -> None:
        paths = segments(self.run_dir)
        if self._tailed:
            for table in arrow_schemas():
                self.con.execute(f'TRUNCATE tail."{table}"')
        self._tailed = bool(paths)
        offsets = dict(self.con.execute("SELECT file, offset_bytes FROM d._offsets").fetchall()) if paths else {}
        for path in paths:
            try:
                tables = read_committed(path, offsets.get(path.name, 0)).tables
            except FileNotFoundError:  # merged before we attached, removed since
                continue
            for table, batches in tables.items():
                if table in arrow_schemas():
                    insert(self.con, f'tail."{table}"', batches)
