"""What a record becomes in the tables: the one place where dataclasses turn into rows, then into Arrow."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from .database import arrow_schemas
from .records import Alarm, Applied, Event, Evidence, StepRecord, TokenView

Rows = Iterable[Mapping[str, Any]]
Item = StepRecord | Evidence | Alarm | Applied | Event | tuple[int, TokenView] | tuple[str, Rows]
"""What the store takes: a record, a view with its step, or a table's name with rows (column -> value)."""


def to_arrow(item: Item, rank: int, logged: int) -> list[tuple[str, Any]]:
    """The record batches that an item becomes, with their tables; `logged` stamps those of a StepRecord.

    Raises:
        ValueError: an unknown table or column; TypeError or pa.ArrowException: a value of the wrong type.
    """
    batches = [(table, _batch(table, rows)) for table, rows in _rows_of(item, rank, logged)]
    return [(table, batch) for table, batch in batches if batch.num_rows]


def _rows_of(item: Item, rank: int, logged: int) -> Iterator[tuple[str, Rows]]:
    match item:
        case StepRecord(step=step):
            mark = {"step": step, "rank": rank, "logged": logged}
            yield "steps", [mark | {"time": item.time}]
            yield "metrics", [mark | {"metric": k, "value": float(v)} for k, v in item.metrics.items()]
            yield "control", [mark | _fields(row) for row in item.control]
            yield "turns", [mark | _fields(row) for row in item.turns]
            yield "rollouts", [mark | _fields(row) for row in item.rollouts]
            if rank == 0:
                del mark["rank"]
                yield "observations", [mark | _fields(row) for row in item.observations]
        case (int(step), TokenView() as view):
            yield "tokens", [{"step": step, "rank": rank, "logged": logged, **_fields(view)}]
        case (str(table), rows):
            stamped = "logged" in arrow_schemas().get(table, pa.schema([])).names
            yield table, [{"logged": logged, **row} for row in rows] if stamped else rows
        case _ if rank:
            return
        case Evidence(step=step, detector=detector):
            head = {"step": step, "detector": detector}
            whole = {"stream": "", "log_e": item.log_e, "log_bound": item.log_bound}
            yield "evidence", [head | whole, *(head | _fields(driver) for driver in item.drivers)]
        case Alarm():
            drivers = strict_json([_fields(driver) for driver in item.drivers])
            yield "alarms", [_fields(item) | {"tier": str(item.tier), "drivers": drivers}]
        case Applied():
            yield "interventions", [_fields(item) | {"detail": strict_json(item.detail)}]
        case Event():
            yield "events", [_fields(item)]


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


def _batch(table: str, rows: Rows) -> Any:
    schema = arrow_schemas().get(table)
    if schema is None:
        raise ValueError(f"table: got {table!r}, expected one of {', '.join(arrow_schemas())}")
    ready = [{name: _storable(value) for name, value in row.items()} for row in rows]
    unknown = {name for row in ready for name in row} - set(schema.names)
    if unknown:
        raise ValueError(f"{table}: got column {min(unknown)!r}, expected some of {', '.join(schema.names)}")
    return pa.RecordBatch.from_pylist(ready, schema=schema)


def _storable(value: Any) -> Any:
    """Text without lone surrogates, which UTF-8 cannot hold (a model may sample them as JSON escapes)."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, tuple) and value and isinstance(value[0], str):
        return [_storable(part) for part in value]
    return value


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON as every reader takes it: NaN and infinities, which JSON cannot hold, as strings that `float` reads."""
    return json.dumps(_plain(value), allow_nan=False, indent=indent)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy and torch
        value = value.tolist()
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {str(key): _plain(part) for key, part in value.items()}
        case list() | tuple():
            return [_plain(part) for part in value]
    return str(value)
