from __future__ import annotations

import os
import resource
import shutil
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsewatch import journal
from collapsewatch.journal import Journal, discard, live_ranks, rank_of, read_committed, segments


def batch(*values: float) -> Any:
    return pa.RecordBatch.from_pydict({"value": pa.array(values, pa.float64())})


def written(run_dir: Path, writes: list[list[tuple[str, list[float]]]]) -> tuple[Path, list[int]]:
    """A closed segment, and its size after each write."""
    writer = Journal(run_dir)
    (path,) = segments(run_dir)
    sizes = [path.stat().st_size]
    for write in writes:
        writer.write([(table, batch(*values)) for table, values in write])
        sizes.append(path.stat().st_size)
    writer.close()
    return path, sizes


def content(path: Path, after: int = 0) -> dict[str, list[float]]:
    tables = read_committed(path, after).tables
    return {name: [v for b in batches for v in b["value"].to_pylist()] for name, batches in tables.items()}


tables = st.sampled_from(["steps", "metrics", "a table"])
writes = st.lists(
    st.lists(st.tuples(tables, st.lists(st.floats(allow_nan=False), max_size=4)), min_size=1, max_size=3),
    max_size=4,
)


def expected(writes: list[list[tuple[str, list[float]]]]) -> dict[str, list[float]]:
    out: dict[str, list[float]] = {}
    for write in writes:
        for table, values in write:
            out.setdefault(table, []).extend(values)
    return out


def check_cut(path: Path, sizes: list[int], writes: list[list[tuple[str, list[float]]]], cut: int) -> None:
    os.truncate(path, cut)
    whole = sum(size <= cut for size in sizes) - 1
    assert content(path) == (expected(writes[:whole]) if whole > 0 else {})
    assert read_committed(path).offset == (sizes[whole] if whole >= 0 else 0)


def test_every_truncation_of_a_segment_shows_whole_writes_only(tmp_path: Path) -> None:
    writes = [[("steps", [1.0]), ("metrics", [2.0, 3.0])], [("steps", [4.0])]]
    path, sizes = written(tmp_path, writes)
    for cut in range(sizes[-1], -1, -1):
        check_cut(path, sizes, writes, cut)


