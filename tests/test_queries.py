from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from collapsewatch import queries
from collapsewatch.database import SCHEMA, arrow_schemas
from collapsewatch.journal import segments
from collapsewatch.queries import Run, RunError, find_runs, open_run
from collapsewatch.records import (
    ControlRow,
    Event,
    Observation,
    RolloutRow,
    StepRecord,
    TurnRow,
)
from collapsewatch.store import Store


def record(step: int) -> StepRecord:
    return StepRecord(
        step,
        1e9 + step,
        {"reward": step / 3, "entropy": -step / 7},
        (Observation("polluted", step / 11, 8, 0.1), Observation("a", 0.0, 8)),
        (
            ControlRow(
                "<tool_call>",
                "text",
                False,
                100,
                0.1,
                0.0,
                0.5,
                0.9,
                0.2,
                10.0,
                step,
                0.3,
                (60, 40),
                (0.1, 0.2),
                0.5,
                -0.5,
                "fixed",
            ),
        ),
        (TurnRow(0, 0, "tool_call", "ok", "eos", 17, 1, 0.0), TurnRow(1, 0, "response", "ok", "eos", 9, 0, 0.5)),
        (RolloutRow(0, 0, 1.0, 0.5, 1, 17, 1, 0, "tool_call", 0.0, "prompt", f"text {step}"),),
    )


def bare(item: StepRecord) -> StepRecord:
    return StepRecord(item.step, item.time, item.metrics, item.observations)


