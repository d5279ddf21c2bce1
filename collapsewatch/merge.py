"""Journals into `run.duckdb`: one short ATTACH, rows and journal offsets in one transaction.

So each row arrives exactly once, whoever is killed when; and a lock on `run.duckdb` that somebody else holds
delays the merge and loses nothing. Nobody keeps the file open: it is attached for milliseconds.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import duckdb

from .database import (
    SCHEMA,
    DatabaseLocked,
    StoreError,
    arrow_schemas,
    attached,
    check_tables,
    connect,
    insert,
)
from .journal import discard, live_ranks, rank_of, read_committed, segments


class Merger:
    """Moves committed journal rows of all ranks into `run.duckdb`; any number may run, in any processes."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.db = run_dir / "run.duckdb"
        self.last_logged = 0
        self._con: duckdb.DuckDBPyConnection | None = None
        self._prepared = False
        self._offsets: dict[str, int] = {}

    def merge(self, timeout: float = 0.25) -> bool:
        """Merge what is committed, remove what nobody writes any more; False when others hold the database.

        Raises:
            duckdb.Error, OSError, StoreError: it failed, nothing is lost, and the next call starts afresh.
        """
        # In this order: a rank locks before it opens a segment, so one that starts in between has none in `paths`,
        # or is seen alive. The other way round its first segment would look abandoned and be removed under it.
        paths = segments(self.run_dir)
        live = live_ranks(self.run_dir)
        youngest = {rank_of(path): path for path in paths}
        retired = [path for path in paths if rank_of(path) not in live or youngest[rank_of(path)] != path]
        if self._prepared and not retired and all(p.stat().st_size == self._offsets.get(p.name) for p in paths):
            return True
        try:
            con = self._connection()
            with attached(con, self.db, writable=True, timeout=timeout):
                self._prepare(con)
                rows = con.execute("SELECT file, offset_bytes FROM d._offsets").fetchall()
                self._offsets = dict(rows)  # read under the lock: another merger may have been here
                for path in paths:
                    self._take(con, path)
                if not self._prepared:
                    (self.last_logged,) = con.execute("SELECT coalesce(max(logged), 0) FROM d.steps").fetchall()[0]
                self._prepared = True
        except DatabaseLocked:
            return False
        except BaseException:
            self.close()  # a DuckDB instance may be unusable after an error
            raise
        for path in retired:
            if path.exists():
                discard(path, self._offsets.get(path.name, 0))
        return True

    def close(self) -> None:
        """Close the connection; DuckDB complains at exit about those that are left."""
        if self._con is not None:
            self._con.close()
        self._con = None
        self._prepared = False

    def abandon(self) -> None:
        """In a forked child: never close the connection, which crashes there for want of DuckDB's threads."""
        if self._con is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._con))

    def _connection(self) -> duckdb.DuckDBPyConnection:
        con = self._con = self._con or connect(self.db, writable=True)
        if not self.db.exists():
            self._prepared = False  # the run was removed under us
            # Made aside and linked into place: a process killed here leaves no half-made run.duckdb, and two
            # that race do not overwrite each other.
            draft = self.run_dir / f".run.duckdb.{os.getpid()}"
            draft.unlink(missing_ok=True)
            with attached(con, draft, writable=True, timeout=0.0):
                pass
            try:
                os.link(draft, self.db)
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                draft.replace(self.db)
            draft.unlink(missing_ok=True)
        return con

    def _prepare(self, con: duckdb.DuckDBPyConnection) -> None:
        if self._prepared:
            return
        found = con.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'd'").fetchall()
        names = sorted(name for (name,) in found)
        if names and "_offsets" not in names:  # somebody's own file: hands off
            raise StoreError(f"run.duckdb: got tables {', '.join(names)}, expected those of docs/schema.md")
        con.execute("USE d")
        try:
            con.execute(SCHEMA)
        finally:
            con.execute("USE memory")
        check_tables(con)

    def _take(self, con: duckdb.DuckDBPyConnection, path: Path) -> None:
        """One segment in one transaction: its new rows and how far it has been read."""
        before = self._offsets.get(path.name, 0)
        try:
            offset, tables = read_committed(path, before)
        except FileNotFoundError:  # another merger was done with it
            return
        if offset == before:
            return
        con.execute("BEGIN")
        for table, batches in tables.items():
            if table not in arrow_schemas():
                raise StoreError(f"journal: got table {table!r}, expected one of {', '.join(arrow_schemas())}")
            insert(con, f'd."{table}"', batches)
        con.execute("INSERT OR REPLACE INTO d._offsets VALUES (?, ?)", [path.name, offset])
        con.execute("COMMIT")
        self._offsets[path.name] = offset
