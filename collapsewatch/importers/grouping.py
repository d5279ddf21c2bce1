"""Rows of tables as runs: several runs told apart by a column, and tables with one value per row made wide."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, pairwise
from typing import Any

from .columns import Columns, whole

Row = Mapping[str, Any]
Stepped = tuple[int | None, Row]

_RUNS = frozenset(
    {"run", "run_name", "run_id", "seed", "arm", "trial", "variant", "condition", "method", "algo", "algorithm"}
    | {"experiment", "experiment_name", "exp", "exp_name", "exp_id", "config", "model", "model_name", "policy"}
)
"""Names of columns that tell runs apart, if the steps of their values overlap."""
_NAMES = ("metric", "tag", "key", "name", "variable", "metric_name")
_VALUES = ("value", "val", "metric_value")


def by_run(rows: Iterable[Row], columns: Columns) -> dict[str, Iterable[Stepped]]:
    """The rows of each run with their steps, by what its columns of runs say; '' where there is one run.

    Without such a column the rows stay the iterator they are.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return {"": ()}
    rows = chain([first], rows)
    step = columns.step(first)
    told = long_to_wide(first)
    naming = [name for name in first if name.lower() in _RUNS]
    if not naming:
        return {"": _wide(rows, step, *told) if told else _stepped(rows, step)}
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(str(row.get(name)) for name in naming)].append(row)
    differ = [i for i, name in enumerate(naming) if len({values[i] for values in groups}) > 1]
    if not differ or not _overlap([[whole(row.get(step)) for row in own] for own in groups.values() if step]):
        return by_run(_without((row for own in groups.values() for row in own), naming), columns)
    return {
        "/".join(_label(naming[i], values[i]) for i in differ): by_run(_without(own, naming), columns)[""]
        for values, own in groups.items()
    }


def trainer_steps(rows: Iterable[Stepped], columns: Columns) -> list[Stepped]:
    """A tracker's rows by the trainer's own steps, if any row tells one; the tracker itself counts its calls."""
    told = [(counted, columns.step(row), row) for counted, row in rows]
    if not any(name for _, name, _ in told):
        return [(counted, row) for counted, _, row in told]
    return [(whole(row[name]) if name else None, row) for _, name, row in told]


def plain(row: Row) -> dict[str, Any]:
    """The values of a row that may be numbers: no tables, pictures and texts, which trackers log as well."""
    return {name: v for name, v in row.items() if isinstance(v, (int, float)) or (isinstance(v, str) and len(v) < 32)}


def long_to_wide(header: Collection[str]) -> tuple[str, str] | None:
    """The columns of the names and of the values of metrics, in a table that has one value per row."""
    lower = {name.lower(): name for name in header}
    name = next((lower[n] for n in _NAMES if n in lower), None)
    value = next((lower[v] for v in _VALUES if v in lower), None)
    return (name, value) if name and value else None


def _wide(rows: Iterable[Row], step: str | None, name: str, value: str) -> Iterator[Stepped]:
    steps: dict[int | None, dict[str, Any]] = defaultdict(dict)
    for at, row in _stepped(rows, step):
        steps[at][str(row.get(name))] = row.get(value)
    yield from sorted(steps.items(), key=lambda item: -1 if item[0] is None else item[0])


def _stepped(rows: Iterable[Row], step: str | None) -> Iterator[Stepped]:
    return ((whole(row.get(step)) if step else None, row) for row in rows)


def _without(rows: Iterable[Row], names: Collection[str]) -> Iterator[Row]:
    return ({name: value for name, value in row.items() if name not in names} for row in rows)


def _overlap(groups: Iterable[list[int | None]]) -> bool:
    """Do the steps of the groups overlap? Where they do not, a run was resumed under another name."""
    spans = sorted((min(told), max(told)) for own in groups if (told := [s for s in own if s is not None]))
    return any(before[1] >= after[0] for before, after in pairwise(spans)) or not spans


def _label(column: str, value: str) -> str:
    """What to call a run by one column's value: a bare number says too little.

    >>> _label("seed", "3"), _label("arm", "baseline")
    ('seed3', 'baseline')
    """
    return column + value if value.replace(".", "").isdecimal() else value
