"""Rollouts to read: a page of them out of millions, one of them token by token, the same prompt at other steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .queries import Run, RunError

COLUMNS = (
    *("step", "rank", "rollout", "group", "reward", "advantage", "turns", "tokens", "calls", "env_errors"),
    *("structure", "reasons", "hazard", "kept", "prompt"),
)
"""What is told of each rollout: `reasons` of its turns that are not sound, `kept` what else there is to see of it."""

_VALID = "SELECT step, rank, max(logged) AS logged FROM steps GROUP BY ALL"
_ALL = f"""
    SELECT r.step, r.rank, r.rollout, r."group", r.reward, r.advantage, r.turns, r.tokens, r.calls, r.env_errors,
        r.structure, r.hazard, r.prompt,
        if(k.step IS NOT NULL, 'tokens', if(r.text <> '', 'text', '')) AS kept
    FROM rollouts AS r JOIN ({_VALID}) AS valid USING (step, rank)
    LEFT JOIN (SELECT DISTINCT step, rank, rollout FROM tokens) AS k USING (step, rank, rollout)
    WHERE r.logged >= valid.logged
"""
_REASONS = """(
    SELECT string_agg(DISTINCT reason, ', ' ORDER BY reason) FROM turns AS t
    WHERE (t.step, t.rank, t.rollout) = (shown.step, shown.rank, shown.rollout) AND reason <> 'ok'
)"""
_OPERATORS = {
    "equals": "=",
    "notEqual": "<>",
    "lessThan": "<",
    "lessThanOrEqual": "<=",
    "greaterThan": ">",
    "greaterThanOrEqual": ">=",
}
COMPARED = (*_OPERATORS, "inRange")
"""What a number may be asked for."""

_FILTERED = frozenset(COLUMNS) - {"reasons", "prompt"}
_TEXT = 200_000
"""Characters of a text that are shown."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What a column of `COLUMNS` must be; `operator` as a grid names it: `equals`, `lessThan`, `contains`, ..."""

    column: str
    operator: str
    value: str | float
    end: float | None = None  # of `inRange`


@dataclass(frozen=True, slots=True)
class Page:
    """Some rollouts, a dict of `COLUMNS` each, and how many there are in all."""

    rows: list[dict[str, Any]]
    total: int


def rollouts(
    run: Run,
    conditions: Sequence[Condition] = (),
    order: Sequence[tuple[str, bool]] = (),
    start: int = 0,
    count: int = 100,
    steps: tuple[int, int] = (0, 2**53),
) -> Page:
    """Rollouts of all ranks, `count` from `start` on, ordered by columns (name, descending?), else the newest first.

    Raises:
        RunError: no such column or operator, or the run cannot be read.
    """
    params: dict[str, Any] = {"first": steps[0], "last": steps[1]}
    where = ["step BETWEEN $first AND $last"]
    for index, condition in enumerate(conditions):
        where.append(_sql(condition, f"v{index}", params))
    for name, _ in order:
        _known(name)
    by = [f'"{name}" {"DESC" if down else "ASC"} NULLS LAST' for name, down in order] + ["step DESC", "rank", "rollout"]
    found = f"SELECT * FROM ({_ALL}) WHERE {' AND '.join(where)}"
    (total,) = run.query(f"SELECT count(*) FROM ({found})", params).rows[0]
    sql = f"""SELECT * EXCLUDE prompt, left(prompt, 200) AS prompt, {_REASONS} AS reasons FROM (
        {found} ORDER BY {", ".join(by)} LIMIT {int(count)} OFFSET {int(start)}
    ) AS shown ORDER BY {", ".join(by)}"""
    table = run.query(sql, params)
    return Page([dict(zip(table.columns, row, strict=True)) for row in table.rows], total)


def rollout(run: Run, step: int, rank: int, number: int) -> dict[str, Any] | None:
    """One rollout: its row with `text`, its `parts` (a dict per turn), and `view` token by token if that was kept.

    None when there is no such rollout. Of a step logged twice the last.
    """
    key = {"step": step, "rank": rank, "rollout": number}
    where = "step = $step AND rank = $rank AND rollout = $rollout"
    row = _first(run, f"SELECT *, left(text, {_TEXT}) AS text FROM rollouts WHERE {where} ORDER BY logged DESC", key)
    if row is None:
        return None
    at = {**key, "logged": row["logged"]}
    sql = f"SELECT turn, structure, reason, stop, tokens, calls, hazard FROM turns WHERE {where} AND logged = $logged"
    parts = run.query(f"{sql} ORDER BY turn", at)
    row["parts"] = [dict(zip(parts.columns, part, strict=True)) for part in parts.rows]
    row["view"] = _first(run, f"SELECT * FROM tokens WHERE {where} AND logged >= $logged ORDER BY logged DESC", at)
    return row


def replays(run: Run, step: int, rank: int, number: int, limit: int = 200) -> list[dict[str, Any]]:
    """The rollouts of the same prompt at all steps of which text or tokens were kept, by step; at most `limit`."""
    sql = f"""
        WITH kept AS ({_ALL})
        SELECT step, rank, rollout, reward, structure, kept FROM kept
        WHERE kept <> '' AND prompt <> '' AND prompt = (
            SELECT any_value(prompt) FROM kept WHERE step = $step AND rank = $rank AND rollout = $rollout
        ) ORDER BY step, rank, rollout LIMIT {int(limit)}
    """
    table = run.query(sql, {"step": step, "rank": rank, "rollout": number})
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def _first(run: Run, sql: str, params: Mapping[str, Any]) -> dict[str, Any] | None:
    table = run.query(f"{sql} LIMIT 1", params)
    return dict(zip(table.columns, table.rows[0], strict=True)) if table.rows else None


def _known(name: str) -> None:
    if name not in _FILTERED:
        raise RunError(f"rollouts: got column {name!r}, expected one of {', '.join(sorted(_FILTERED))}")


def _sql(condition: Condition, name: str, params: dict[str, Any]) -> str:
    _known(condition.column)
    column, params[name] = f'"{condition.column}"', condition.value
    if condition.operator == "inRange":
        params[f"{name}b"] = condition.end
        return f"{column} BETWEEN ${name} AND ${name}b"
    if condition.operator == "contains":
        return f"contains(lower({column}::VARCHAR), lower(${name}::VARCHAR))"
    if condition.operator not in _OPERATORS:
        raise RunError(f"rollouts: got operator {condition.operator!r}, expected {', '.join(COMPARED)}, contains")
    return f"{column} {_OPERATORS[condition.operator]} ${name}"
