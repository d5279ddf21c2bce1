"""A foreign file as text: compressed or not, in the common encodings, by streaming lines or as a whole."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

HEAD = 4_000_000  # bytes that are read to tell what a file is: loading a model may print a lot before the first step
LINE = 8_000_000  # bytes of a line that are kept: no row of any log is longer, and an endless line must not fill memory
DOCUMENT = 256_000_000  # bytes of a file that can only be read as a whole: parsed JSON takes many times its size
CONSOLE = (".log", ".txt", ".out", ".err", "")
"""How files are called that a shell writes a console into."""
JSON_LINES = (".jsonl", ".ndjson", ".json")
"""How files are called that hold one JSON value per line."""
_BLOCK = 1_000_000
_COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class TooLong(ValueError):
    """A file that can only be read as a whole, and is too long for it."""


class Source:
    """One file, opened as often as it is read; what all sniffers look at is read once.

    `stem` and `suffix` are those of the name without the compression's suffix, the latter in lower case and
    without a log rotation's number. `faults` says what the last reading could not get at, `cut` whether its
    last line had no end: whatever writes the file may be in the middle of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        inner = Path(path.stem) if path.suffix.lower() in _COMPRESSED else Path(path.name)
        self.stem = inner.stem
        self.suffix = (Path(self.stem) if inner.suffix[1:].isdecimal() else inner).suffix.lower()
        self.faults: list[str] = []
        self.cut = False

    @cached_property
    def head(self) -> str:
        """The first 4 MB; the last line may be cut."""
        read, parts = 0, []
        for block in self._blocks():
            parts.append(block)
            read += len(block)
            if read >= HEAD:
                break
        return b"".join(parts)[:HEAD].decode("utf-8", "replace")

    @cached_property
    def head_rows(self) -> list[dict[str, Any]]:
        """The first 100 JSON objects that stand alone on a line of the head."""
        found = (parse(line) for line in self.head.split("\n") if "{" in line)
        return list(islice((row for row in found if isinstance(row, dict)), 100))

    def raw_lines(self, having: re.Pattern[bytes] | None = None) -> Iterator[bytes]:
        r"""Lines as UTF-8 without their ends, in bounded memory; `\n`, `\r\n` and a progress bar's `\r` end one.

        Only lines with `having` in them, if that is given: the others cost next to nothing if it begins with plain
        text. Of a line longer than `LINE` the rest is left out. A last line without an end counts, and sets `cut`.
        """
        rest, skipping, self.cut = b"", False, False
        for block in self._blocks():
            block = rest + block
            # A `\r` at the end may be half of one; it is looked at again with what follows.
            end = max(block.rfind(b"\n"), block.rfind(b"\r", 0, len(block) - 1)) + 1
            begin = _after_end(block) if skipping and end else 0
            if not skipping or end:
                whole = block[begin:end]
                yield from whole.splitlines() if having is None else _holding(whole, having)
            rest, skipping = block[end:], skipping and not end
            if skipping:
                rest = rest[-1:]
            elif len(rest) > LINE:
                if having is None or having.search(rest):
                    yield rest[:LINE]
                rest, skipping = rest[-1:], True
        if rest and not skipping and (having is None or having.search(rest)):
            self.cut = not rest.endswith(b"\r")
            yield rest.rstrip(b"\r")

    def lines(self) -> Iterator[str]:
        """As `raw_lines`, as text; what is not UTF-8 becomes U+FFFD."""
        return (line.decode("utf-8", "replace") for line in self.raw_lines())

    def text(self) -> str:
        """All of it.

        Raises:
            TooLong: more than `DOCUMENT` bytes.
        """
        parts, read = [], 0
        for block in self._blocks():
            parts.append(block)
            read += len(block)
            if read > DOCUMENT:
                raise TooLong(f"{self.name}: got more than {DOCUMENT} bytes in one document, expected a shorter one")
        return b"".join(parts).decode("utf-8", "replace")

    def _blocks(self) -> Iterator[bytes]:
        """The content as UTF-8 without a byte order mark; a compressed file that ends early gives what it holds."""
        self.faults.clear()
        blocks = self._stored()
        first = next(blocks, b"")
        bom = next((bom for bom in _BOMS if first.startswith(bom)), b"")
        if not bom.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            yield from filter(None, chain([first[len(bom) :]], blocks))
            return
        decode = codecs.getincrementaldecoder(_BOMS[bom])("replace").decode
        yield from filter(None, (decode(block).encode() for block in chain([first[len(bom) :]], blocks)))

    def _stored(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            start = file.read(4)
        kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
        read = 0
        with pa.input_stream(self.path, compression=kind) as stream:
            while True:
                try:
                    block = stream.read(_BLOCK)
                except OSError as error:
                    if not read:
                        raise
                    self.faults.append(f"{self.name}: compressed data ends early or is broken ({error})")
                    return
                if not block:
                    return
                read += len(block)
                yield block


def _holding(block: bytes, having: re.Pattern[bytes]) -> Iterator[bytes]:
    """The lines of a block of whole lines that hold a match."""
    found = having.search(block)
    while found:
        at = found.start()
        begin = block.rfind(b"\n", 0, at) + 1
        begin = max(block.rfind(b"\r", begin, at) + 1, begin)
        end = block.find(b"\n", at)
        end = len(block) if end < 0 else end
        bar = block.find(b"\r", at, end)
        end = end if bar < 0 else bar
        yield block[begin:end]
        found = having.search(block, end)


def _after_end(block: bytes) -> int:
    """Where the second line begins."""
    return min(i + 1 for i in (block.find(b"\n"), block.find(b"\r")) if i >= 0)


def parse(text: str) -> Any:
    """A JSON value, or None for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
