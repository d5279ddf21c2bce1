"""What every chat format shares: markers with roles, splitting at them, the parser for paired call markers.

A turn is handled as *pieces*: a list that alternates text, marker, text, ..., text: markers have odd indices.
Text is cut into pieces by spelling; token ids are cut by id, so that prose which spells a marker is not one.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from ..records import Call, Slot
from ..structure import Parsed, Reason
from .bound import AFTER, BoundFormat, SlotArrays, Tokenizer, spelled

__all__ = ["AFTER", "BoundFormat", "ChatFormat", "Marker", "SlotArrays", "Tokenizer", "json_call"]


class Marker(NamedTuple):
    """A control token as text, and its role in a turn: one of the keys of `AFTER`."""

    text: str
    role: str


class ChatFormat(ABC):
    """The control tokens, slots and parser of one model family; the parser serves paired call markers."""

    name: ClassVar[str]
    markers: ClassVar[tuple[Marker, ...]]
    legal: ClassVar[Mapping[Slot, frozenset[str]]]
    """Per slot, the roles whose tokens may be sampled there."""

    def __init__(self) -> None:
        self.role = {marker.text: marker.role for marker in self.markers}
        self._marker = spelled(self.role)
        # Half a marker, its last or its first character missing; shorter halves are ordinary words.
        self._halves = [half for text in self.role if len(text) >= 6 for half in (text[:-1], text[1:])]

    @abstractmethod
    def body(self, text: str) -> Call | Reason:
        """The call that stands between an opening and a closing marker, or why it is none."""

    def split(self, text: str) -> list[str]:
        """`text` as pieces: text, marker, text, ..., text."""
        return self._marker.split(text)

    def parse(self, pieces: Sequence[str]) -> Parsed:
        """The calls and defects of one turn, given as pieces; linear in their length, never raises."""
        parsed, state = Parsed(), "text"
        for index, piece in enumerate(pieces):
            if index % 2:
                state = self._step(parsed, state, self.role[piece])
            elif state == "call":
                parsed.body = piece
            elif state == "think":
                parsed.thought.append(piece)  # an empty block is a block
            elif piece and not piece.isspace():
                parsed.prose.append(piece)
                if state == "end":
                    parsed.defects.add(Reason.AFTER_END)
        if state == "call":
            parsed.spoil(Reason.UNCLOSED_CALL)
        elif state == "think":
            parsed.defects.add(Reason.UNCLOSED_THINK)
        if parsed.attempted and parsed.prose:
            parsed.defects.add(Reason.TEXT_AROUND_CALL)
        if any(self._is_broken(text) for text in parsed.prose):
            parsed.defects.add(Reason.BROKEN_MARKER)
        return parsed

    def _step(self, parsed: Parsed, state: str, role: str) -> str:
        """The state after one marker: text, call, think or end."""
        if state == "end":
            parsed.defects.add(Reason.AFTER_END)
            return "end"
        if role == "end":
            parsed.ended = True
            if state == "call":
                parsed.spoil(Reason.UNCLOSED_CALL)
            elif state == "think":
                parsed.defects.add(Reason.UNCLOSED_THINK)
            return "end"
        if state == "call" and role == "close":
            parsed.close(self.body(parsed.body))
            return "text"
        if state == "think" and role == "think_close":
            return "text"
        if state == "call":
            parsed.spoil(Reason.NESTED_OPEN if role == "open" else Reason.UNCLOSED_CALL)
        elif state == "think" and role != "think_open":
            parsed.defects.add(Reason.UNCLOSED_THINK)
        if role == "open":
            parsed.attempted += 1
            return "call"
        if role == "think_open":
            if state == "think":
                parsed.defects.add(Reason.NESTED_OPEN)
            elif parsed.attempted or parsed.prose or parsed.thought:
                parsed.defects.add(Reason.MISPLACED_THINK)
            return "think"
        parsed.stray(role)
        return "think" if state == "think" else "text"

    def _is_broken(self, text: str) -> bool:
        """Does the text hold half a marker? One that ordinary tokens spell out in full is none."""
        if not any(half in text for half in self._halves):
            return False
        rest = self._marker.sub("", text)
        return any(half in rest for half in self._halves)

    def bind(self, tokenizer: Tokenizer) -> BoundFormat:
        """This format in the ids of one tokenizer."""
        return BoundFormat(self, tokenizer)


def json_call(text: str) -> Call | Reason:
    """A call written as `{"name": str, "arguments": {...}}`, strictly (RFC 8259: no NaN, no bare newline)."""
    try:
        value = _STRICT.decode(text)
    except (ValueError, RecursionError):  # nesting too deep for the interpreter is not a call either
        return Reason.INVALID_JSON
    if not isinstance(value, dict):
        return Reason.CALL_NOT_OBJECT
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or not name:
        return Reason.MISSING_NAME
    if not isinstance(arguments, dict):
        return Reason.ARGUMENTS_NOT_OBJECT
    return Call(name, arguments)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_STRICT = json.JSONDecoder(parse_constant=_refuse)
