"""Reading a run: records, alarms, series, and anybody's own SQL, while it is being written or long after.

`run.duckdb` is attached READ_ONLY for the length of one query. Rows that a journal holds and the
database does not yet (a writer was killed; somebody held the database) are merged on `open_run` when nobody
writes the run and the folder can be written, else read from the journal by every query: none is missed.
"""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import duckdb

from .database import DatabaseLocked, Reader, StoreError, arrow_schemas, first_line
from .journal import live_ranks, segments
from .merge import Merger
from .records import Alarm, Applied, ControlRow, Driver, Event, Observation, RolloutRow, StepRecord, Tier, TurnRow
from .shares import TurnCount

LOCK_TIMEOUT_S = 3.0
"""How long a reader waits for whoever holds `run.duckdb`; a merge takes tens of milliseconds."""
_STEPS_PER_READ = 1024
_STEPS_PER_DETAILED_READ = 64  # with rollout texts a step may hold a megabyte
_DETAIL = {"control": ControlRow, "turns": TurnRow, "rollouts": RolloutRow}
_ENDS = ("finished", "interrupted", "failed")
_LATEST = """
    SELECT step, max(logged) AS logged, arg_max(time, logged) AS time FROM steps WHERE rank = 0 GROUP BY step
"""


class RunError(ValueError):
    """A run that cannot be read, or a query that it refuses."""


@dataclass(frozen=True, slots=True)
class Table:
    """The answer to a query."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Series:
    """One series by bucket of steps: the bucket's first step, and minimum, maximum and mean of its values."""

    step: list[int]
    min: list[float]
    max: list[float]
    mean: list[float]


