"""Parquet files row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .base import ImportFailed
from .source import Source

_BROKEN = (pa.ArrowException, OSError, UnicodeError)  # names and texts are decoded only when somebody asks for them


def columns(source: Source) -> set[str]:
    """The names of the columns; none where it is no such file."""
    try:
        return set(pq.read_schema(source.path).names)
    except _BROKEN:
        return set()


def rows(source: Source) -> Iterator[dict[str, Any]]:
    """The rows, some at a time.

    Raises:
        ImportFailed: the file is broken.
    """
    try:
        with pq.ParquetFile(source.path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except _BROKEN as error:
        raise ImportFailed(f"{source.name}: got a broken Parquet file ({error}), expected a whole one") from error
