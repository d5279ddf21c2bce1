"""trackio's local store, a database per project, and the Parquet file it makes of one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, ClassVar

from . import parquet
from .base import Imported, Importer, NoTraining
from .columns import Columns, whole
from .grouping import Stepped, plain, trainer_steps
from .source import Source, parse
from .sqlite import columns, opened

_COLUMNS = {"run_name", "step", "timestamp"}
_UNLOGGED = frozenset({"id", "log_id", "run_id", "space_id", *_COLUMNS})
_Row = tuple[str, str, int | None, dict[str, Any]]


class Trackio(Importer):
    """Reads every run of the project; the step is the trainer's own where a row has it, else trackio's."""

    source: ClassVar[str] = "trackio"

    def sniff(self, source: Source) -> bool:
        if source.suffix == ".parquet":
            return parquet.columns(source) >= _COLUMNS
        return source.suffix == ".db" and {"metrics", *_COLUMNS} <= columns(source.path, "metrics")

    def read(self, source: Source) -> list[Imported]:
        runs: dict[tuple[str, str], list[Stepped]] = defaultdict(list)
        for key, name, count, row in _parquet(source) if source.suffix == ".parquet" else _database(source):
            runs[key, name].append((count, plain(row)))
        names = [name for _, name in runs]
        found: list[Imported] = []
        for (key, name), rows in runs.items():
            label = f"{source.stem}/{name}" + (f"-{key[:8]}" if names.count(name) > 1 else "")
            try:
                found.append(self.scalars(source, trainer_steps(rows, Columns(self.options.names)), label))
            except NoTraining:
                continue
        if not found:
            raise NoTraining(f"{source.name}: got {len(runs)} runs without a metric of training, expected one with")
        return found


def _database(source: Source) -> Iterator[_Row]:
    key = "run_id" if "run_id" in columns(source.path, "metrics") else "run_name"  # older ones have no ids
    with opened(source.path) as db:
        for run, name, step, raw in db.execute(f"SELECT {key}, run_name, step, metrics FROM metrics ORDER BY id"):
            row = parse(raw if isinstance(raw, str) else bytes(raw or b"").decode("utf-8", "replace"))
            if isinstance(row, dict):
                yield str(run), str(name), whole(step), row


def _parquet(source: Source) -> Iterator[_Row]:
    for row in parquet.rows(source):
        values = {n: v for n, v in row.items() if n not in _UNLOGGED and v is not None}
        yield str(row.get("run_id")), str(row["run_name"]), whole(row["step"]), values
