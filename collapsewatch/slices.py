"""What a page draws of a run, bounded whatever the run's length: thinned lines whose spikes survive, and counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .queries import Run
from .records import SLOTS

EVERY_STEP = 2**53
"""The end of a range of steps that has none."""

_PLAIN_HAZARD = " AND ".join(f"NOT ends_with(stream, '@{slot}')" for slot in SLOTS)


class Point(NamedTuple):
    """One point of a line; `value` is None where the run logged no finite number."""

    name: str
    step: int
    value: float | None


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines in one table: `name` in SQL out of the columns `keys`, and of a bucket of steps what is kept.

    `keep` is the lowest and the highest value (`both`), or the one of them that matters.
    """

    table: str
    keys: str
    name: str
    value: str
    where: str = "true"
    keep: str = "both"
    buckets: int = 500


def metric_lines(metrics: tuple[str, ...], prefix: str = "") -> Lines:
    """Metrics of rank 0, by their names; with a `prefix` those that begin with it, too: one scan of a long table."""
    listed = ", ".join(f"'{name}'" for name in metrics)
    begun = f" OR starts_with(metric, '{prefix}')" if prefix else ""
    return Lines("metrics", "metric", "metric", "value", f"rank = 0 AND (metric IN ({listed}){begun})")


_OURS = "rank = 0 AND probe = 'policy'"
HAZARDS = Lines("observations", "stream", "stream", "value", f"starts_with(stream, 'hazard') AND {_PLAIN_HAZARD}")
EVIDENCE = Lines("evidence", "detector", "'evidence:' || detector", "log_e - log_bound", "stream = ''")
_CELL = "token || '@' || slot"
ILLEGAL = Lines(
    "control", "token, slot", f"'illegal:' || {_CELL}", "hazard", f"NOT legal AND {_OURS}", keep="max", buckets=250
)
LEGAL = Lines("control", "token, slot", f"'legal:' || {_CELL}", "mean", f"legal AND {_OURS}", keep="min", buckets=250)
PRESSURE = "logit_pressure/"
"""Begins metrics: the policy gradient's push on a token's logit, where it was drawn (`self`) and where it was not."""


def end_of(run: Run, table: str) -> int:
    """The place behind a table's last row: what comes later has it or a higher one."""
    end: int = run.lasting(table, "SELECT coalesce(max(_row) + 1, 0) FROM rows").rows[0][0]
    return end


def points(run: Run, lines: Lines, rows: tuple[int, int], steps: tuple[int, int] = (0, EVERY_STEP)) -> list[Point]:
    """The points of lines in a range of rows (without its end) and of steps (with it), in the order logged.

    Of each of `lines.buckets` equal ranges of steps the extremes stay where they were, or a gap when nothing in it was
    finite; a single extreme stands at the range's first step.
    """
    params = {"row": rows[0], "end": rows[1], "first": steps[0], "last": steps[1]}
    low, high = run.lasting(lines.table, f"SELECT min(step), max(step) FROM rows WHERE {_RANGE}", params).rows[0]
    if low is None:
        return []
    finite = f"if(isfinite({lines.value}), {lines.value}, NULL)"
    source = f"SELECT _row, step, {lines.keys}, {finite} AS v FROM rows WHERE {_RANGE} AND {lines.where}"
    ends = {"both": ("min", "max"), "min": ("min",), "max": ("max",)}[lines.keep]
    kept = ", ".join(f"arg_{end}(step, v) AS {end}_step, {end}(v) AS {end}_v" for end in ends)
    sql = f"""
        SELECT {lines.name} AS name, bucket, * EXCLUDE ({lines.keys}, bucket, first_row) FROM (
            SELECT {lines.keys}, (step - $low) * $buckets // ($high - $low + 1) AS bucket, min(_row) AS first_row,
                min(step) AS first_step, {kept}
            FROM ({source}) GROUP BY {lines.keys}, bucket
        ) ORDER BY first_row, name
    """
    found = run.lasting(lines.table, sql, {**params, "low": low, "high": high, "buckets": lines.buckets}).rows
    if lines.keep != "both":  # cells of one picture: at the beginning of the bucket, in which they stand side by side
        width = high - low + 1
        begin = [low - (-bucket * width // lines.buckets) for bucket in range(lines.buckets)]
        return [Point(name, begin[bucket], value) for name, bucket, _, _, value in found]
    return [point for name, _, first, *extremes in found for point in _flat(name, first, extremes)]


_RANGE = "_row >= $row AND _row < $end AND step BETWEEN $first AND $last"


def _flat(name: str, first: int, extremes: list[Any]) -> list[Point]:
    ends = {(step, value) for step, value in zip(extremes[::2], extremes[1::2], strict=True) if step is not None}
    return [Point(name, step, value) for step, value in sorted(ends)] or [Point(name, first, None)]


@dataclass(frozen=True, slots=True)
class Turns:
    """How many turns of a range of steps are in which state: by index in the rollout, by reason, and what follows.

    `by_turn` is (index, structure) -> turns, `reasons` (structure, reason) -> turns without the sound ones, `flow`
    (structure, structure of the next turn, or "end") -> turns.
    """

    by_turn: dict[tuple[int, str], int]
    reasons: dict[tuple[str, str], int]
    flow: dict[tuple[str, str], int]


def turns(run: Run, first: int, last: int, deepest: int = 20) -> Turns:
    """The turns of all ranks from step `first` to `last`; indices from `deepest` on are counted together."""
    valid = """(SELECT t.* FROM turns AS t JOIN (
        SELECT step, rank, max(logged) AS logged FROM steps WHERE step BETWEEN $first AND $last GROUP BY ALL
    ) AS valid USING (step, rank) WHERE t.step BETWEEN $first AND $last AND t.logged >= valid.logged)"""
    steps = {"first": first, "last": last}
    by_turn = f"SELECT least(turn, {deepest}), structure, count(*) FROM {valid} GROUP BY ALL"
    reasons = f"SELECT structure, reason, count(*) FROM {valid} WHERE reason <> 'ok' GROUP BY ALL"
    flow = f"""SELECT structure, coalesce(next, 'end'), count(*) FROM (
        SELECT structure, lead(structure) OVER (PARTITION BY step, rank, rollout ORDER BY turn) AS next FROM {valid}
    ) GROUP BY ALL"""
    return Turns(*({(a, b): n for a, b, n in run.query(sql, steps).rows} for sql in (by_turn, reasons, flow)))


def levels(run: Run, names: Sequence[str], spans: Sequence[tuple[int, int]]) -> dict[str, list[float | None]]:
    """The mean of each metric of rank 0 or observed stream over each span of steps (with its end); None without any."""
    sql = """
        SELECT name, avg(value) FROM (
            SELECT step, metric AS name, value FROM metrics WHERE rank = 0
            UNION ALL SELECT step, stream, value FROM observations
        ) WHERE step BETWEEN $first AND $last AND list_contains($names, name) AND isfinite(value) GROUP BY name
    """
    found = [dict(run.query(sql, {"first": a, "last": b, "names": list(names)}).rows) for a, b in spans]
    return {name: [part.get(name) for part in found] for name in names}
