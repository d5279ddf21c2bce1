"""Damaged logs: never a traceback, and never more lost than what was damaged.

`COLLAPSEWATCH_FUZZ=10000 pytest tests/test_fuzz.py` makes so many mutations in all.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import sqlite3
from collections.abc import Callable
from math import isfinite
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collapsewatch.importers import IMPORTERS, Imported, Unreadable, runs
from collapsewatch.report import ReportError, analyze, to_json
from tests.written import TENSORBOARD, TENSORBOARDX, WANDB

MUTATIONS = int(os.environ.get("COLLAPSEWATCH_FUZZ", "400"))
STEPS = range(1, 41)
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def reward(step: int) -> float:
    return 0.5 + step % 7 / 16  # exact in binary, and so in any number of digits


def lines(row: Callable[[int], str], before: str = "") -> bytes:
    return (before + "".join(f"{row(step)}\n" for step in STEPS)).encode()


def metrics(step: int) -> dict[str, float]:
    return {"step": step, "reward": reward(step), "entropy": 0.5, "completions/clipped_ratio": 0.0}


def parquet() -> bytes:
    table = pa.table(
        {"step": [1, 1, 2], "prompt": ["a", "b", "a"], "completion": [CALL, "x", ""], "reward": [1.0, 0, 0]}
    )
    pq.write_table(table, out := io.BytesIO())
    return out.getvalue()


def database() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE metrics (id INTEGER, timestamp TEXT, run_name TEXT, step INTEGER, metrics TEXT)")
    rows = [(s, "2026-01-01", "a", s, json.dumps({"reward": reward(s)})) for s in STEPS]
    connection.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?)", rows)
    return connection.serialize()


BAR = "\r {k}%|#   | {k}/40 [00:01<00:02]"
ROWS = {
    "verl_console/a.log": lines(
        lambda s: (
            f"(pid=1) loading {s}\n\x1b[36m(TaskRunner pid=1)\x1b[0m step:{s} - actor/entropy:0.5 - "
            f"critic/score/mean:np.float64({reward(s)}) - timing_s/step:61.5"
        )
    ),
    "trl_console/a.log": lines(lambda s: BAR.format(k=s) + f"{{'step': {s}, 'reward': '{reward(s)}', 'kl': 0.25}}"),
    "verl_file/a.jsonl": lines(lambda s: json.dumps({"step": s, "data": {"critic/score/mean": reward(s)}})),
    "json/a.jsonl": lines(lambda s: json.dumps(metrics(s))),
    "csv/a.csv": lines(lambda s: f"{s},{reward(s)},0.5", "step,reward,entropy\n"),
    "openrlhf/a.log": lines(lambda s: f"Global step {s}: {{'reward': {reward(s)}, 'response_length': 50.0}}"),
    "tinker/metrics.jsonl": lines(
        lambda s: json.dumps({"step": s, "env/all/reward/total": reward(s), "time/total": 1})
    ),
}
"""Logs of one row per line, by importer and file name: of these it is known what every line says."""
WHOLE = {
    "trainer_state/trainer_state.json": json.dumps({"log_history": [metrics(s) for s in STEPS]}).encode(),
    "json/doc.json": json.dumps({"seed1": [metrics(s) for s in STEPS], "seed2": [metrics(s) for s in STEPS]}).encode(),
    "json/columns.json": json.dumps({"step": [*STEPS], "reward": [reward(s) for s in STEPS]}, indent=1).encode(),
    "transcripts/t.jsonl": lines(lambda s: json.dumps({"text": CALL * (s % 3), "step": s, "stop": "eos"})),
    "verl_rollouts/7.jsonl": lines(lambda s: json.dumps({"input": "p", "output": CALL, "score": 0.5, "step": 7})),
    "messages/m.jsonl": lines(lambda s: json.dumps({"messages": [{"role": "assistant", "content": CALL}], "step": s})),
    "trl_completions/completions_00001.parquet": parquet(),
    "tensorboard/events.out.tfevents.1.a.1.0": TENSORBOARD,
    "tensorboard/events.out.tfevents.2.a.1.0": TENSORBOARDX,
    "wandb/run-a.wandb": WANDB,
    "trackio/a.db": database(),
    "nemo_rl/a.log": lines(
        lambda s: f"{'=' * 9} Step {s}/40 {'=' * 9}\nTraining Results:\n  • Loss: 0.25\n  • Avg Reward: {reward(s)}"
    ),
    "json/z.jsonl.gz": gzip.compress(ROWS["json/a.jsonl"]),
}
FIXTURES = ROWS | WHOLE


def told(path: Path) -> dict[int, float]:
    """What is read of a file, which is all of it sound; the rewards of its longest run."""
    found = list(runs(path))
    records = max((run.records for run in found if isinstance(run, Imported)), key=len, default=())
    for run in found:
        if isinstance(run, Unreadable):
            assert run.reason and "Traceback" not in run.reason
            continue
        steps = [record.step for record in run.records]
        assert steps == sorted(set(steps)) and run.records
        assert all(isfinite(value) for record in run.records for value in record.metrics.values())
    return {record.step: record.metrics["reward"] for record in records if "reward" in record.metrics}


def put(tmp_path: Path, name: str, content: bytes) -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ROWS)
def test_the_rows_of_a_fixture_are_all_read(name: str, tmp_path: Path) -> None:
    path = put(tmp_path, name, ROWS[name])
    (run,) = runs(path)
    assert isinstance(run, Imported) and run.source == name.partition("/")[0]
    assert told(path) == {step: reward(step) for step in STEPS}


@pytest.mark.parametrize("name", ROWS)
def test_a_log_that_ends_anywhere_gives_all_whole_rows(name: str, tmp_path: Path) -> None:
    content = ROWS[name]
    for end in [*range(0, len(content), 1000), *range(len(content) - 150, len(content))]:
        found = told(put(tmp_path, name, content[:end]))
        step_lines = [line for line in content[:end].split(b"\n")[:-1] if b"loading" not in line]
        whole = {step: reward(step) for step in STEPS if step <= len(step_lines) - name.startswith("csv")}
        assert whole.items() <= found.items(), end
        assert len(found) <= len(whole) + 1


@pytest.mark.parametrize("name", FIXTURES)
def test_a_damaged_log_is_read_as_far_as_it_is_sound(name: str, tmp_path: Path) -> None:
    chance = random.Random(name)
    for i in range(max(1, MUTATIONS // len(FIXTURES))):
        content, touched = damaged(FIXTURES[name], chance)
        path = put(tmp_path, name, content)
        found = told(path)
        if name in ROWS and touched is not None:
            sound = [step for step in STEPS if found.get(step) == reward(step)]
            # A damaged line may run into its neighbours, and its step may be read as another's.
            assert len(sound) >= len(STEPS) - 3 * touched - 1, (i, touched, sorted(set(STEPS) - set(sound)))
        if i % 25 == 0:
            try:
                json.dumps(to_json(analyze(path)), allow_nan=False)
            except ReportError:
                assert not list(runs(path))


def damaged(content: bytes, chance: random.Random) -> tuple[bytes, int | None]:
    """A log with something wrong, and how many lines were damaged; None if that cannot be said."""
    parts = content.splitlines(keepends=True)
    kind = chance.randrange(7)
    if kind == 0:  # bytes flipped
        flipped, times = bytearray(content), chance.randrange(1, 4)
        for _ in range(times):
            flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        # A table's header and an encoding's mark stand at the beginning.
        return bytes(flipped), times if flipped[:40] == content[:40] else None
    if kind == 1:  # cut anywhere
        return content[: chance.randrange(len(content))], None
    if kind == 2:  # a piece is missing, as where a disk was full
        begin = chance.randrange(len(content))
        return content[:begin] + content[begin + chance.randrange(200) :], None
    if kind == 3:  # a line written twice
        at = chance.randrange(len(parts))
        return b"".join(parts[: at + 1] + parts[at:]), 1 if at else None
    if kind == 4:  # lines shuffled, but the first
        rest = parts[1:]
        chance.shuffle(rest)
        return b"".join(parts[:1] + rest), 0 if b"pid=" not in content else None
    if kind == 5:  # another encoding
        text = content.decode("utf-8", "replace")
        return text.encode(chance.choice(["utf-16", "utf-8-sig", "utf-16-le", "latin-1"]), "replace"), None
    begin = chance.randrange(len(content))  # binary rubbish in between
    return content[:begin] + chance.randbytes(chance.randrange(1, 400)) + content[begin:], None


@pytest.mark.parametrize("name", FIXTURES)
def test_an_undamaged_fixture_is_read_by_its_importer(name: str, tmp_path: Path) -> None:
    found = list(runs(put(tmp_path, name, FIXTURES[name])))
    assert found and all(isinstance(run, Imported) and run.source == name.partition("/")[0] for run in found)


def test_every_importer_has_a_fixture() -> None:
    aside = {"mlflow", "mlruns", "wandb_csv", "step_records"}  # folders of files, and what their own tests fuzz
    assert {name.partition("/")[0] for name in FIXTURES} >= set(IMPORTERS) - aside