class Run:
    """One run, read-only; made by `open_run`. Its methods may be called from several threads.

    Every method raises RunError when `run.duckdb` stays locked by somebody else or is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self._lock = threading.Lock()
        self._reader = Reader(path)

    def close(self) -> None:
        """Close the connection; nothing else is held between calls."""
        self._reader.con.close()

    def query(self, sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> Table:
        """The answer to one SELECT over the tables of docs/schema.md; it can write nothing and open no file.

        Raises:
            RunError: not one SELECT, or DuckDB refuses it; the message is the first line of DuckDB's.
        """
        with self._reading() as con:
            try:
                statements = con.extract_statements(sql)
                kinds = [statement.type.name for statement in statements]
                if kinds not in (["SELECT"], ["EXPLAIN"]):
                    raise RunError(f"query: got {' and '.join(kinds) or 'nothing'}, expected one SELECT")
                # A SELECT can hold data-modifying CTEs, and EXPLAIN ANALYZE anything.
                con.execute("BEGIN TRANSACTION READ ONLY")
                try:
                    columns = [column[0] for column in con.execute(sql, params or None).description]
                    return Table(columns, con.fetchall())
                finally:
                    con.execute("ROLLBACK")
            except duckdb.Error as error:
                raise RunError(f"query: {first_line(error)}") from error

    def status(self) -> str:
        """`finished`, `interrupted` or `failed` if the run said so last; else `running` or `stopped`."""
        said = [event.name for event in self.events() if event.name in ("started", *_ENDS)]
        if said and said[-1] in _ENDS:
            return said[-1]
        return "running" if live_ranks(self.path) else "stopped"

    def records(self, detail: bool = False) -> Iterator[StepRecord]:
        """What rank 0 logged, by step, exactly; of a step logged twice (a resumed run) the last.

        `control`, `turns` and `rollouts` are filled with `detail` only.
        """
        latest = self._rows(f"{_LATEST} ORDER BY step")
        size = _STEPS_PER_DETAILED_READ if detail else _STEPS_PER_READ
        for first in range(0, len(latest), size):
            yield from self._some_records(latest[first : first + size], detail)

    def alarms(self) -> list[Alarm]:
        """Every alarm row, in the order logged; what a resumed training logged again, once."""
        sql = "SELECT step, tier, detector, drivers, onset_step, log_e, log_bound, kind FROM alarms"
        return [
            Alarm(step, Tier(tier), detector, tuple(map(_driver, json.loads(drivers))), *rest)
            for step, tier, detector, drivers, *rest in self._once(sql)
        ]

    def applied(self) -> list[Applied]:
        """Every application of an intervention, in the order logged; what a resumed training logged again, once."""
        sql = "SELECT step, name, schedule, trigger_step, status, detail FROM interventions"
        return [Applied(*(*row, json.loads(detail))) for *row, detail in self._once(sql)]

    def events(self) -> list[Event]:
        """Every event, in the order logged."""
        return [Event(*row) for row in self._rows("SELECT step, time, name, detail FROM events")]

    def turn_counts(self) -> list[TurnCount]:
        """How many turns of all ranks have each step, index, structure and reason."""
        sql = """
            SELECT step, turn, structure, reason, count(*) FROM turns AS row
            JOIN (SELECT step, rank, max(logged) AS logged FROM steps GROUP BY ALL) AS valid USING (step, rank)
            WHERE row.logged >= valid.logged GROUP BY ALL
        """
        return [TurnCount(*row) for row in self._rows(sql)]

    def last_step(self) -> int | None:
        """The highest step logged by rank 0; None when there is none."""
        step: int | None = self._rows("SELECT max(step) FROM steps WHERE rank = 0")[0][0]
        return step

    def since(self, table: str, rowid: int = 0) -> tuple[dict[str, list[Any]], int]:
        """A table's rows from `rowid` on, as lists by column, and the rowid to ask for next.

        For following a run, cheap when nothing is new. Of a live run, what is merged: a second behind.

        Raises:
            RunError: no such table.
        """
        found = self.lasting(table, "SELECT * FROM rows WHERE _row >= $rowid ORDER BY _row", {"rowid": rowid})
        columns = {name: [row[i] for row in found.rows] for i, name in enumerate(found.columns)}
        rowids = columns.pop("_row")
        return columns, rowids[-1] + 1 if rowids else rowid

    def lasting(self, table: str, sql: str, params: Mapping[str, Any] | None = None) -> Table:
        """The answer to SQL of ours over `rows`: a table's rows that have their lasting place `_row`, as in `since`."""
        if table not in arrow_schemas():
            raise RunError(f"table: got {table!r}, expected one of {', '.join(arrow_schemas())}")
        # A live journal's rows have no lasting place yet: ranks may merge in another order.
        dead = not live_ranks(self.path)
        with self._reading(tail=dead) as con:
            rows = f'SELECT rowid AS _row, * FROM d."{table}"'
            if dead and con.execute(f'SELECT 1 FROM tail."{table}" LIMIT 1').fetchall():
                place = f'(SELECT coalesce(max(rowid), -1) FROM d."{table}") + row_number() OVER ()'
                rows += f' UNION ALL BY NAME SELECT {place} AS _row, * FROM tail."{table}"'
            found = con.execute(f"WITH rows AS ({rows}) {sql}", params)
            return Table([column[0] for column in found.description], found.fetchall())

    def series(self, name: str, buckets: int = 1000, table: Literal["metrics", "observations"] = "metrics") -> Series:
        """A metric of rank 0, or an observed stream, in at most `buckets` equal step ranges, without NaN."""
        key = {"metrics": "rank = 0 AND metric", "observations": "stream"}[table]
        rows = self._rows(
            f"""
            WITH points AS (
                SELECT step, arg_max(value, row.logged) AS value
                FROM {table} AS row LEFT JOIN ({_LATEST}) AS valid USING (step)
                WHERE {key} = $name AND NOT isnan(value) AND row.logged >= coalesce(valid.logged, 0)
                GROUP BY step
            ), bounds AS (SELECT min(step) AS low, max(step) AS high FROM points)
            SELECT min(step), min(value), max(value), avg(value) FROM points, bounds
            GROUP BY (step - low) * $buckets // (high - low + 1) ORDER BY 1
            """,
            {"name": name, "buckets": buckets},
        )
        return Series(*([row[i] for row in rows] for i in range(4)))

    def _some_records(self, latest: list[tuple[Any, ...]], detail: bool) -> Iterator[StepRecord]:
        span = [latest[0][0], latest[-1][0]]
        valid = {step: logged for step, logged, _ in latest}
        metrics: dict[int, dict[str, float]] = defaultdict(dict)
        kinds: dict[str, type[Any]] = {"observations": Observation} | (_DETAIL if detail else {})
        parts: dict[str, dict[int, list[Any]]] = {table: defaultdict(list) for table in kinds}
        with self._reading() as con:  # not around the yields: their consumer may take its time, or log
            sql = "SELECT step, logged, metric, value FROM metrics WHERE step BETWEEN ? AND ? AND rank = 0"
            for step, logged, metric, value in con.execute(sql, span).fetchall():
                if step in valid and logged >= valid[step]:
                    metrics[step][metric] = value
            for table, kind in kinds.items():
                for step, logged, *row in con.execute(_select(table, kind), span).fetchall():
                    if step in valid and logged >= valid[step]:
                        # Lists come back as lists; records hold tuples.
                        parts[table][step].append(kind(*(tuple(v) if isinstance(v, list) else v for v in row)))
        for step, _, time in latest:
            rows = {table: tuple(found.get(step, ())) for table, found in parts.items()}
            yield StepRecord(step, time, metrics.get(step, {}), **rows)

    def _once(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows whose first column is the step, without the repeats at steps that were taken again."""
        again = dict(self._rows("SELECT step, true FROM steps WHERE rank = 0 GROUP BY step HAVING count(*) > 1"))
        kept = dict.fromkeys((0 if row[0] in again else place, row) for place, row in enumerate(self._rows(sql), 1))
        return [row for _, row in kept]

    def _rows(self, sql: str, params: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        with self._reading() as con:
            return con.execute(sql, params).fetchall()

    @contextmanager
    def _reading(self, tail: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._lock:
            try:
                with self._reader.reading(tail, LOCK_TIMEOUT_S) as con:
                    yield con
            except DatabaseLocked as error:
                raise RunError(f"run: got {self.path}, locked ({error}), expected it free; try again") from error
            except RuntimeError as error:
                if str(error) == "Query interrupted":  # what DuckDB makes of Ctrl-C
                    raise KeyboardInterrupt from None
                raise
            except (duckdb.Error, StoreError, OSError) as error:
                raise RunError(f"run: got {self.path} ({first_line(error)}), expected a sound run") from error


def open_run(path: Path | str) -> Run:
    """Open a run folder, or the `run.duckdb` in it; what a killed writer left in the journal is merged first.

    Raises:
        RunError: there is no run, or it cannot be read.
    """
    folder = Path(path).absolute()
    if not folder.exists():
        raise RunError(f"run: got {path}, which does not exist, expected a run folder or its run.duckdb")
    if folder.name == "run.duckdb" and folder.is_file():
        folder = folder.parent
    if not _is_run(folder):
        raise RunError(f"run: got {path}, expected a folder with run.duckdb or journal/ in it, or the run.duckdb")
    _recover(folder)
    run = Run(folder)
    try:
        run.last_step()
    except RunError:
        run.close()
        raise
    return run


def find_runs(logdir: Path | str) -> list[Path]:
    """The run folders in a folder, itself included, at any depth, sorted; symbolic links are not followed.

    Raises:
        RunError: the folder does not exist.
    """
    if not Path(logdir).is_dir():
        raise RunError(f"logdir: got {logdir}, expected a folder")
    return sorted(folder for name, _, _ in os.walk(logdir) if _is_run(folder := Path(name)))


def _is_run(folder: Path) -> bool:
    journal = folder / "journal"
    return (folder / "run.duckdb").is_file() or any(journal.glob("r*.lock")) or any(journal.glob("r*.cwj"))


def _recover(folder: Path) -> None:
    if not segments(folder) or live_ranks(folder) or not os.access(folder, os.W_OK):
        return
    merger = Merger(folder)
    try:
        merger.merge()
    except (OSError, duckdb.Error, StoreError):
        pass  # reading finds the rows in the journal, or reports what is wrong with the database
    finally:
        merger.close()


def _select(table: str, kind: type[Any]) -> str:
    columns = ", ".join(f'"{field.name}"' for field in fields(kind))
    only_rank_0 = " AND rank = 0" if "rank" in arrow_schemas()[table].names else ""
    return f"SELECT step, logged, {columns} FROM {table} WHERE step BETWEEN ? AND ?{only_rank_0}"


def _driver(driver: dict[str, Any]) -> Driver:
    # float() also reads the strings that stand for NaN and the infinities
    return Driver(driver.pop("stream"), **{name: float(value) for name, value in driver.items()})
