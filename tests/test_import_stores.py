"""The local stores of trackio and MLflow."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collapsewatch.importers import Imported, runs
from tests.written import fails_in_one_way_only, metric, put, read


def trackio_database(path: Path, ids: bool = True) -> Path:
    """The tables of trackio's `sqlite_storage.py`, before and after runs had ids."""
    with sqlite3.connect(path) as db:
        run_id = "run_id TEXT NOT NULL, " if ids else ""
        db.execute(
            f"CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, {run_id}timestamp TEXT NOT NULL, "
            "run_name TEXT NOT NULL, step INTEGER NOT NULL, metrics TEXT NOT NULL)"
        )
        for run in ("good", "sft"):
            for i in range(6):
                name = "train/reward" if run == "good" else "train/loss"
                logged = {name: i / 10, "train/entropy" if run == "good" else "x": "NaN", "train/global_step": 5 * i}
                values = (*([run * 8] if ids else []), "2026", run, i, json.dumps(logged).encode())
                db.execute(f"INSERT INTO metrics VALUES (NULL{', ?' * len(values)})", values)
    db.close()
    return path


@pytest.mark.parametrize("ids", [True, False])
def test_trackio_s_database_holds_several_runs(ids: bool, tmp_path: Path) -> None:
    (run,) = read(trackio_database(tmp_path / "project.db", ids))
    assert (run.name, run.source, run.unmapped) == ("project/good", "trackio", ())
    assert metric(run, "reward") == {5 * i: i / 10 for i in range(6)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["project.db"]  # nothing is written beside it


def test_a_database_that_trackio_still_writes_is_read_with_its_journal(tmp_path: Path) -> None:
    path = trackio_database(tmp_path / "project.db")
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        for logged in ({"reward": 1, "train/global_step": 30}, {"reward": 0.0}):
            values = ("good" * 8, "2026", "good", 6, json.dumps(logged))
            db.execute("INSERT INTO metrics VALUES (NULL, ?, ?, ?, ?, ?)", values)
        db.commit()
        (run,) = read(path)
    assert metric(run, "reward")[30] == 1.0 and len(run.records) == 7
    assert run.faults == ("1 of 8 rows left out, without a step",)  # trackio's own steps count its calls
    (same,) = read(path)  # nobody writes any more
    assert same.records == run.records and [p.name for p in tmp_path.iterdir()] == ["project.db"]


def test_trackio_s_parquet_export_is_read_as_its_database(tmp_path: Path) -> None:
    rows = [
        {"id": i, "run_id": "k", "timestamp": "2026", "run_name": "good", "step": i, "train/reward": i / 10}
        for i in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "project.parquet")
    (run,) = read(tmp_path / "project.parquet")
    assert (run.name, metric(run, "reward")) == ("project/good", {i: i / 10 for i in range(6)})


def mlflow_database(path: Path) -> Path:
    """The two tables that count of MLflow's schema (`mlflow/store/tracking/dbmodels/models.py`)."""
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE runs (run_uuid VARCHAR(32), name VARCHAR(250), lifecycle_stage VARCHAR(20))")
        db.execute(
            "CREATE TABLE metrics (key VARCHAR(250), value FLOAT, timestamp BIGINT, run_uuid VARCHAR(32), "
            "step BIGINT DEFAULT '0' NOT NULL, is_nan BOOLEAN DEFAULT '0' NOT NULL)"
        )
        for run, stage in (("a" * 32, "active"), ("b" * 32, "deleted"), ("c" * 32, "active")):
            db.execute("INSERT INTO runs VALUES (?, 'same', ?)", (run, stage))
            for i in range(5):
                step = 0 if run[0] == "c" else 10 * i  # who logs without a step
                db.execute("INSERT INTO metrics VALUES ('train/reward', ?, ?, ?, ?, 0)", (i / 10, 1000 + i, run, step))
            db.execute("INSERT INTO metrics VALUES ('kl', 0, 1000, ?, 0, 1)", (run,))
    db.close()
    return path


def test_mlflow_s_database_is_read_without_its_deleted_runs(tmp_path: Path) -> None:
    stepped, counted = read(mlflow_database(tmp_path / "mlflow.db"))
    assert (stepped.name, counted.name, stepped.source) == ("same-aaaaaaaa", "same-cccccccc", "mlflow")
    assert metric(stepped, "reward") == {10 * i: i / 10 for i in range(5)}
    assert metric(counted, "reward") == {i + 1: i / 10 for i in range(5)}


def test_mlflow_s_folders_are_read_run_by_run(tmp_path: Path) -> None:
    for run, name in (("r1", "run_name: first\n"), ("r2", ""), ("gone", "lifecycle_stage: deleted\n")):
        folder = tmp_path / "mlruns" / "7" / run
        put(folder / "meta.yaml", f"artifact_uri: x\n{name}")
        put(folder / "metrics" / "train" / "reward", "".join(f"179{i} {i / 10} {i}\n" for i in range(6)))
        put(folder / "metrics" / "entropy", "1790 nan 0\n1791 1.5 1\nnonsense\n1792 1.5 2 data digest\n17")
        put(folder / "params" / "lr", "1e-6")
    put(tmp_path / "mlruns" / "7" / "models" / "m-1" / "meta.yaml", "model_id: m-1\n")
    put(tmp_path / "mlruns" / "7" / "models" / "m-1" / "metrics" / "train" / "reward", "1790 0.5 1 r1\n")
    first, second = runs(tmp_path)
    assert isinstance(first, Imported) and isinstance(second, Imported)
    assert (first.name, second.name, first.source) == ("first", "r2", "mlruns")
    assert metric(first, "reward") == {i: i / 10 for i in range(6)} and metric(first, "entropy") == {1: 1.5, 2: 1.5}
    assert first.faults == ("2 lines of r1 left out: no `time value step`",)


def test_a_broken_database_fails_in_one_way_only(tmp_path: Path) -> None:
    fails_in_one_way_only(tmp_path / "project.db", trackio_database(tmp_path / "whole.db").read_bytes())
    fails_in_one_way_only(tmp_path / "mlflow.db", mlflow_database(tmp_path / "other.db").read_bytes())