def write(run_dir: Path, steps: Iterator[int] | range, *events: str) -> None:
    store = Store(run_dir)
    for step in steps:
        store.log_step(record(step))
    for event in events:
        store.log_event(Event(0, 0.0, event))
    store.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    write(tmp_path / "run", range(1, 11), "started")
    run = open_run(tmp_path / "run")
    yield run
    run.close()


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One run for all attempts to break out of it."""
    path = tmp_path_factory.mktemp("attacked")
    write(path, range(1, 4), "started")
    run = open_run(path)
    yield run
    run.close()


def test_records_with_and_without_detail_over_several_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "_STEPS_PER_READ", 4)
    monkeypatch.setattr(queries, "_STEPS_PER_DETAILED_READ", 3)
    steps = [5, 1, 2, 3, 4, 30, 7, 8, 9, 10]
    write(tmp_path, iter(steps))
    run = open_run(tmp_path / "run.duckdb")
    assert (run.path, run.name, run.last_step()) == (tmp_path, tmp_path.name, 30)
    assert list(run.records()) == [bare(record(step)) for step in sorted(steps)]
    assert list(run.records(detail=True)) == [record(step) for step in sorted(steps)]
    first = next(iter(run.records()))  # a reader that stops early holds nothing
    assert first.step == 1
    write(tmp_path, range(31, 32))
    assert run.last_step() == 31
    run.close()


def test_a_resumed_run_gives_the_last_logging_of_each_step_and_nothing_of_the_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in (1, 2, 3):
        store.log_step(record(step))
    store.close()
    again = [StepRecord(3, 5.0, {"entropy": 1.0}), StepRecord(2, 6.0), StepRecord(2, 7.0, {"x": 2.0})]
    store = Store(tmp_path)
    for item in again:
        store.log_step(item)
    store.close()
    run = open_run(tmp_path)
    assert list(run.records(detail=True)) == [record(1), again[2], again[0]]
    assert run.series("reward").step == [1]
    assert run.series("entropy").mean == [-1 / 7, 1.0]
    run.close()


def test_metrics_known_after_their_step_join_its_last_logging(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for value in (1.0, 2.0):  # step 1 is logged twice
        store.log_step(StepRecord(1, 0.0, {"reward": value}))
        store.append("metrics", [{"step": 1, "rank": 0, "metric": f"late{value:.0f}", "value": value}])
        store.append("metrics", [{"step": 1, "rank": 0, "metric": "loss", "value": value}])
        store.append("metrics", [{"step": 1, "rank": 1, "metric": "loss", "value": 9.0}])
    store.append("metrics", [{"step": 2, "rank": 0, "metric": "loss", "value": 3.0}])  # a step never measured
    store.close()
    run = open_run(tmp_path)
    assert list(run.records()) == [StepRecord(1, 0.0, {"reward": 2.0, "late2": 2.0, "loss": 2.0})]
    assert (run.series("loss").step, run.series("loss").mean) == ([1, 2], [2.0, 3.0])
    assert run.series("late1").step == []
    run.close()


def test_sql_sees_every_table_under_its_bare_name(run: Run) -> None:
    answer = run.query("SELECT step, value FROM metrics WHERE metric = $name AND step > 8", {"name": "reward"})
    assert (answer.columns, answer.rows) == (["step", "value"], [(9, 3.0), (10, 10 / 3)])
    assert run.query("FROM events SELECT name").rows == [("started",)]
    assert run.query("WITH a AS (SELECT ? AS x) SELECT x + 1 FROM a", [41]).rows == [(42,)]
    assert {row[0] for row in run.query("SHOW TABLES").rows} == set(arrow_schemas())
    assert run.query('SELECT count("group") FROM rollouts').rows == [(10,)]
    assert run.query("EXPLAIN SELECT 1").rows


@pytest.mark.parametrize(
    "sql",
    [
        "COPY metrics TO '{out}'",
        "COPY (SELECT 1) TO '{out}' (FORMAT csv)",
        "ATTACH '{out}'",
        "ATTACH '{db}' AS x",
        "DETACH d",
        "INSERT INTO metrics VALUES (1, 0, 'x', 1, 1)",
        "INSERT INTO d.metrics VALUES (1, 0, 'x', 1, 1)",
        "WITH x AS (INSERT INTO tail.events VALUES (1, 1, 'a', 'b') RETURNING *) SELECT * FROM x",
        "EXPLAIN ANALYZE INSERT INTO tail.events VALUES (1, 1, 'a', 'b')",
        "UPDATE d.metrics SET value = 0",
        "DELETE FROM d.metrics",
        "DROP TABLE d.metrics",
        "CREATE TABLE mine AS SELECT 1",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_text('{config}')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM run",  # a Python variable of this very test
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "PRAGMA enable_profiling",
        "INSTALL httpfs",
        "LOAD httpfs",
        "EXPORT DATABASE '{out}'",
        "IMPORT DATABASE '{out}'",
        "SELECT 1; SELECT 2",
        "ROLLBACK; INSERT INTO tail.events VALUES (1, 1, 'a', 'b')",
        "COMMIT",
        "SELEKT 1",
        "SELECT nothing FROM metrics",
        "SELECT ?",
        "",
        ";",
    ],
)
def test_sql_that_could_write_reach_out_or_fails_is_refused_in_one_line(
    attacked: Run, tmp_path: Path, sql: str
) -> None:
    run = attacked
    config = run.path / "config.toml"
    config.write_text("secret = 1")
    before = run.query("SELECT * FROM metrics").rows
    out = tmp_path / "out"
    with pytest.raises(RunError) as error:
        run.query(sql.format(out=out, db=run.path / "run.duckdb", config=config))
    assert str(error.value).startswith("query: ") and "\n" not in str(error.value)
    assert not out.exists()
    assert run.query("SELECT * FROM metrics").rows == before
    assert run.query("SELECT count(*) FROM events").rows == [(1,)]


def test_ctrl_c_in_the_middle_of_a_query_is_ctrl_c(run: Run) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run.query("SELECT max(hash(a.range + b.range)) FROM range(1000000) a, range(1000000) b")
    timer.join()
    assert run.query("SELECT 1").rows == [(1,)]


def test_a_view_planted_in_the_file_reaches_nothing_outside(run: Run) -> None:
    with duckdb.connect(str(run.path / "run.duckdb")) as con:
        con.execute("CREATE TABLE kept AS FROM events")
        con.execute("CREATE VIEW spy AS SELECT content AS detail FROM read_text('/etc/hostname')")
    for sql in ("FROM d.spy", "SELECT * FROM d.spy"):
        with pytest.raises(RunError, match="Permission Error"):
            run.query(sql)
    assert run.query("SELECT count(*) FROM d.kept").rows == [(1,)]


def test_status_is_what_the_run_said_last_or_whether_it_lives(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = open_run(tmp_path)
    assert run.status() == "running"
    for event, status in [
        ("started", "running"),
        ("mark", "running"),
        ("failed", "failed"),
        ("started", "running"),
        ("interrupted", "interrupted"),
        ("started", "running"),
        ("finished", "finished"),
    ]:
        store.log_event(Event(0, 0.0, event))
        store.flush(timeout=30)
        assert run.status() == status
    store.close()
    assert run.status() == "finished"
    write(tmp_path, range(1, 2), "started")
    assert run.status() == "stopped"
    run.close()


def test_a_live_run_is_read_to_the_last_flushed_row_without_being_touched(tmp_path: Path) -> None:
    store = Store(tmp_path, flush_s=0.01, merge_s=3600.0)
    for step in range(1, 6):
        store.log_step(record(step))
    assert store.flush(timeout=30)
    run = open_run(tmp_path)
    assert segments(tmp_path) != []
    assert list(run.records(detail=True)) == [record(step) for step in range(1, 6)]
    assert run.query("SELECT count(*) FROM steps").rows == [(5,)]
    assert run.since("steps") == ({name: [] for name in arrow_schemas()["steps"].names}, 0)
    store.log_step(record(6))
    assert store.flush(timeout=30)
    assert run.last_step() == 6
    store.close()
    assert list(run.records(detail=True)) == [record(step) for step in range(1, 7)]
    run.close()


def crashed(run_dir: Path) -> None:
    """Steps 1-3 merged, 4-6 left in the journals of two ranks, as a kill would leave them."""
    write(run_dir, range(1, 4))
    database = (run_dir / "run.duckdb").read_bytes()
    kept = []
    for rank in (0, 1):
        store = Store(run_dir, rank, merge_s=3600.0)
        for step in range(4, 7):
            store.log_step(record(step))
        assert store.flush(timeout=30)
        kept += [(path, path.read_bytes()) for path in segments(run_dir) if f"r{rank:05d}" in path.name]
        store.close()
    (run_dir / "run.duckdb").write_bytes(database)
    for path, data in kept:
        path.write_bytes(data)


def test_what_a_killed_writer_left_is_merged_once_on_opening(tmp_path: Path) -> None:
    crashed(tmp_path)
    for _ in range(2):
        run = open_run(tmp_path)
        assert segments(tmp_path) == []
        assert list(run.records()) == [bare(record(step)) for step in range(1, 7)]
        assert run.query("SELECT rank, count(*) FROM steps GROUP BY rank ORDER BY rank").rows == [(0, 6), (1, 3)]
        run.close()


def test_in_a_folder_that_cannot_be_written_it_is_read_from_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # chmod does not bind root, who may run these tests
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    run = open_run(tmp_path)
    assert list(run.records()) == [bare(record(step)) for step in range(1, 7)]
    merged, next_row = run.since("steps")
    assert (merged["step"], merged["rank"], next_row) == ([1, 2, 3, 4, 5, 6, 4, 5, 6], [0] * 6 + [1] * 3, 9)
    assert run.since("steps", 7)[0]["step"] == [5, 6]
    assert run.since("steps", 9) == ({name: [] for name in merged}, 9)
    run.close()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "run.duckdb").unlink()  # never made: killed before the first merge
    run = open_run(tmp_path)
    assert [item.step for item in run.records()] == [4, 5, 6]
    assert run.since("steps")[0]["step"] == [4, 5, 6, 4, 5, 6]
    run.close()


def test_since_follows_a_growing_run_without_gap_or_repetition(tmp_path: Path) -> None:
    store = Store(tmp_path, flush_s=0.005, merge_s=0.01)
    run = open_run(tmp_path)
    seen: list[Any] = []
    row = 0
    for step in range(1, 41):
        store.log_step(record(step))
        assert store.flush(timeout=30)
        part, row = run.since("metrics", row)
        seen += zip(part["step"], part["metric"], part["value"], strict=True)
    store.close()
    part, row = run.since("metrics", row)
    seen += zip(part["step"], part["metric"], part["value"], strict=True)
    assert seen == [(s, k, v) for s in range(1, 41) for k, v in record(s).metrics.items()]
    assert row == 80 and store.faults == {}
    with pytest.raises(RunError, match="got 'nothing', expected one of steps, metrics"):
        run.since("nothing")
    run.close()


READER = """
import sys
from collapsewatch.queries import open_run
run = open_run(sys.argv[1])
last, polls = 0, 0
while last < 200:
    steps = [record.step for record in run.records()]
    assert steps == list(range(1, len(steps) + 1)), steps
    assert len(steps) >= last
    last, polls = len(steps), polls + 1
