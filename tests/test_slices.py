"""What a page draws of a run: bounded, its spikes kept, checked against a slow second computation."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsewatch.queries import Run, RunError, open_run
from collapsewatch.reading import COLUMNS, Condition, replays, rollout, rollouts
from collapsewatch.slices import HAZARDS, ILLEGAL, end_of, levels, metric_lines, points, turns
from collapsewatch.store import Store
from tests.dashboard_runs import ONSET, log, record

REWARD = metric_lines(("reward",))
STEPS = 7000


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, np.ndarray]:
    """A run of 7,000 random rewards with gaps, written as a merger would have."""
    path = tmp_path_factory.mktemp("long")
    store = Store(path)
    store.log_step(record(1))
    store.close()
    values = np.random.default_rng(0).normal(size=STEPS)
    values[100:120] = np.nan
    values[5000] = 40.0
    with duckdb.connect(str(path / "run.duckdb")) as con:
        con.execute("DELETE FROM metrics; DELETE FROM steps")
        listed = "SELECT unnest(range(1, $n + 1)) AS step, unnest($values) AS value"
        sql = f"INSERT INTO metrics SELECT step, 0, 'reward', value, step FROM ({listed})"
        con.execute(sql, {"n": STEPS, "values": values.tolist()})
    return open_run(path), values


@settings(deadline=None, max_examples=40)  # a query each
@given(st.integers(1, STEPS), st.integers(0, STEPS))
def test_the_extremes_of_every_bucket_are_drawn(long_run: tuple[Run, np.ndarray], first: int, length: int) -> None:
    run, values = long_run
    last = min(STEPS, first + length)
    drawn = points(run, REWARD, (0, end_of(run, "metrics")), (first, last))
    width = last - first + 1
    expected: set[tuple[int, float | None]] = set()
    for bucket in range(REWARD.buckets):
        # Of integer steps those with (step - first) * buckets // width == bucket.
        steps = range(first + -(-bucket * width // REWARD.buckets), first + -(-(bucket + 1) * width // REWARD.buckets))
        finite = [(values[s - 1], s) for s in steps if s <= last and math.isfinite(values[s - 1])]
        if finite:
            expected |= {(s, float(v)) for v, s in (min(finite), max(finite))}
        elif len(steps):
            expected.add((steps[0], None))
    assert {(p.step, p.value) for p in drawn} == expected
    assert [p.step for p in drawn] == sorted(p.step for p in drawn)


def test_cells_stand_side_by_side_and_keep_their_highest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    log(store, 1, 600, broken=True)
    store.close()
    drawn = points(open_run(tmp_path), ILLEGAL, (0, 10**9))
    by_name = {name: [p for p in drawn if p.name == name] for name in {p.name for p in drawn}}
    columns = {name: [p.step for p in found] for name, found in by_name.items()}
    assert len(set(map(tuple, columns.values()))) == 1
    assert len(columns["illegal:<tool_call>@text"]) == ILLEGAL.buckets
    hazard = {
        s: next(c.hazard for c in record(s, True).control if (c.token, c.slot) == ("<tool_call>", "text"))
        for s in range(1, 601)
    }
    assert max(p.value or 0 for p in by_name["illegal:<tool_call>@text"]) == max(hazard.values())
    assert "illegal:<tool_call>@start" not in by_name  # it is legal there


def test_only_the_hazards_of_whole_tokens_are_lines(tmp_path: Path) -> None:
    store = Store(tmp_path)
    log(store, 1, 2)
    store.close()
    names = {p.name for p in points(open_run(tmp_path), HAZARDS, (0, 99))}
    assert names == {o.stream for o in record(1).observations} - {"hazard@text", "polluted"}


def test_turns_are_counted_once_and_as_last_logged(tmp_path: Path) -> None:
    for last in (20, 20):  # resumed: every step is logged again
        store = Store(tmp_path)
        log(store, 1, last, broken=True)
        store.close()
    found = turns(open_run(tmp_path), 3, 18)
    by_turn, reasons, flow = Counter[Any](), Counter[Any](), Counter[Any]()
    for step in range(3, 19):
        for r in (0, 1):
            own = [t for t in record(step, broken=True).turns if t.rollout == r]
            by_turn.update((t.turn, t.structure) for t in own)
            reasons.update((t.structure, t.reason) for t in own if t.reason != "ok")
            flow.update(
                (a, b)
                for a, b in zip([t.structure for t in own], [*[t.structure for t in own[1:]], "end"], strict=True)
            )
    assert (found.by_turn, found.reasons, found.flow) == (by_turn, reasons, flow)
    assert turns(open_run(tmp_path), 90, 99).by_turn == {}


def test_levels_before_and_after(tmp_path: Path) -> None:
    store = Store(tmp_path)
    log(store, 1, 30, broken=True)
    store.close()
    spans = [(1, ONSET), (ONSET + 1, 30), (90, 99)]
    found = levels(open_run(tmp_path), ["reward", "hazard", "nothing"], spans)
    for index, (a, b) in enumerate(spans[:2]):
        rows = [record(step, broken=True) for step in range(a, b + 1)]
        assert found["reward"][index] == pytest.approx(np.mean([row.metrics["reward"] for row in rows]))
        streams = [o.value for row in rows for o in row.observations if o.stream == "hazard"]
        assert found["hazard"][index] == pytest.approx(np.mean(streams))
    assert found["reward"][2] is None and found["nothing"] == [None, None, None]


@pytest.fixture(scope="module")
def read_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("read")
    store = Store(path)
    log(store, 1, 24, broken=True)
    store.close()
    return open_run(path)


@settings(deadline=None, max_examples=60)  # two queries each
@given(
    st.sampled_from(["reward", "hazard", "step", "advantage"]),
    st.sampled_from(["lessThan", "greaterThanOrEqual", "equals", "notEqual"]),
    st.integers(0, 24).map(lambda n: n / 4),
    st.sampled_from(["hazard", "reward", "step"]),
    st.booleans(),
)
def test_the_table_is_filtered_and_ordered(
    read_run: Run, column: str, operator: str, value: float, by: str, down: bool
) -> None:
    rows = [
        {"step": s, "rank": 0, **{n: getattr(r, n) for n in ("rollout", "reward", "advantage", "hazard")}}
        for s in range(1, 25)
        for r in record(s, broken=True).rollouts
    ]
    test = {
        "lessThan": float.__lt__,
        "greaterThanOrEqual": float.__ge__,
        "equals": float.__eq__,
        "notEqual": float.__ne__,
    }
    kept = [row for row in rows if test[operator](float(row[column]), value)]
    kept.sort(key=lambda row: ((-1 if down else 1) * row[by], -row["step"], row["rollout"]))
    page = rollouts(read_run, [Condition(column, operator, value)], [(by, down)], 3, 7)
    assert page.total == len(kept)
    assert [(row["step"], row["rollout"]) for row in page.rows] == [(row["step"], row["rollout"]) for row in kept[3:10]]


def test_the_table_tells_what_was_kept_and_why_turns_broke(read_run: Run) -> None:
    page = rollouts(read_run, [Condition("kept", "equals", "tokens")], count=99)
    assert [row["step"] for row in page.rows] == [24, 20, 16, 12, 8, 4]
    assert set(page.rows[0]) == set(COLUMNS)
    assert (page.rows[0]["reasons"], page.rows[-1]["reasons"]) == ("symbols_only", None)
    assert rollouts(read_run, [Condition("structure", "contains", "COLL")]).total == 2 * sum(
        s >= ONSET + 3 for s in range(25)
    )
    assert rollouts(read_run, [Condition("step", "inRange", 3, 5)]).total == 6
    assert rollouts(read_run, steps=(3, 5)).total == 6


@pytest.mark.parametrize("bad", ['step" OR 1=1 --', "text", "prompt", "", "logged"])
def test_no_name_reaches_the_database_unchecked(read_run: Run, bad: str) -> None:
    for refused in (
        lambda: rollouts(read_run, [Condition(bad, "equals", 1)]),
        lambda: rollouts(read_run, order=[(bad, True)]),
    ):
        with pytest.raises(RunError, match="expected one of"):
            refused()
    with pytest.raises(RunError, match="got operator"):
        rollouts(read_run, [Condition("step", bad, 1)])
    assert rollouts(read_run, [Condition("structure", "equals", "' OR 1=1 --")]).total == 0


def test_one_rollout_and_the_same_prompt_again(read_run: Run) -> None:
    found = rollout(read_run, 8, 0, 0)
    assert found is not None and found["view"]["piece"][0] == "<tool_call>" and len(found["parts"]) == 2
    other = rollout(read_run, 8, 0, 1)
    assert other is not None and other["view"] is None and "text 1" in other["text"]
    assert rollout(read_run, 8, 0, 7) is None
    again = replays(read_run, 8, 0, 0)
    assert sorted({row["step"] for row in again}) == [4, 8, 12, 16, 20, 24]
