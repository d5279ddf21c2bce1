"""W&B's offline runs and the charts it exports: whole, cut and broken."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path
from zlib import crc32

import pytest

from collapsewatch.importers import Imported, runs
from tests.written import WANDB, fails_in_one_way_only, field, metric, put, read


def frame(kind: int, data: bytes) -> bytes:
    return struct.pack("<IHB", crc32(data, crc32(bytes([kind]))), len(data), kind) + data


def history(step: int, **logged: object) -> bytes:
    items = [field(1, field(2, name.encode()) + field(16, json.dumps(v).encode())) for name, v in logged.items()]
    return field(2, b"".join(items) + field(2, field(1, step)))


def wandb_file(*records: bytes) -> bytes:
    """As LevelDB's writer: a record goes on in the next block of 32 KiB."""
    out = bytearray(b":W&B\xe1\xbe\x00")
    for record in records:
        first = True
        while record or first:
            left = 32768 - len(out) % 32768
            if left < 8:
                out += bytes(left)
                continue
            part, record = record[: left - 7], record[left - 7 :]
            out += frame({(True, True): 1, (True, False): 2, (False, False): 3}.get((first, not record), 4), part)
            first = False
    return bytes(out)


def test_offline_runs_of_wandb_are_read_without_wandb(tmp_path: Path) -> None:
    path = put(tmp_path / "offline-run-20261125_184246-qnnb4h3a" / "run-qnnb4h3a.wandb", WANDB)
    (run,) = read(path)
    assert (run.name, run.source, run.unmapped, run.faults) == ("three", "wandb", ("own.a",), ())
    assert metric(run, "reward") == {5: 0.25, 10: 0.5, 15: 0.75}
    assert metric(run, "entropy") == {5: 1.5, 15: 1.5}
    (run,) = read(path, names={"own.a": "turns"})
    assert metric(run, "turns") == {5: 5.0, 10: 10.0, 15: 15.0} and run.unmapped == ()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_what_wandb_of_today_writes_offline_is_read(tmp_path: Path) -> None:
    import wandb

    run = wandb.init(project="toy", name="now", dir=str(tmp_path), mode="offline")
    for step in range(1, 30):
        run.log({"train/reward": step / 30, "train/global_step": step, "text": "x" * (100_000 if step == 7 else 1)})
    run.finish()
    (found,) = [run for run in runs(tmp_path) if isinstance(run, Imported)]
    assert metric(found, "reward") == pytest.approx({step: step / 30 for step in range(1, 30)})


def test_records_longer_than_a_block_and_tables_are_no_harm(tmp_path: Path) -> None:
    table = history(50, **{"t._type": "table-file", "t.ncols": 3, "reward": 0.5})
    rows = [history(s, reward=0.5, text="x" * (70_000 if s % 10 == 0 else 9_000)) for s in range(50)]
    (run,) = read(put(tmp_path / "run-a.wandb", wandb_file(*rows, table)))
    assert list(metric(run, "reward")) == list(range(51)) and run.unmapped == ()


def test_a_broken_frame_costs_the_rest_of_its_block(tmp_path: Path) -> None:
    whole = wandb_file(*(history(s, reward=0.5, text="x" * 3000) for s in range(50)))
    broken = bytearray(whole)
    broken[40_000] ^= 0xFF
    (run,) = read(put(tmp_path / "run-a.wandb", bytes(broken)))
    steps = list(metric(run, "reward"))
    assert steps[:10] == list(range(10)) and steps[-1] == 49 and 50 - 12 <= len(steps) < 50
    assert run.faults == ("run-a.wandb: the ends of 1 broken blocks left out",)
    (run,) = read(put(tmp_path / "run-a.wandb", whole[:-5]))
    assert list(metric(run, "reward")) == list(range(49)) and run.faults == ()


def test_the_charts_that_wandb_exports_are_one_run_per_name(tmp_path: Path) -> None:
    header = ["Step", *(f"{run} - train/{{}}{end}" for run in ("a - b", "seed 2") for end in ("", "__MIN", "__MAX"))]

    def chart(name: str, values: list[tuple[str, str]]) -> str:
        rows = [f'"{i}","{a}","{a}","{a}","{b}","{b}","{b}"' for i, (a, b) in enumerate(values, 1)]
        return "\n".join([",".join(f'"{cell.format(name)}"' for cell in header), *rows, ""])

    put(tmp_path / "wandb_export_1.csv", chart("reward", [("0.5", ""), ("0.25", "1"), ("NaN", "0.5")]))
    put(tmp_path / "wandb_export_2.csv", chart("loss", [("1", "2"), ("3", "4"), ("5", "6")]))
    first, second = runs(tmp_path)
    assert isinstance(first, Imported) and isinstance(second, Imported)
    assert (first.name, second.name, first.source, first.unmapped) == ("a - b", "seed 2", "wandb_csv", ())
    assert metric(first, "reward") == {1: 0.5, 2: 0.25} and metric(second, "reward") == {2: 1.0, 3: 0.5}
    assert metric(second, "loss") == {2: 4.0, 3: 6.0}  # step 1 has no metric of reinforcement learning


def test_a_broken_run_of_wandb_fails_in_one_way_only(tmp_path: Path) -> None:
    fails_in_one_way_only(tmp_path / "run-qnnb4h3a.wandb", WANDB)
