"""A long run: its history laid down at once, then a trainer that goes on with it, a step a second."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import duckdb

from collapsewatch.records import ControlRow, Evidence, Observation, StepRecord
from collapsewatch.store import Store

TOKENS = tuple(f"<t{i}>" for i in range(8))
SLOTS = ("start", "open", "body", "close", "text", "end")
ROWS_A_STEP = len(TOKENS) * len(SLOTS)
METRICS = (
    *("reward", "parse_rate", "structure/tool_call", "structure/response", "structure/polluted", "structure/collapsed"),
    *("entropy", "kl", "grad_norm", "completions/mean_length"),
)
SPIKES = 20
"""Single steps, anywhere, whose hazard is 3: a page that loses one loses an alarm's cause."""


def record(step: int) -> StepRecord:
    """One step as a trainer logs it."""
    rng = random.Random(step)
    cells = [(t, s, (i + j) % 3 == 0) for i, t in enumerate(TOKENS) for j, s in enumerate(SLOTS)]
    pressure = {f"logit_pressure/{who}/{t}": rng.gauss(0, 1e-3) for who in ("self", "other") for t in TOKENS}
    return StepRecord(
        step,
        time.time(),
        {name: rng.random() for name in METRICS} | pressure,
        tuple(Observation(f"hazard:{t}", rng.random() * 1e-3, 8) for t in TOKENS),
        tuple(
            ControlRow(t, s, ok, 99, *(rng.random() for _ in range(4)), rng.random() * 1e-3, 1.0, 1)
            for t, s, ok in cells
        ),
    )


def lay_down(folder: Path, rows: int, seed: int = 0) -> int:
    """Writes a run of so many control rows below a folder; gives its last step."""
    steps = rows // ROWS_A_STEP
    store = Store(folder)
    store.log_step(record(1))
    store.log_evidence(Evidence(1, "e_detector", 0.0, 5.3))
    store.close()
    columns = dict.fromkeys(("mean", "p50", "p99", "max", "forced"), "random()")
    columns |= {
        "hazard": "random() * 1e-3",
        "expected": "1.0",
        "pressure_self": "random()",
        "pressure_other": "random()",
    }
    listed = ", ".join(f"{sql} AS {name}" for name, sql in columns.items())
    step = f"range(2, {steps + 1}) AS s(step)"
    with duckdb.connect(str(folder / "run.duckdb")) as con:
        con.execute(f"SELECT setseed({seed / 100})")
        con.execute(f"INSERT INTO steps SELECT step, 0, 1.7e9 + step, step FROM {step}")
        sql = f"INSERT INTO metrics SELECT step, 0, m, random(), step FROM {step}, unnest($m) AS u(m)"
        con.execute(sql, {"m": list(record(1).metrics)})
        streams = [f"hazard:{t}" for t in TOKENS]
        sql = f"INSERT INTO observations SELECT step, m, random() * 1e-3, 8, 0, step FROM {step}, unnest($m) AS u(m)"
        con.execute(sql, {"m": streams})
        con.execute(
            f"""INSERT INTO evidence BY NAME SELECT step, 'e_detector' AS detector, '' AS stream, random() AS log_e,
            5.3 AS log_bound FROM {step}"""
        )
        con.execute(
            f"""INSERT INTO control BY NAME SELECT step, 0 AS rank, t AS token, u AS slot, (i + j) % 3 = 0 AS legal,
            99 AS n, {listed}, 1 AS sampled, 'policy' AS probe, step AS logged
            FROM {step}, unnest($tokens) WITH ORDINALITY AS a(t, i), unnest($slots) WITH ORDINALITY AS b(u, j)""",
            {"tokens": list(TOKENS), "slots": list(SLOTS)},
        )
        at = random.Random(seed).sample(range(2, steps), SPIKES)
        con.execute(
            "UPDATE control SET hazard = 3 WHERE list_contains($at, step) AND token = '<t0>' AND NOT legal", {"at": at}
        )
    return steps


def go_on(folder: Path, last: int, seconds: float) -> None:
    """A trainer that goes on with the run, a step a second, and says of each when it was logged."""
    store = Store(folder)
    until = time.time() + seconds
    while time.time() < until:
        last += 1
        store.log_step(record(last))
        store.log_evidence(Evidence(last, "e_detector", random.random(), 5.3))
        print(last, time.time(), flush=True)
        time.sleep(1.0)
    store.close()


if __name__ == "__main__":
    arguments: list[Any] = sys.argv[1:]
    go_on(Path(arguments[0]), int(arguments[1]), float(arguments[2]))
