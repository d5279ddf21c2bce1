"""TensorBoard's event files and the messages in them: whole, resumed, cut and broken."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapsewatch.importers import Imported, NoTraining, runs
from collapsewatch.importers.tensorboard import _masked
from collapsewatch.importers.wire import WireError, fields
from tests.written import LOGS, TENSORBOARD, TENSORBOARDX, fails_in_one_way_only, field, metric, put, read

EVENTS = "events.out.tfevents.1795631623.vm.1.0"


def crc32c(data: bytes) -> int:
    """Bit by bit, by the polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)


def event(step: int, tag: str, value: float) -> bytes:
    scalar = field(1, tag.encode()) + b"\x15" + struct.pack("<f", value)
    message = b"\x09" + struct.pack("<d", 1.8e9) + field(2, step) + field(5, field(1, scalar))
    length = struct.pack("<Q", len(message))
    return length + masked(length) + message + masked(message)


def test_checksums_are_those_of_the_polynomial() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    for data in (b"", b"123456789", TENSORBOARD):
        assert _masked(data) == struct.unpack("<I", masked(data))[0]


@pytest.mark.parametrize("content", [TENSORBOARD, TENSORBOARDX], ids=["tensors", "plain"])
def test_event_files_are_read_without_tensorboard(content: bytes, tmp_path: Path) -> None:
    (run,) = read(put(tmp_path / "my_run" / EVENTS, content))
    assert (run.name, run.source, run.unmapped, run.faults) == ("my_run", "tensorboard", (), ())
    assert metric(run, "reward") == {5: 0.25, 10: 0.5}
    assert metric(run, "entropy") == ({5: 1.5, 10: 1.5} if content is TENSORBOARD else {})


@pytest.mark.skipif(importlib.util.find_spec("tensorboardX") is None, reason="needs tensorboardX")
def test_what_a_summary_writer_of_today_writes_is_read(tmp_path: Path) -> None:
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(tmp_path / "now")) as writer:
        for step in range(20):
            writer.add_scalar("train/reward", step / 20, step)
            writer.add_text("train/generated_samples", "<tool_call>", step)
    (run,) = runs(tmp_path)
    assert isinstance(run, Imported)
    assert metric(run, "reward") == pytest.approx({step: step / 20 for step in range(20)})


def test_a_folder_s_event_files_are_pieces_of_a_run_or_runs_of_their_own(tmp_path: Path) -> None:
    def written(steps: range) -> bytes:
        return b"".join(event(step, "train/reward", step / 100) for step in steps)

    put(tmp_path / "resumed" / "events.out.tfevents.1000.a", written(range(1, 51)))
    put(tmp_path / "resumed" / "events.out.tfevents.2000.a", written(range(41, 91)))
    put(tmp_path / "again" / "logs" / "events.out.tfevents.1000.a", written(range(1, 51)))
    put(tmp_path / "again" / "logs" / "events.out.tfevents.2000.a", written(range(1, 31)))
    put(tmp_path / "again" / "logs" / "hparams" / "events.out.tfevents.3000.a", event(0, "hp_metric", -1.0))
    found = [run for run in runs(tmp_path) if isinstance(run, Imported)]
    assert [(r.name, r.records[0].step, r.records[-1].step) for r in found] == [
        ("again-1000", 1, 50),
        ("again-2000", 1, 30),
        ("resumed-1000", 1, 90),
    ]


def test_a_half_written_event_ends_the_file_and_a_broken_one_costs_itself(tmp_path: Path) -> None:
    frames = [event(step, "reward", 0.5) for step in range(1, 8)]
    (run,) = read(put(tmp_path / "cut" / EVENTS, b"".join(frames)[:-3]))
    assert (list(metric(run, "reward")), run.faults) == ([1, 2, 3, 4, 5, 6], ())
    flipped = bytearray(frames[2])
    flipped[20] ^= 1
    (run,) = read(put(tmp_path / "flipped" / EVENTS, b"".join([*frames[:2], bytes(flipped), *frames[3:]])))
    assert (list(metric(run, "reward")), run.faults) == ([1, 2, 4, 5, 6, 7], (f"{EVENTS}: 1 broken events left out",))
    broken = b"".join(frames[:3]) + b"\xff" * 12 + b"".join(frames[3:])
    (run,) = read(put(tmp_path / "broken" / EVENTS, broken))
    assert list(metric(run, "reward")) == [1, 2, 3] and "broken at byte" in run.faults[0]


@pytest.mark.skipif(not LOGS.exists(), reason="needs the shared logs")
def test_real_event_files_are_mapped_whole() -> None:
    lengths = {"tb_wordle_dead": 20, "tb_wordle_entropy_collapse": 300, "tb_wordle_healthy1": 100}
    for name, length in lengths.items():
        (run,) = runs(LOGS / name)
        assert isinstance(run, Imported)
        assert (run.name, len(run.records), run.unmapped, run.faults) == (name, length, (), ())
        assert {"reward", "entropy", "completions/clipped_ratio", "grad_norm"} <= run.records[0].metrics.keys()


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_none(data: bytes) -> None:
    try:
        found = list(fields(data))
    except WireError:
        return
    assert all(isinstance(value, int | bytes) for _, value in found)


def test_a_broken_event_file_fails_in_one_way_only(tmp_path: Path) -> None:
    fails_in_one_way_only(tmp_path / EVENTS, TENSORBOARD)


def test_a_tracker_s_run_without_training_says_so(tmp_path: Path) -> None:
    path = put(tmp_path / "sft" / EVENTS, b"".join(event(s, "train/loss", 1.0) for s in range(9)))
    with pytest.raises(NoTraining, match="got no row with a metric of training"):
        read(path)
    assert list(runs(tmp_path)) == []