@settings(max_examples=60, deadline=None)
@given(writes, st.data())
def test_truncations_of_any_segment_show_whole_writes_only(
    writes: list[list[tuple[str, list[float]]]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, sizes = written(Path(folder), writes)
        cuts = data.draw(st.lists(st.integers(0, sizes[-1]), min_size=1, max_size=8))
        for cut in sorted(cuts, reverse=True):
            check_cut(path, sizes, writes, cut)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_byte_ends_the_scan_before_it(data: st.DataObject) -> None:
    writes = [[("steps", [1.0, 2.0]), ("metrics", [3.0])], [("steps", [4.0])], [("metrics", [5.0])]]
    with tempfile.TemporaryDirectory() as folder:
        path, sizes = written(Path(folder), writes)
        raw = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(bytes(raw))
        before = sum(size <= at for size in sizes) - 1
        found = content(path)
        # Header reserve and padding bytes are not covered by the CRC: a flip there changes nothing.
        candidates = [expected(writes[:n]) for n in (before, len(writes))]
        assert found in ([{}, *candidates] if before < 0 else candidates)


def test_reads_on_from_an_offset(tmp_path: Path) -> None:
    writes = [[("steps", [float(i)])] for i in range(5)]
    path, sizes = written(tmp_path, writes)
    for done in range(6):
        assert content(path, sizes[done]) == expected(writes[done:])
        assert read_committed(path, sizes[done]).offset == sizes[-1]


def test_a_huge_length_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sizes = written(tmp_path, [[("steps", [1.0])]])
    for length in (journal.MAX_PAYLOAD + 1, 0xFFFFFFFF, 1 << 29):
        with open(path, "ab") as file:
            file.write(journal.HEADER.pack(length, 0, journal.BATCH))
            file.truncate(sizes[-1] + 16 + 100)
        assert content(path) == {"steps": [1.0]}
        with open(path, "r+b") as file:
            file.truncate(sizes[-1])
    monkeypatch.setattr(journal, "MAX_PAYLOAD", 100)
    writer = Journal(tmp_path, rank=1)
    with pytest.raises(ValueError, match="at most 100"):
        writer.write([("steps", batch(1.0))])
    writer.close()


def test_a_frame_with_a_right_crc_and_no_arrow_in_it_ends_the_scan(tmp_path: Path) -> None:
    path, sizes = written(tmp_path, [[("steps", [1.0])]])
    for body in (b"not arrow", b"", pa.BufferOutputStream().getvalue().to_pybytes()):
        frame = struct.pack("<IIB7x", len(body), zlib.crc32(body, 1), 1) + body + b"\0" * (-len(body) % 8)
        path.write_bytes(path.read_bytes()[: sizes[-1]] + frame + struct.pack("<IIB7x", 0, 2, 2))
        assert content(path) == {"steps": [1.0]}


def test_a_full_disk_leaves_no_torn_frame_and_the_write_can_be_repeated(tmp_path: Path) -> None:
    writer = Journal(tmp_path)
    writer.write([("steps", batch(1.0))])
    (path,) = segments(tmp_path)
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))  # the kernel writes 100 bytes, then refuses
    try:
        with pytest.raises(OSError):
            writer.write([("steps", batch(2.0))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == size
    writer.write([("steps", batch(2.0))])
    writer.close()
    assert content(path) == {"steps": [1.0, 2.0]}


def test_segments_rotate_sort_by_age_and_never_reuse_a_name(tmp_path: Path) -> None:
    writer = Journal(tmp_path, rank=3, segment_bytes=1)
    for i in range(3):
        writer.write([("steps", batch(i))])
    writer.close()
    names = segments(tmp_path)
    assert [content(path) for path in names] == [{}, {"steps": [0.0]}, {"steps": [1.0]}, {"steps": [2.0]}]
    ahead = names[-1].with_name("r00003-99999999999999999998.cwj")  # a clock that was far ahead
    names[-1].rename(ahead)
    again = Journal(tmp_path, rank=3)
    again.close()
    assert segments(tmp_path)[-1].name == "r00003-99999999999999999999.cwj"
    assert {rank_of(path) for path in segments(tmp_path)} == {3}


def test_a_rank_is_alive_while_its_journal_is_open_and_has_one_writer(tmp_path: Path) -> None:
    assert live_ranks(tmp_path) == set()
    one, two = Journal(tmp_path, 0), Journal(tmp_path, 2)
    assert live_ranks(tmp_path) == {0, 2}
    with pytest.raises(OSError, match="rank 2 is being written by another live process"):
        Journal(tmp_path, 2)
    two.close()
    assert live_ranks(tmp_path) == {0}
    one.close()
    assert live_ranks(tmp_path) == set()


def test_a_dead_segment_is_removed_but_never_unread_bytes(tmp_path: Path) -> None:
    path, sizes = written(tmp_path, [[("steps", [1.0])], [("steps", [2.0])]])
    discard(path, sizes[1])
    torn = path.with_suffix(".torn")
    assert torn.exists() and not path.exists() and segments(tmp_path) == []
    os.rename(torn, path)
    discard(path, sizes[2])
    assert not path.exists() and not torn.exists()


def test_a_removed_journal_is_said_and_begun_anew(tmp_path: Path) -> None:
    writer = Journal(tmp_path / "run")
    writer.write([("steps", batch(1.0))])
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="removed"):
        writer.write([("steps", batch(2.0))])
    assert live_ranks(tmp_path / "run") == set()
    writer.write([("steps", batch(2.0))])
    (path,) = segments(tmp_path / "run")
    assert content(path) == {"steps": [2.0]} and live_ranks(tmp_path / "run") == {0}
    writer.close()
