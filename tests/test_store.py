from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsewatch import merge, queries
from collapsewatch.database import arrow_schemas
from collapsewatch.journal import Journal, rank_of, segments
from collapsewatch.queries import open_run
from collapsewatch.records import (
    Alarm,
    Applied,
    ControlRow,
    Driver,
    Event,
    Evidence,
    Observation,
    RolloutRow,
    StepRecord,
    Tier,
    TurnRow,
)
from collapsewatch.store import Store, StoreError

METRICS = 20


def record(step: int, offset: float = 0.0) -> StepRecord:
    metrics = {f"m{i}": offset + step + i / METRICS for i in range(METRICS)}
    return StepRecord(step, 1e9 + step, metrics, (Observation("polluted", step / 7, 8, 0.1),))


def rows(run_dir: Path, sql: str) -> list[tuple[Any, ...]]:
    """An independent reader: DuckDB alone, on the finished file."""
    with duckdb.connect(str(run_dir / "run.duckdb"), read_only=True) as con:
        return con.execute(sql).fetchall()


def python(code: str, *args: object, **kwargs: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def same(a: float, b: float) -> bool:
    """Bit for bit; a NaN equals any NaN, for DuckDB keeps one of them."""
    return (a != a and b != b) or struct.pack("<d", a) == struct.pack("<d", b)


def test_a_closed_store_is_one_database_file_with_every_row_and_no_journal(tmp_path: Path) -> None:
    run_dir = tmp_path / "it's a run; drop table steps" / "ünïcode"
    store = Store(run_dir)
    for step in range(1, 301):
        store.log_step(record(step))
    store.close()
    store.close()
    assert segments(run_dir) == [] and store.faults == {} and store.dropped == 0
    assert rows(run_dir, "SELECT step, rank, time FROM steps") == [(s, 0, 1e9 + s) for s in range(1, 301)]
    expected = [(s, k, v) for s in range(1, 301) for k, v in record(s).metrics.items()]
    assert rows(run_dir, "SELECT step, metric, value FROM metrics") == expected


def test_every_kind_of_record_lands_in_its_table(tmp_path: Path) -> None:
    driver = Driver("hazard:<tool_call>@text", 0.75, 0.1, float("nan"), float("inf"))
    alarm = Alarm(9, Tier.ALARM, "tolerance", (driver,), 7, 4.5, 4.0, "control_token_spike")
    detail = {"loss": np.float32(0.5), "ids": np.arange(3), "bad": float("-inf"), "who": Tier.HOLD, "p": Path("x")}
    store = Store(tmp_path)
    turn = TurnRow(0, 1, "polluted", "stray_token", "eos", 17, 0, 0.25)
    control = ControlRow(
        "<tool_call>", "text", False, 100, 0.1, 0.0, 0.5, 0.9, 0.2, 10.0, 3, 0.25, (99, 1), (0.1, 0.0), 0.5, -0.5
    )
    rollout = RolloutRow(0, 4, 1.0, -0.5, 2, 33, 1, 0, "polluted", 0.25, "p", "lone \ud800, nul \0, é")
    metrics = {"reward": np.float32(0.5), "n": 3}
    store.log_step(StepRecord(9, 1.5, metrics, (), (control,), (turn,), (rollout,)))
    store.log_evidence(Evidence(9, "tolerance", 4.5, 4.0, (driver,)))
    store.log_alarm(alarm)
    store.log_applied(Applied(10, "kl_anchor", "triggered", 9, "applied", detail))
    store.log_event(Event(0, 1.0, "started", "demo"))
    store.append("events", [{"step": 3, "time": 2.0, "name": "mark", "detail": ""}])
    store.close()
    assert store.faults == {} and store.dropped == 0
    head = (9, 0, "<tool_call>", "text", False)
    assert rows(tmp_path, "SELECT * EXCLUDE logged FROM control") == [
        (*head, 100, 0.1, 0.0, 0.5, 0.9, 0.2, 10.0, 3, 0.25, [99, 1], [0.1, 0.0], 0.5, -0.5, "policy")
    ]
    assert rows(tmp_path, "SELECT * EXCLUDE logged FROM turns") == [
        (9, 0, 0, 1, "polluted", "stray_token", "eos", 17, 0, 0.25)
    ]
    assert rows(tmp_path, 'SELECT reward, "group", text FROM rollouts') == [(1.0, 4, "lone ?, nul \0, é")]
    assert rows(tmp_path, "SELECT metric, value FROM metrics") == [("reward", 0.5), ("n", 3.0)]
    assert rows(tmp_path, "SELECT stream, log_e, share, tolerance FROM evidence") == [
        ("", 4.5, None, None),
        ("hazard:<tool_call>@text", None, 0.75, float("inf")),
    ]
    ((text,),) = rows(tmp_path, "SELECT drivers FROM alarms")
    (drivers,) = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert drivers["baseline"] == "nan" and drivers["tolerance"] == "inf"
    run = open_run(tmp_path)
    (found,) = run.alarms()
    assert repr(found) == repr(alarm)  # repr: NaN is equal to nothing
    (applied,) = run.applied()
    assert applied.detail == {"loss": 0.5, "ids": [0, 1, 2], "bad": "-inf", "who": "hold", "p": "x"}
    assert run.events() == [Event(0, 1.0, "started", "demo"), Event(3, 2.0, "mark")]
    run.close()


floats = st.floats(width=64) | st.sampled_from([-0.0, 5e-324, 1.7976931348623157e308])
observed = st.builds(Observation, st.text(max_size=5), floats, st.integers(0, 2**40), floats)
observations = st.lists(observed, max_size=4).map(tuple)
record_lists = st.lists(
    st.builds(
        StepRecord,
        st.integers(0, 2**40),
        floats,
        st.dictionaries(st.text(max_size=5), floats, max_size=6),
        observations,
    ),
    max_size=8,
)


@settings(max_examples=12, deadline=None)
@given(record_lists, st.integers(0, 8))
def test_records_come_back_bit_for_bit_and_of_a_repeated_step_the_last(
    records: list[StepRecord], resumed_at: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for session in (records[:resumed_at], records[resumed_at:]):
            store = Store(folder)
            for item in session:
                store.log_step(item)
            store.close()
        run = open_run(folder)
        found = list(run.records())
        run.close()
    last = {item.step: item for item in records}
    assert [item.step for item in found] == sorted(last)
    for item in found:
        expected = last[item.step]
        assert same(item.time, expected.time)
        assert list(item.metrics) == list(expected.metrics)
        assert all(same(item.metrics[k], v) for k, v in expected.metrics.items())
        assert [(o.stream, o.n) for o in item.observations] == [(o.stream, o.n) for o in expected.observations]
        for got, wanted in zip(item.observations, expected.observations, strict=True):
            assert same(got.value, wanted.value) and same(got.stderr, wanted.stderr)


def test_many_records_of_special_values_survive_the_compression_of_the_database(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, float("nan"), float("inf"), float("-inf"), 5e-324]
    values = np.where(rng.random(6000) < 0.5, rng.choice(special, 6000), rng.random(6000)).tolist()
    store = Store(tmp_path)
    for step, value in enumerate(values):
        store.log_step(StepRecord(step, 0.0, {"zero": 0.0 if step % 2 else -0.0, "value": value}))
    store.close()
    run = open_run(tmp_path)
    for item in run.records():
        assert same(item.metrics["value"], values[item.step])
        assert same(item.metrics["zero"], 0.0 if item.step % 2 else -0.0)
    run.close()


def test_ranks_share_one_database_and_only_rank_0_writes_what_all_agree_on(tmp_path: Path) -> None:
    stores = [Store(tmp_path, rank) for rank in (0, 1, 2)]
    for step in range(1, 21):
        for store in stores:
            store.log_step(record(step, offset=100.0 * store.rank))
            store.log_event(Event(step, 0.0, "mark"))
    for store in reversed(stores):
        store.close()
    assert rows(tmp_path, "SELECT rank, count(*) FROM metrics GROUP BY rank ORDER BY rank") == [
        (rank, 20 * METRICS) for rank in range(3)
    ]
    assert rows(tmp_path, "SELECT count(*) FROM observations") == [(20,)]
    assert rows(tmp_path, "SELECT count(*) FROM events") == [(20,)]
    run = open_run(tmp_path)
    assert list(run.records()) == [record(step) for step in range(1, 21)]
    run.close()


def test_rows_of_a_rank_that_ends_after_rank_0_are_merged_when_the_run_is_opened(tmp_path: Path) -> None:
    first, second = Store(tmp_path, 0), Store(tmp_path, 1)
    second.log_step(record(1))
    first.close()
    second.close()
    assert segments(tmp_path) != []
    run = open_run(tmp_path)
    assert run.query("SELECT step, rank FROM steps").rows == [(1, 1)]
    assert segments(tmp_path) == []
    run.close()


def test_a_misfit_is_counted_and_takes_nothing_else_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    store.log_step(record(1))
    store.append("nonsense", [{"a": 1}])
    store.append("events", [{"step": 1, "colour": "red"}])
    store.append("events", [{"step": "one"}])
    store.log_step(StepRecord(2, 0.0, {"reward": "high"}))  # type: ignore[dict-item]
    store.log_step(record(3))
    assert store.flush(timeout=30)
    store.close()
    assert store.dropped == 4 and sum(store.faults.values()) == 4
    assert any("got 'nonsense', expected one of steps, metrics" in message for message in store.faults)
    assert any("got column 'colour', expected some of step, time" in message for message in store.faults)
    assert len([entry for entry in caplog.records if "training goes on" in entry.message]) == 1
    assert rows(tmp_path, "SELECT step FROM steps") == [(1,), (3,)]
    store.log_step(record(4))  # after the end: counted, not raised
    assert store.dropped == 5


WRITER = """
import sys
from collapsewatch.records import Observation, StepRecord
from collapsewatch.store import Store
store = Store(sys.argv[1], flush_s=0.01, merge_s=0.03)
step = int(sys.argv[2])
while True:
    step += 1
    metrics = {f"m{i}": step + i / 20 for i in range(20)}
    store.log_step(StepRecord(step, 1e9 + step, metrics, (Observation("polluted", step / 7, 8, 0.1),)))
    if store.flush(timeout=30):
        print(step, flush=True)
"""


def test_kill_9_loses_nothing_acknowledged_and_leaves_nothing_double_or_half(tmp_path: Path) -> None:
    acked: set[int] = set()
    for _ in range(3):
        writer = python(WRITER, tmp_path, 1000 * len(acked))
        assert writer.stdout is not None
        for line in writer.stdout:
            acked.add(int(line))
            if len(acked) % 40 == 0:
                os.kill(writer.pid, signal.SIGKILL)
                break
        acked |= {int(line) for line in writer.stdout if line.endswith("\n")}
        assert writer.wait() == -signal.SIGKILL
        writer.communicate()
    run = open_run(tmp_path)
    assert run.status() == "stopped"
    found = list(run.records())
    run.close()
    assert acked <= {item.step for item in found}
    assert found == [record(item.step) for item in found]  # whole, and right
    for table, per_step in (("steps", 1), ("metrics", METRICS), ("observations", 1)):
        counts = rows(tmp_path, f"SELECT count(*) FROM {table} GROUP BY step")
        assert set(counts) == {(per_step,)} and len(counts) == len(found)


HOLDER = """
import sys, duckdb
con = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
con.close()
"""


def hold(run_dir: Path) -> subprocess.Popen[str]:
    holder = python(HOLDER, run_dir / "run.duckdb", stdin=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_a_foreign_lock_delays_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "LOCK_TIMEOUT_S", 0.05)
    store = Store(tmp_path, flush_s=0.01, merge_s=3600.0)  # until close nothing else wants the lock
    store.log_step(record(1))
    assert store.flush(timeout=30)
    holder = hold(tmp_path)
    for step in range(2, 51):
        store.log_step(record(step))
    assert store.flush(timeout=30)
    with pytest.raises(queries.RunError, match=r"locked .*, expected it free"):
        open_run(tmp_path)
    store.close(timeout=0.3)
    assert segments(tmp_path) != [] and store.faults == {} and store.dropped == 0
    holder.communicate("")
    run = open_run(tmp_path)
    assert list(run.records()) == [record(step) for step in range(1, 51)]
    assert segments(tmp_path) == []
    run.close()


DISK_FULL = """
import json, resource, sys
from collapsewatch.records import StepRecord
from collapsewatch.store import Store
store = Store(sys.argv[1], flush_s=0.01, merge_s=0.02, queue_size=50)
store.log_step(StepRecord(0, 0.0, {"a": 0.0}))
assert store.flush(timeout=30)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
for step in range(1, 101):
    store.log_step(StepRecord(step, 0.0, {"a": float(step)}))
flushed = store.flush(timeout=0.2)
dropped, faults = store.dropped, dict(store.faults)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
again = store.flush(timeout=30)
store.close()
print(json.dumps([flushed, dropped, list(faults), again, store.dropped]))
"""


def test_a_full_disk_stops_neither_training_nor_loses_what_the_queue_holds(tmp_path: Path) -> None:
    out, err = python(DISK_FULL, tmp_path).communicate()
    flushed, dropped, faults, again, dropped_at_end = json.loads(out)
    assert not flushed and again
    assert dropped == dropped_at_end == 50
    assert any("File too large" in message for message in faults)
    assert err.count("storing failed, training goes on") == 1
    run = open_run(tmp_path)
    assert [item.step for item in run.records()] == list(range(51))
    run.close()


DISK_STAYS_FULL = """
import resource, sys
from collapsewatch.records import StepRecord
from collapsewatch.store import Store
store = Store(sys.argv[1], flush_s=0.01, merge_s=0.02)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
for step in range(1, 8):
    store.log_step(StepRecord(step, 0.0, {"a": 0.0}))
store.close(timeout=0.2)
print(store.dropped)
"""


def test_what_a_full_disk_never_took_is_counted_and_said(tmp_path: Path) -> None:
    out, err = python(DISK_STAYS_FULL, tmp_path).communicate()
    assert int(out) == 7 and "7 records could not be stored" in err


def test_a_run_removed_under_the_store_is_said_and_begun_anew(tmp_path: Path) -> None:
    store = Store(tmp_path / "run", flush_s=0.01, merge_s=0.02)
    store.log_step(record(1))
    assert store.flush(timeout=30)
    shutil.rmtree(tmp_path / "run")
    for step in (2, 3):
        store.log_step(record(step))
    assert store.flush(timeout=30)
    store.close()
    assert any("removed" in message for message in store.faults) and store.dropped == 0
    run = open_run(tmp_path / "run")
    assert list(run.records()) == [record(2), record(3)] and segments(tmp_path / "run") == []
    run.close()


CRASHING = """
import os, sys
from collapsewatch.records import StepRecord
from collapsewatch.store import Store
store = Store(sys.argv[1], flush_s=3600, merge_s=3600)
store.log_step(StepRecord(1, 0.0, {"a": 1.0}))
if sys.argv[2] == "fork":
    pid = os.fork()
    if pid == 0:
        store.log_step(StepRecord(2, 0.0, {"a": 2.0}))
        store.close()
        sys.exit(store.dropped)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    store.log_step(StepRecord(3, 0.0, {"a": 3.0}))
raise RuntimeError("training failed")
"""


@pytest.mark.parametrize(("how", "steps"), [("raise", [1]), ("fork", [1, 3])])
def test_an_exception_or_a_fork_leaves_the_rows_of_the_process_that_owns_them(
    tmp_path: Path, how: str, steps: list[int]
) -> None:
    process = python(CRASHING, tmp_path, how)
    out, err = process.communicate()
    assert process.returncode == 1
    assert "RuntimeError: training failed" in err
    assert out == ("1\n" if how == "fork" else "")
    if how == "raise":
        assert "nanobind" not in err
    assert rows(tmp_path, "SELECT step FROM steps") == [(step,) for step in steps]
    assert segments(tmp_path) == []


def test_an_unusable_folder_fails_before_step_1_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.duckdb").write_text("not a database")
    (tmp_path / "foreign").mkdir()
    with duckdb.connect(str(tmp_path / "foreign" / "run.duckdb")) as con:
        con.execute("CREATE TABLE metrics (name VARCHAR)")
    busy = Store(tmp_path / "busy")
    for name, reason in [
        ("file", "Not a directory"),
        ("file/below", "Not a directory"),
        ("broken", "not a valid DuckDB database"),
        ("foreign", "got tables metrics, expected those of docs/schema.md"),
        ("busy", "rank 0 is being written by another live process"),
    ]:
        with pytest.raises(StoreError, match=f"(?i){reason}.*expected a writable folder of one run") as error:
            Store(tmp_path / name)
        assert "\n" not in str(error.value) and name in str(error.value)
    assert rows(tmp_path / "foreign", "SHOW TABLES") == [("metrics",)]
    busy.close()
    again = Store(tmp_path / "busy")  # the failed attempt has not damaged the lock
    again.close()


def test_a_database_that_a_newer_duckdb_rewrote_is_continued(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.log_step(record(1))
    store.close()
    with duckdb.connect(config={"storage_compatibility_version": "latest"}) as con:
        con.execute(f"ATTACH '{tmp_path}/run.duckdb' AS old; ATTACH '{tmp_path}/new.duckdb' AS new")
        con.execute("COPY FROM DATABASE old TO new")
    (tmp_path / "new.duckdb").replace(tmp_path / "run.duckdb")
    store = Store(tmp_path)
    store.log_step(record(2))
    store.close()
    run = open_run(tmp_path)
    assert list(run.records()) == [record(1), record(2)]
    run.close()


def test_threads_may_log_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path, queue_size=100_000)
    threads = [
        threading.Thread(target=lambda k=k: [store.log_step(record(1000 * k + i)) for i in range(200)])
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    assert store.dropped == 0
    assert rows(tmp_path, "SELECT count(DISTINCT step), count(DISTINCT logged), count(*) FROM steps") == [
        (800, 800, 800)
    ]


def test_the_columns_are_the_fields_of_the_records() -> None:
    stamp = {"step", "rank", "logged"}
    for table, kind in {"control": ControlRow, "turns": TurnRow, "rollouts": RolloutRow}.items():
        assert set(arrow_schemas()[table].names) == stamp | set(kind.__slots__)
    assert set(arrow_schemas()["alarms"].names) == set(Alarm.__slots__)
    assert set(arrow_schemas()["interventions"].names) == set(Applied.__slots__)
    assert set(arrow_schemas()["events"].names) == set(Event.__slots__)


@pytest.mark.parametrize("moment", ["segments", "live_ranks"])
def test_a_rank_that_starts_in_the_middle_of_a_merge_keeps_its_journal(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, started = getattr(merge, moment), []

    def and_then_a_rank_starts(run_dir: Path) -> Any:
        seen = look(run_dir)
        if not started:
            started.append(Journal(run_dir, rank=1))
        return seen

    monkeypatch.setattr(merge, moment, and_then_a_rank_starts)
    merger = merge.Merger(tmp_path)
    assert merger.merge() and merger.merge()
    merger.close()
    (journal,) = started
    assert [rank_of(path) for path in segments(tmp_path)] == [1]
    journal.close()
