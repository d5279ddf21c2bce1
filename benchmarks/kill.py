"""What `kill -9` costs: records lost, doubled or halved, ours against SQLite in WAL mode, round by round.

In a round two writers, ranks of one run (SQLite: one, for it has no ranks), log steps of 20
metrics without pause, report each as accepted once `flush()` (SQLite: the commit) has returned, and are killed at
a random moment. Nothing is emptied between rounds. At the end a reader counts: `lost` are accepted steps that are
missing; `twice` and `partial` speak for themselves. Last, what a kill takes from a writer that never flushes.

    python benchmarks/kill.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from collapsewatch.queries import RunError, open_run

METRICS = 20

STORE = """
import sys, time
from collapsewatch.records import StepRecord
from collapsewatch.store import Store
run_dir, step, rank, flush = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "flush"
store = Store(run_dir, rank=rank, merge_s=0.05, **({"flush_s": 0.02} if flush else {}))
print("ready", flush=True)
while True:
    step += 1
    store.log_step(StepRecord(step, float(step), {f"m{i}": float(step) for i in range(20)}))
    if flush:
        if store.flush(timeout=60):
            print(step, flush=True)
    else:
        print(step, flush=True)
        time.sleep(0.005)
"""

SQLITE = """
import sqlite3, sys
step = int(sys.argv[2])
con = sqlite3.connect(sys.argv[1] + "/run.sqlite")
con.execute("PRAGMA journal_mode = WAL")
con.execute("PRAGMA synchronous = NORMAL")
con.execute("CREATE TABLE IF NOT EXISTS metrics (step INTEGER, metric TEXT, value REAL)")
print("ready", flush=True)
while True:
    step += 1
    with con:
        con.executemany("INSERT INTO metrics VALUES (?, ?, ?)", [(step, f"m{i}", float(step)) for i in range(20)])
    print(step, flush=True)
"""


def killed(commands: list[list[object]], seconds: float) -> tuple[list[list[int]], float]:
    """Run writers side by side, kill them; the steps each reported as accepted, and for how long all ran."""
    with tempfile.TemporaryDirectory() as name:
        # Files, for a full pipe would hold the writers up.
        reports = [Path(name) / str(i) for i in range(len(commands))]
        writers = []
        for (code, *args), report in zip(commands, reports, strict=True):
            with open(report, "w") as out:
                command = [sys.executable, "-c", str(code), *map(str, args)]
                writers.append(subprocess.Popen(command, stdout=out))
        while not all(report.read_text().startswith("ready\n") for report in reports):
            if any(writer.poll() is not None for writer in writers):
                raise SystemExit("error: writer: got an early end, expected it to write until it is killed")
            time.sleep(0.005)
        began = time.perf_counter()
        time.sleep(seconds)
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
        lasted = time.perf_counter() - began
        for writer in writers:
            writer.wait()
        lines = [report.read_text().splitlines(keepends=True)[1:] for report in reports]
    return [[int(line) for line in part if line.endswith("\n")] for part in lines], lasted


def rows_per_step(folder: Path, peer: bool, rank: int) -> dict[int, int]:
    if peer:
        con = sqlite3.connect(folder / "run.sqlite")
        found = con.execute("SELECT step, count(*) FROM metrics GROUP BY step").fetchall()
        con.close()
        return dict(found)
    run = open_run(folder)
    sql = "SELECT step, count(*) FROM metrics WHERE rank = ? GROUP BY step"
    found = run.query(sql, [rank]).rows
    run.close()
    return dict(found)


def judge(folder: Path, peer: bool, accepted: dict[int, list[int]]) -> dict[str, Any]:
    total = {"accepted": 0, "lost": 0, "twice": 0, "partial": 0, "unreadable": 0}
    for rank, steps in accepted.items():
        try:
            counts = rows_per_step(folder, peer, rank)
        except (RunError, sqlite3.Error):
            total["unreadable"] += 1
            counts = {}
        total["accepted"] += len(steps)
        total["lost"] += sum(step not in counts for step in steps)
        total["twice"] += sum(count > METRICS for count in counts.values())
        total["partial"] += sum(count < METRICS for count in counts.values())
    return total


def unsafe_window(folder: Path, rng: random.Random) -> Iterator[int]:
    """Steps that a kill took from a writer with default settings that never flushes, at 200 steps/s."""
    first = 0
    while True:
        (steps,), _ = killed([[STORE, folder, first, 0, "no"]], rng.uniform(0.6, 1.4))
        counts = rows_per_step(folder, False, 0)
        yield sum(step not in counts for step in steps)
        first = steps[-1]


def measure(rounds: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        ours, peer, quiet = (Path(name) / part for part in ("ours", "peer", "quiet"))
        peer.mkdir()
        windows = unsafe_window(quiet, rng)
        accepted: dict[bool, dict[int, list[int]]] = {False: {0: [], 1: []}, True: {0: []}}
        rates: dict[bool, list[float]] = {False: [], True: []}
        unsafe = []
        for round_ in range(rounds):
            for is_peer in (False, True) if round_ % 2 else (True, False):
                first, seconds = 10_000_000 * round_, rng.uniform(0.2, 1.0)
                commands: list[list[object]] = [[STORE, ours, first, rank, "flush"] for rank in (0, 1)]
                if is_peer:
                    commands = [[SQLITE, peer, first]]
                reported, lasted = killed(commands, seconds)
                for rank, steps in enumerate(reported):
                    accepted[is_peer][rank] += steps
                rates[is_peer].append(sum(map(len, reported)) / lasted)
            unsafe.append(next(windows))
        return {
            "rounds": rounds,
            "collapsewatch": judge(ours, False, accepted[False]) | spread(rates[False]),
            "sqlite_wal": judge(peer, True, accepted[True]) | spread(rates[True]),
            "unsafe_steps_at_200_per_s": {
                "median": statistics.median(unsafe),
                "min": min(unsafe),
                "max": max(unsafe),
            },
        }


def spread(rates: list[float]) -> dict[str, Any]:
    median, low, high = statistics.median(rates), min(rates), max(rates)
    return {"accepted_per_s": {"median": round(median), "min": round(low), "max": round(high)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="6 kills instead of 30")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = measure(rounds=6 if options.quick else 30, seed=options.seed)
    if options.json:
        print(json.dumps(result))
        return
    for name in ("collapsewatch", "sqlite_wal"):
        part = result[name]
        rate = part["accepted_per_s"]
        print(
            f"{name:14} accepted {part['accepted']:7}  lost {part['lost']}  twice {part['twice']}"
            f"  partial {part['partial']}  unreadable {part['unreadable']}"
            f"  accepted/s {rate['median']} ({rate['min']}-{rate['max']})"
        )
    unsafe = result["unsafe_steps_at_200_per_s"]
    print(f"never flushed, 200 steps/s: a kill took {unsafe['median']} ({unsafe['min']}-{unsafe['max']}) steps")
    ours = result["collapsewatch"]
    print(f"{result['rounds']} x kill -9 of 2 ranks: {ours['lost']} of {ours['accepted']} accepted steps lost")


if __name__ == "__main__":
    main()