print(polls)
"""


def test_another_process_reads_while_the_run_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path, flush_s=0.005, merge_s=0.02)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for step in range(1, 201):
        store.log_step(record(step))
        assert store.flush(timeout=30)
    out, err = reader.communicate(timeout=60)
    store.close()
    assert err == "" and int(out) > 0
    assert store.faults == {} and store.dropped == 0


@pytest.mark.parametrize("buckets", [1, 7, 64, 1000])
def test_series_keeps_spikes_and_agrees_with_numpy(tmp_path: Path, buckets: int) -> None:
    rng = np.random.default_rng(1)
    steps = np.sort(rng.choice(np.arange(10, 900), 300, replace=False))
    values = rng.normal(size=300)
    values[150], values[7] = 1e6, np.nan
    store = Store(tmp_path)
    for step, value in zip(steps.tolist(), values.tolist(), strict=True):
        store.log_step(StepRecord(step, 0.0, {"loss": value, "other": 1.0}, (Observation("s", value, 8),)))
    store.close()
    run = open_run(tmp_path)
    series = run.series("loss", buckets), run.series("s", buckets, table="observations")
    run.close()
    steps, values = np.delete(steps, 7), np.delete(values, 7)
    bucket = (steps - steps[0]) * buckets // (steps[-1] - steps[0] + 1)
    groups = [bucket == b for b in np.unique(bucket)]
    assert len(groups) <= buckets
    for found in series:
        assert found.step == [steps[g].min() for g in groups]
        assert found.min == [values[g].min() for g in groups]
        assert found.max == [values[g].max() for g in groups] and 1e6 in found.max
        np.testing.assert_allclose(found.mean, [values[g].mean() for g in groups])


def test_an_empty_run_answers_everything(tmp_path: Path) -> None:
    write(tmp_path, range(0))
    run = open_run(tmp_path)
    assert list(run.records(detail=True)) == [] and run.last_step() is None
    assert (run.alarms(), run.applied(), run.events()) == ([], [], [])
    assert run.series("reward") == queries.Series([], [], [], [])
    assert run.status() == "stopped"
    run.close()


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.duckdb").write_bytes(b"no database" * 1000)
    (tmp_path / "foreign").mkdir()
    with duckdb.connect(str(tmp_path / "foreign" / "run.duckdb")) as con:
        con.execute("CREATE TABLE metrics (name VARCHAR)")
    for name, message in [
        ("absent", "does not exist, expected a run folder or its run.duckdb"),
        ("empty", "expected a folder with run.duckdb or journal/ in it"),
        ("file.txt", "expected a folder with run.duckdb or journal/ in it"),
        ("broken", "not a valid DuckDB database file"),
        ("broken/run.duckdb", "not a valid DuckDB database file"),
        ("foreign", "run.duckdb: got no steps"),
    ]:
        with pytest.raises(RunError, match=message) as error:
            open_run(tmp_path / name)
        assert "\n" not in str(error.value)


def test_runs_are_found_at_any_depth_without_following_links(tmp_path: Path) -> None:
    names = ["a", "b/c/d", "it's e", "a/nested"]
    for name in names:
        write(tmp_path / name, range(1, 2))
    (tmp_path / "b" / "run.duckdb.txt").write_text("x")
    (tmp_path / "journal").mkdir()  # somebody's diary
    killed = tmp_path / "killed"
    store = Store(killed)
    (killed / "run.duckdb").unlink()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert find_runs(tmp_path) == sorted(tmp_path / name for name in [*names, "killed"])
    assert find_runs(tmp_path / "b" / "c" / "d") == [tmp_path / "b/c/d"]
    store.close()
    shutil.rmtree(tmp_path / "b")
    assert find_runs(tmp_path / "journal") == []
    with pytest.raises(RunError, match=r"got .*absent, expected a folder"):
        find_runs(tmp_path / "absent")


def test_the_documented_schema_is_the_schema() -> None:
    text = (Path(__file__).parents[1] / "docs" / "schema.md").read_text(encoding="utf-8")
    documented = {
        table: re.findall(r"^\| `(\w+)` \| ([A-Z]+(?:\[\])?) \| (\S.*) \|$", section, re.M)
        for table, section in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    }
    with duckdb.connect() as con:
        con.execute(SCHEMA)
        sql = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal"
        columns = con.execute(sql).fetchall()
    tables = {table for table, _, _ in columns}
    assert set(documented) == tables
    for table in tables:
        wanted = [(name, kind) for owner, name, kind in columns if owner == table]
        assert [(name, kind) for name, kind, _ in documented[table]] == wanted
