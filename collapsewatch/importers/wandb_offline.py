"""W&B runs on disk (`run-ID.wandb`), read without W&B: a log of `Record` messages in checked frames.

The file is LevelDB's log format behind a header of 7 bytes: blocks of 32 KiB; a frame is a CRC-32 of kind and
data, the length, the kind (whole, first, middle, last). Field numbers are those of wandb_internal.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

from .base import Imported, Importer
from .columns import Columns
from .grouping import Stepped, plain, trainer_steps
from .source import Source, parse
from .wire import WireError, fields

_MAGIC = b":W&B\xe1\xbe"
_HEADER, _FRAME, _BLOCK = 7, struct.Struct("<IHB"), 1 << 15
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
# Record: history = 2, run = 17; HistoryRecord: item = 1, step = 2; HistoryItem; HistoryStep: num = 1; RunRecord
_HISTORY, _RUN, _ITEM, _STEP, _KEY, _NESTED, _JSON, _NUM = 2, 17, 1, 2, 1, 2, 16, 1
_RUN_ID, _DISPLAY_NAME = 1, 8


class WandbOffline(Importer):
    """Reads the logged history; the step is the trainer's own where a row has it, else W&B's count of rows."""

    source: ClassVar[str] = "wandb"

    def sniff(self, source: Source) -> bool:
        if source.suffix != ".wandb":
            return False
        with source.path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC

    def home(self, path: Path) -> Path:
        """The folder W&B makes for each run: so those of one resumed run stand beside each other."""
        return path.parent

    def read(self, source: Source) -> list[Imported]:
        names, faults, rows = dict[int, str](), list[str](), list[Stepped]()
        broken = 0
        for record in _records(source, faults):
            try:
                for number, value in fields(record):
                    if number == _HISTORY and isinstance(value, bytes):
                        rows.append(_history(value))
                    elif number == _RUN and isinstance(value, bytes):
                        names |= {n: _text(v) for n, v in fields(value) if n in (_RUN_ID, _DISPLAY_NAME)}
            except WireError:
                broken += 1
        if broken:
            faults.append(f"{source.name}: {broken} broken records left out")
        name = names.get(_DISPLAY_NAME) or names.get(_RUN_ID) or source.path.resolve().parent.name
        return [self.scalars(source, trainer_steps(rows, Columns(self.options.names)), name, tuple(faults))]


def _records(source: Source, faults: list[str]) -> Iterator[bytes]:
    """The messages; a broken frame costs its block, as in LevelDB, and a last block that is cut only its end."""
    parts: list[bytes] = []
    lost = 0
    with source.path.open("rb") as file:
        file.seek(_HEADER)
        begin = _HEADER
        while block := file.read(_BLOCK - begin):
            at, whole_block = 0, begin + len(block) == _BLOCK
            begin = 0
            while at + _FRAME.size <= len(block):
                check, size, kind = _FRAME.unpack_from(block, at)
                data = block[at + _FRAME.size : at + _FRAME.size + size]
                at += _FRAME.size + size
                if not kind and not size:  # the rest of the block is filled up
                    break
                if len(data) < size or crc32(data, crc32(bytes([kind]))) != check:
                    lost += whole_block or len(data) == size
                    parts.clear()
                    break
                if kind in (_WHOLE, _FIRST):
                    parts.clear()
                elif not parts:  # its beginning was lost
                    continue
                parts.append(data)
                if kind in (_WHOLE, _LAST):
                    yield b"".join(parts)
                    parts.clear()
    if lost:
        faults.append(f"{source.name}: the ends of {lost} broken blocks left out")


def _history(record: bytes) -> tuple[int | None, dict[str, Any]]:
    """W&B's step and the numbers that were logged, nested ones by the path to them; no tables and pictures."""
    step, row = None, dict[str, Any]()
    for number, value in fields(record):
        if not isinstance(value, bytes):
            continue
        if number == _STEP:
            step = next((n for kind, n in fields(value) if kind == _NUM and isinstance(n, int)), 0)
        elif number == _ITEM:
            path, logged = list[str](), ""
            for kind, part in fields(value):
                if kind in (_KEY, _NESTED):
                    path.append(_text(part))
                elif kind == _JSON:
                    logged = _text(part)
            row[".".join(filter(None, path))] = parse(logged)
    media = tuple(name.removesuffix("_type") for name in row if name.endswith("._type"))
    return step, plain({name: value for name, value in row.items() if not name.startswith(media)})


def _text(value: int | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""
