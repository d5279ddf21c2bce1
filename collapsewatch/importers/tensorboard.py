"""TensorBoard event files, read without TensorBoard: TFRecord frames around `Event` messages.

A frame is the length (uint64), its checksum, the message, its checksum; a checksum is a masked CRC-32C. Field
numbers are those of event.proto, summary.proto and tensor.proto in tensorboard.compat.proto.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import ClassVar

from .base import Imported, Importer
from .source import Source
from .wire import WireError, fields, packed, signed

_HEADER = struct.Struct("<QI")
_CHECKED = 1_000_000  # a longer message holds images or histograms: no scalar, and checksums are slow
_LONGEST = 1 << 31
_SAYING_NOTHING = re.compile(r"(?:tb|tensorboard|runs?|logs?)(?:[_-](?:tb|tensorboard|runs?|logs?))*", re.IGNORECASE)
# event.proto: step = 2, summary = 5; summary.proto: value = 1, tag = 1, simple_value = 2, tensor = 8
_STEP, _SUMMARY, _VALUE, _TAG, _SIMPLE, _TENSOR = 2, 5, 1, 1, 2, 8
# tensor.proto: dtype = 1, tensor_content = 4, and one field of values per kind of number
_DTYPE, _CONTENT, _FLOATS, _DOUBLES = 1, 4, 5, 6
_CODES = {1: "f", 2: "d", 3: "i", 9: "q"}


class TensorBoard(Importer):
    """Reads the scalars of an event file; several in a folder are pieces of a run, or runs of their own."""

    source: ClassVar[str] = "tensorboard"

    def sniff(self, source: Source) -> bool:
        return "tfevents" in source.name and _begins(source.path)

    def read(self, source: Source) -> list[Imported]:
        steps: dict[int, dict[str, float]] = defaultdict(dict)
        faults: list[str] = []
        for step, values in _events(source, faults):
            steps[step].update(values)
        return [self.scalars(source, sorted(steps.items()), _name(source.path), tuple(faults))]


def _name(path: Path) -> str:
    """The folder's name, or its parent's where it is `logs`; beside other event files, with the time it began."""
    folder = path.resolve().parent
    name = folder.parent.name if _SAYING_NOTHING.fullmatch(folder.name) else folder.name
    alone = len(list(islice(folder.glob("*tfevents*"), 2))) == 1
    return name if alone else f"{name}-{path.name.partition('tfevents.')[2].partition('.')[0]}"


def _begins(path: Path) -> bool:
    """Is the first frame's length what its checksum says?"""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    return len(head) == _HEADER.size and _sound(head)


def _events(source: Source, faults: list[str]) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Step and scalars of each event; a file that is still being written ends in half a frame."""
    broken = 0
    with source.path.open("rb") as file:
        while len(head := file.read(_HEADER.size)) == _HEADER.size:
            size = _HEADER.unpack(head)[0]
            if not _sound(head) or size > _LONGEST:
                faults.append(f"{source.name}: broken at byte {file.tell() - _HEADER.size}, what follows is left out")
                break
            message, check = file.read(size), file.read(4)
            if len(check) < 4:
                break
            if size <= _CHECKED and _masked(message) != int.from_bytes(check, "little"):
                broken += 1
                continue
            try:
                yield _scalars(message)
            except WireError:
                broken += 1
    if broken:
        faults.append(f"{source.name}: {broken} broken events left out")


def _scalars(message: bytes) -> tuple[int, dict[str, float]]:
    step, found = 0, dict[str, float]()
    for number, value in fields(message):
        if number == _STEP and isinstance(value, int):
            step = signed(value)
        elif number == _SUMMARY and isinstance(value, bytes):
            for kind, summary in fields(value):
                if kind == _VALUE and isinstance(summary, bytes):
                    found.update(_scalar(summary))
    return step, found


def _scalar(summary: bytes) -> dict[str, float]:
    """The tag and its number; nothing for a text, an image or a histogram."""
    tag, numbers = "", tuple[float, ...]()
    for number, value in fields(summary):
        if number == _TAG and isinstance(value, bytes):
            tag = value.decode("utf-8", "replace")
        elif number == _SIMPLE:
            numbers = packed("f", value)
        elif number == _TENSOR and isinstance(value, bytes):
            numbers = _tensor(value)
    return {tag: numbers[0]} if len(numbers) == 1 else {}


def _tensor(tensor: bytes) -> tuple[float, ...]:
    found = dict(fields(tensor))
    code = _CODES.get(int(kind) if isinstance(kind := found.get(_DTYPE), int) else 0)
    if code and _CONTENT in found:
        return packed(code, found[_CONTENT])
    return packed("f", found.get(_FLOATS, b"")) or packed("d", found.get(_DOUBLES, b""))


@lru_cache(maxsize=4096)  # most messages have one of a few lengths
def _sound(head: bytes) -> bool:
    return head[8:] == _masked(head[:8]).to_bytes(4, "little")


def _table() -> list[int]:
    """CRC-32C (Castagnoli) of each byte."""
    found = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        found.append(byte)
    return found


_CRC = _table()


def _masked(data: bytes) -> int:
    """The checksum as TFRecord stores it: rotated, so that it is no checksum of a text that holds checksums."""
    crc, table = 0xFFFFFFFF, _CRC
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
