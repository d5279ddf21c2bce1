"""Markers that are not tokens of their own: found in the bytes, or the text, that several tokens spell."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from .base import ChatFormat

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# A quote without its partner runs to the end, and repeats are possessive: one pass in all.
_BRACKETS = re.compile(rb"""("|')(?:(?!\1)[^\\]|\\.)*+(?:\1|\\?\Z)|[\[{(]|[\]})]""", re.DOTALL)
# Input that is no bracketed value (ReAct's) may end anywhere.
_PLAIN_INPUT = re.compile(rb"\s*[^\s\[{]")
# Control tokens amid spelled text: 0xff is in no UTF-8, the private planes are in no text.
_SIGN, _PLANE = 0xFF, 0x100000
_PRIVATE = re.compile(f"[{chr(_PLANE)}-{chr(_PLANE + 0xFFFF)}]")


def spelled(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that splits at any of `texts`, the longest first; at nothing if there is none."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else "((?!))")


class Event(NamedTuple):
    """A marker, or the bounds of a call that has none, over tokens `first` to `last` of a turn."""

    first: int
    last: int
    role: str
    drawn: bool
    """Is it a marker? What only follows from the text, a call's beginning or end, is neither legal nor illegal."""
    marker: str = ""
    """The marker, as text; empty for what is none."""


class Spelling:
    """Where several tokens spell a marker of a chat format, or bound a call that no marker bounds."""

    def __init__(self, chat_format: ChatFormat, tokens: Sequence[str], vocab: Mapping[str, int]) -> None:
        self._role = [chat_format.role[token] for token in tokens]
        self._missing = [text for text in chat_format.role if text not in vocab]
        self.loose = bool(chat_format.implicit) or "prefix" in chat_format.role.values()
        self._plain = chat_format.plain
        self.active = bool(self._missing) or self.loose
        self._bytes: list[bytes] = token_bytes(vocab) if self.active else []

        split = spelled(tokens).split
        coded = {t: [tokens.index(part) if part in tokens else part for part in split(t)] for t in self._missing}
        as_bytes = {t: b"".join(p.encode() if isinstance(p, str) else _sign(p) for p in coded[t]) for t in coded}
        as_text = {t: "".join(p if isinstance(p, str) else chr(_PLANE + p) for p in coded[t]) for t in coded}
        longest_first = sorted(self._missing, key=len, reverse=True)
        self._in_bytes = re.compile(
            b"|".join([*(re.escape(as_bytes[t]) for t in longest_first), b"\xff(.)"]), re.DOTALL
        )
        self._in_text = re.compile(
            "(" + "|".join([*(re.escape(as_text[t]) for t in longest_first), _PRIVATE.pattern]) + ")"
        )
        self._spelled = {as_bytes[text]: (chat_format.role[text], text) for text in self._missing}
        self._marker = {as_text[text]: text for text in self._missing}
        self._marker |= {chr(_PLANE + k): token for k, token in enumerate(tokens)}
        self._signs = {token: sign for sign, token in self._marker.items() if len(sign) == 1}
        self._implicit = re.compile(chat_format.implicit.encode()) if chat_format.implicit else None
        firsts = {marker[:1] for marker in self._spelled}
        # (V + 1,): may a marker begin in the token? The last entry stands for ids beyond the vocabulary.
        self.begins = np.array([any(first in token for first in firsts) for token in [*self._bytes, b"?"]], bool)
        if self.active:
            self.begins[[vocab[token] for token in tokens]] = bytes([_SIGN]) in firsts

    def written(self, encode: Callable[..., list[int]]) -> dict[str, tuple[int, ...]]:
        """The ids that the tokenizer's `encode` writes each marker with that is no token, where they do spell it."""
        ids = {text: tuple(encode(text, add_special_tokens=False)) for text in self._missing}
        # Not so where characters are unknown to it; sentencepiece may put a space in front.
        return {t: i for t, i in ids.items() if b"".join(self._bytes[j] for j in i).lstrip() == t.encode()}

    def pieces(self, parts: Sequence[str]) -> list[str]:
        """Cut `parts` (text, control token, text, ..., text) at the markers that are not tokens, too."""
        if not self._missing:
            return list(parts)
        joined = "".join(self._signs[p] if i % 2 else _PRIVATE.sub("\ufffd", p) for i, p in enumerate(parts))
        return [self._marker[p] if i % 2 else p for i, p in enumerate(self._in_text.split(joined))]

    def events(self, ids: Sequence[int], control: Sequence[int]) -> Iterator[Event]:
        """The events of one turn of token `ids` (T,), of which `control` (T,) says which control token, or < 0."""
        table, known = self._bytes, len(self._bytes)
        parts = [
            _sign(k) if k >= 0 else table[i] if 0 <= i < known else b"?" for i, k in zip(ids, control, strict=True)
        ]
        data, ends = b"".join(parts), list(accumulate(map(len, parts)))

        def event(begin: int, end: int, role: str, drawn: bool, marker: str = "") -> Event:
            return Event(bisect_right(ends, begin), bisect_right(ends, end - 1), role, drawn, marker)

        role, loose, at = "start", False, 0
        for match in self._in_bytes.finditer(data):
            if self.loose:
                yield from (event(*found) for found in self._bounds(data, at, match.start(), role, loose))
            if found := self._spelled.get(match.group()):
                role, marker = found
                yield event(match.start(), match.end(), role, True, marker)
            else:
                role = self._role[match.group(1)[0] - 0x80]
            loose = role == "prefix" or (loose and role == "divide")
            at = match.end()
        if self.loose:
            yield from (event(*found) for found in self._bounds(data, at, len(data), role, loose))

    def _bounds(self, data: bytes, at: int, end: int, role: str, loose: bool) -> Iterator[tuple[int, int, str, bool]]:
        """Begin and end of the calls in `data[at:end]`, which stands behind a marker of `role`."""
        text, offset = data[at:end], 0
        if loose:
            plain = _PLAIN_INPUT.match(text) if self._plain and role == "divide" else None
            offset = plain.end() if plain else balanced(text, 0)
            if offset < 0:
                return
            yield at + offset - 1, at + offset, "close", False
        if self._implicit is None or role not in ("start", "think_close", "prefix", "divide"):
            return
        while match := self._implicit.search(text, offset):
            yield at + match.start(), at + match.end(), "prefix", False
            offset = balanced(text, match.start())
            if offset < 0:
                return
            yield at + offset - 1, at + offset, "close", False


def _sign(control: int) -> bytes:
    """The bytes that stand for a control token."""
    return bytes([_SIGN, 0x80 + control])


def token_bytes(vocab: Mapping[str, int]) -> list[bytes]:
    """The bytes each id stands for, by id: byte-level BPE, sentencepiece with byte fallback, or plain text."""
    level = _byte_level() if any(token.startswith("Ġ") for token in vocab) else {}
    found = [b""] * (max(vocab.values(), default=-1) + 1)
    for token, index in vocab.items():
        if level and all(character in level for character in token):
            stands_for = bytes(level[character] for character in token)
        elif byte := _BYTE.fullmatch(token):
            stands_for = bytes([int(byte[1], 16)])
        else:
            stands_for = token.replace("▁", " ").encode("utf-8", "surrogatepass")
        found[index] = stands_for.replace(bytes([_SIGN]), b"?")
    return found


def _byte_level() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte (as in GPT-2's vocabulary)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def balanced(text: bytes, begin: int) -> int:
    """Where the first bracketed value in `text[begin:]` ends, or -1."""
    depth = 0
    for match in _BRACKETS.finditer(text, begin):
        sign = match.group()
        if sign in b"[{(":
            depth += 1
        elif sign in b"]})":
            depth -= 1
            if depth <= 0:
                return match.end() if depth == 0 else -1
    return -1
