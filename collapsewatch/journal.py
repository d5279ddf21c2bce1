"""Append-only journal, one per rank: what the training side writes, in a file that no reader can lock.

A segment is a file of frames, each with its length and CRC. One `write` appends the Arrow tables of some
steps and then a commit frame; a reader stops at the last commit frame: a torn tail never shows half a step.
A rank holds a lock on `rNNNNN.lock` while it lives: the run's sign of life, which dies with the process.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

MAGIC = b"CWJ1".ljust(16, b"\0")
HEADER = struct.Struct("<IIB7x")
"""Payload bytes, CRC-32 of kind and payload, kind. Payloads are padded to 8 bytes, as Arrow likes it."""
BATCH, COMMIT = 1, 2  # not 0: a tail of zero bytes must not read as a frame
MAX_PAYLOAD = 1 << 30
SEGMENT_BYTES = 64 << 20

_SEGMENT = re.compile(r"r(\d{5})-\d{20}\.cwj")
_LOCK_ATTEMPTS = 50  # times 10 ms: who asks whether a rank lives holds its lock for microseconds


class Committed(NamedTuple):
    """What `read_committed` found: the offset to go on from, and each table's record batches, in order."""

    offset: int
    tables: dict[str, list[Any]]


class Journal:
    """Writes the segments of one rank into `run_dir/journal`.

    Raises:
        OSError: the folder cannot be written, or another live process writes this rank.
    """

    def __init__(self, run_dir: Path, rank: int = 0, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.rank = rank
        self.folder = run_dir / "journal"
        self._segment_bytes = segment_bytes
        self._fd: int | None = None
        self._lock: int | None = None
        self._begin()

    def write(self, batches: Sequence[tuple[str, Any]]) -> None:
        """Append record batches, each with its table's name, and a commit frame: all of it is kept, or none.

        Raises:
            OSError: nothing was written (the disk is full, the folder was removed); the same call may be tried
                again, and makes the folder anew.
            ValueError: a batch is larger than `MAX_PAYLOAD` bytes.
        """
        if not batches:
            return
        frames = [_frame(BATCH, _to_ipc(table, batch)) for table, batch in batches]
        data = memoryview(b"".join([*frames, _frame(COMMIT, b"")]))
        if self._lock is None:
            self._begin()
        elif self._fd is None or self._size >= self._segment_bytes:
            self._open()
        assert self._fd is not None
        if os.fstat(self._fd).st_nlink == 0:  # writing would succeed, and nobody would ever read it
            self.close()
            raise FileNotFoundError("the journal was removed; what is recorded from now on is kept in a new one")
        sent = 0
        try:
            while sent < len(data):
                sent += os.write(self._fd, data[sent:])
        except OSError:
            self._drop_tail()
            raise
        self._size += len(data)

    def close(self) -> None:
        """Give up the segment and the sign of life; what was written stays. Also right in a forked child."""
        for fd in (self._fd, self._lock):
            if fd is not None:
                os.close(fd)
        self._fd = self._lock = None

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.folder / f"r{self.rank:05d}.lock")
        try:
            self._open()
        except OSError:
            self.close()
            raise

    def _open(self) -> None:
        # Names are never used twice, for the database remembers offsets by name; and they sort by age even
        # when the clock went back.
        taken = [int(path.stem[7:]) for path in segments(self.folder.parent) if rank_of(path) == self.rank]
        serial = max(time.time_ns(), max(taken, default=0) + 1)
        path = self.folder / f"r{self.rank:05d}-{serial:020d}.cwj"
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o640)
        try:
            os.write(fd, MAGIC)
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        if self._fd is not None:
            os.close(self._fd)
        self._fd, self._size = fd, len(MAGIC)

    def _drop_tail(self) -> None:
        """Cut a half-written frame off, or else leave the segment: nobody reads past a torn frame."""
        assert self._fd is not None
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            os.close(self._fd)
            self._fd = None


def read_committed(path: Path, after: int = 0) -> Committed:
    """What is committed in a segment past byte `after`; a torn tail or a wrong CRC ends the scan silently.

    Raises:
        OSError: the file cannot be read.
    """
    tables: dict[str, list[Any]] = {}
    pending: list[tuple[str, Any]] = []
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return Committed(after, tables)
        good = file.seek(max(after, len(MAGIC)))
        size = os.fstat(file.fileno()).st_size
        while (frame := _read_frame(file, size)) is not None:
            kind, body = frame
            if kind == BATCH:
                try:
                    pending.append(_from_ipc(body))
                except (pa.ArrowException, ValueError):
                    break
                continue
            for table, batch in pending:
                tables.setdefault(table, []).append(batch)
            pending.clear()
            good = file.tell()
    return Committed(good, tables)


def segments(run_dir: Path) -> list[Path]:
    """The segments of a run, by rank and then by age."""
    return sorted(path for path in (run_dir / "journal").glob("r*.cwj") if _SEGMENT.fullmatch(path.name))


def rank_of(segment: Path) -> int:
    """The rank that wrote a segment."""
    return int(segment.name[1:6])


def live_ranks(run_dir: Path) -> set[int]:
    """The ranks whose process is alive and writing; a file system that cannot tell counts as alive."""
    live = set()
    for path in (run_dir / "journal").glob("r*.lock"):
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # the run was removed meanwhile
            continue
        except OSError:  # somebody else's
            live.add(int(path.stem[1:]))
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            live.add(int(path.stem[1:]))
        finally:
            os.close(fd)
    return live


def discard(segment: Path, offset: int) -> None:
    """Remove a segment that nobody writes any more and whose first `offset` bytes are safe elsewhere.

    One with bytes behind them (torn by a crash, or damaged) is renamed to `.torn`: nothing goes unread.
    """
    if segment.stat().st_size > max(offset, len(MAGIC)):
        segment.rename(segment.with_suffix(".torn"))
    else:
        segment.unlink()


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:  # a file system without locks: one writer per rank is then up to the user
            return fd
    os.close(fd)
    raise OSError(f"rank {int(path.stem[1:])} is being written by another live process")


def _frame(kind: int, body: bytes) -> bytes:
    if len(body) > MAX_PAYLOAD:
        raise ValueError(f"journal frame: got {len(body)} bytes, expected at most {MAX_PAYLOAD}")
    return HEADER.pack(len(body), zlib.crc32(body, kind), kind) + body + b"\0" * (-len(body) % 8)


def _read_frame(file: BinaryIO, size: int) -> tuple[int, bytes] | None:
    head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        return None
    length, crc, kind = HEADER.unpack(head)
    padded = length + (-length % 8)
    # Checked before the read: a damaged length must not make us allocate.
    if kind not in (BATCH, COMMIT) or length > MAX_PAYLOAD or file.tell() + padded > size:
        return None
    body = file.read(padded)[:length]
    return (kind, body) if zlib.crc32(body, kind) == crc else None


def _to_ipc(table: str, batch: Any) -> bytes:
    """The batch as an Arrow stream with its schema (about 1 kB): a frame explains itself, at any offset."""
    sink = pa.BufferOutputStream()
    named = batch.replace_schema_metadata({"table": table})
    with pa.ipc.new_stream(sink, named.schema) as stream:
        stream.write_batch(named)
    return bytes(sink.getvalue().to_pybytes())


def _from_ipc(body: bytes) -> tuple[str, Any]:
    batch = pa.ipc.open_stream(body).read_next_batch()
    table = (batch.schema.metadata or {}).get(b"table")
    if table is None:
        raise ValueError("journal frame: got a batch that names no table")
    return table.decode(), batch
