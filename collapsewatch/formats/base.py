"""What every chat format shares: markers with roles, splitting at them, and the parser.

A turn is handled as *pieces*: a list that alternates text, marker, text, ..., text: markers have odd indices.
Text is cut into pieces by spelling; token ids are cut by id, so that prose which spells a marker is not one.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from ..records import Call
from ..structure import Parsed, Reason
from . import CannotWrite, writers
from .body import BARE_JSON, Found, json_calls, json_salvage
from .bound import AFTER, BoundFormat, SlotArrays, Tokenizer
from .spelling import spelled

__all__ = ["AFTER", "BoundFormat", "ChatFormat", "Found", "Marker", "SlotArrays", "Tokenizer", "json_calls"]


class Marker(NamedTuple):
    """A control token, or a sequence of several, as text; and its role in a turn: one of the keys of `AFTER`."""

    text: str
    role: str


class ChatFormat(ABC):
    """The control tokens, slots and parser of one model family.

    The parser is a walk over markers. A call runs from a marker of the role `open` to one of the role `close`;
    one behind a `prefix`, or behind what `implicit` finds, ends by itself, at the latest with the turn. A
    family with section markers has its calls between `section_open` and `section_close` only.
    """

    name: ClassVar[str]
    markers: ClassVar[tuple[Marker, ...]]
    follow: ClassVar[Mapping[str, tuple[str, str]]]
    """Per role, and for `start`: the roles that may be sampled right after it, and once text stands after it.

    Roles separated by spaces; a role that is not listed is followed by none.
    """
    preamble: ClassVar[bool] = False
    """May prose stand before the first call? After a call it never may."""
    single: ClassVar[bool] = False
    """Does a turn hold one call, or one list of calls, only?"""
    plain: ClassVar[bool] = False
    """May a call that no marker closes end in input that is no bracketed value?"""
    untyped: ClassVar[bool] = False
    """Does the syntax state no types, so that `42` may be meant as a number or as text?"""
    implicit: ClassVar[str] = ""
    """Where a call begins in text that has no marker before it: an ASCII regular expression, empty for never."""
    bare: ClassVar[re.Pattern[str] | None] = None
    """What a call that has lost its markers looks like in prose, beside the JSON that any family may fall back to."""

    def __init__(self) -> None:
        self.role = {marker.text: marker.role for marker in self.markers}
        self.sections = "section_open" in self.role.values()
        self._marker = spelled(self.role)
        self._longest = max(map(len, self.role)) - 1
        self._implicit = re.compile(self.implicit) if self.implicit else None
        # Half a marker, its last or its first character missing; shorter halves are ordinary words.
        signs = [text for text in self.role if len(text) >= 6 and not text[0].isalnum()]
        self._halves = [half for text in signs for half in (text[:-1], text[1:])]
        self._edges = re.compile("[" + re.escape("".join({c for text in signs for c in (text[0], text[-1])})) + "]")

    @abstractmethod
    def calls(self, body: Sequence[str]) -> Found | Reason:
        """The calls in a body (pieces: text, dividing marker, text, ...), or why there is none."""

    def salvage(self, text: str) -> list[Call]:
        """The calls that a reader who cares for no marker finds in `text`; bounded work."""
        return json_salvage(text)

    def write(self, calls: Sequence[Call]) -> str:
        """The calls of one turn as the family writes them, without the turn's end: what `parse` reads back.

        Raises:
            CannotWrite: the format only reads, or has no way to write these calls.
        """
        raise CannotWrite(f"{self.name}: got calls to write, expected them for one of {', '.join(writers())}")

    def answer(self, text: str) -> str:
        """How a turn without calls says `text`, without the turn's end."""
        return text

    @property
    def writes(self) -> bool:
        """Can calls be written in it?"""
        return type(self).write is not ChatFormat.write

    def split(self, text: str) -> list[str]:
        """`text` as pieces: text, marker, text, ..., text."""
        return self._marker.split(text)

    def parse(self, pieces: Sequence[str], thinking: bool = False) -> Parsed:
        """The calls and defects of one turn, given as pieces; linear in their length, never raises.

        `thinking`: the prompt has opened the reasoning block that the turn begins in.
        """
        parsed, state = Parsed(untyped=self.untyped), "think" if thinking else "text"
        for index, piece in enumerate(pieces):
            state = self._mark(parsed, state, piece) if index % 2 else self._read(parsed, state, piece)
        if state != "end":
            self._leave(parsed, state)
        if any(map(self._splits, pieces[:-2:2], pieces[2::2])):
            parsed.defects.add(Reason.BROKEN_MARKER)
        return self.finish(parsed)

    def finish(self, parsed: Parsed) -> Parsed:
        """What can be told only at the end of a turn: text around calls, broken markers, calls without markers."""
        if parsed.attempted and parsed.prose and (parsed.late or not self.preamble):
            parsed.defects.add(Reason.TEXT_AROUND_CALL)
        if any(self._is_broken(text) for text in parsed.prose):
            parsed.defects.add(Reason.BROKEN_MARKER)
        if any(map(self._is_bare, parsed.prose)):
            parsed.defects.add(Reason.BARE_CALL)
        if parsed.wreck or Reason.BARE_CALL in parsed.defects:
            parsed.recovered = sum(len(self.salvage(text)) for text in (*parsed.wreck, *parsed.prose))
        return parsed

    def _read(self, parsed: Parsed, state: str, text: str) -> str:
        """The state after a piece of text."""
        if state in ("call", "prefixed"):
            parsed.body.append(text)
        elif state == "think":
            parsed.thought.append(text)  # an empty block is a block
        elif state == "text" and self._implicit and not parsed.attempted and (found := self._implicit.search(text)):
            parsed.say(text[: found.start()])
            parsed.open()
            parsed.body.append(text[found.start() :])
            return "prefixed"
        elif not text.isspace() and text:
            parsed.say(text, late=state == "section")
            if state == "end":
                parsed.defects.add(Reason.AFTER_END)
        return state

    def _mark(self, parsed: Parsed, state: str, marker: str) -> str:
        """The state after a marker: text, section, call, prefixed, think or end."""
        role = self.role[marker]
        if state == "end":
            parsed.defects.add(Reason.AFTER_END)
            return "end"
        if role == "end":
            parsed.ended = marker
            self._leave(parsed, state)
            return "end"
        if role == "divide" and state in ("call", "prefixed"):
            parsed.body.append(marker)
            return state
        if role == "close" and state == "call":
            parsed.close(self.calls(parsed.body))
            return "section" if self.sections else "text"
        if role == "think_close" and state == "think":
            return "text"
        self._break_off(parsed, state, role)
        if role in ("open", "prefix"):
            if (self.single and parsed.attempted) or (self.sections and state not in ("section", "call")):
                parsed.defects.add(Reason.STRAY_OPEN)
            parsed.open()
            return "call" if role == "open" else "prefixed"
        if role == "section_open":
            if parsed.attempted or state in ("section", "think"):
                parsed.defects.add(Reason.NESTED_OPEN if state == "section" else Reason.STRAY_OPEN)
            return "section"
        if role == "section_close" and state in ("section", "call"):
            if not parsed.attempted:
                parsed.open()
                parsed.spoil(Reason.INVALID_SYNTAX)
            return "text"
        if role == "think_open":
            if state == "think":
                parsed.defects.add(Reason.NESTED_OPEN)
            elif parsed.attempted or parsed.prose or parsed.thought or state == "section":
                parsed.defects.add(Reason.MISPLACED_THINK)
            return "think"
        parsed.stray(role)
        return state if state in ("think", "section") else "text"

    def _break_off(self, parsed: Parsed, state: str, role: str) -> None:
        """A marker comes where the state does not expect it."""
        if state == "call":
            parsed.spoil(Reason.NESTED_OPEN if role == "open" else Reason.UNCLOSED_CALL)
        elif state == "prefixed":
            parsed.close(self.calls(parsed.body))
        elif state == "think" and role != "think_open":
            parsed.defects.add(Reason.UNCLOSED_THINK)

    def _leave(self, parsed: Parsed, state: str) -> None:
        """The turn ends, by its end marker or without."""
        if state == "call":
            parsed.spoil(Reason.UNCLOSED_CALL)
        elif state == "section":
            parsed.defects.add(Reason.UNCLOSED_CALL)
        elif state == "think":
            parsed.defects.add(Reason.UNCLOSED_THINK)
        elif state == "prefixed":
            before = set(parsed.defects)
            parsed.close(self.calls(parsed.body))
            if not parsed.ended:
                parsed.unfinished |= parsed.defects - before

    def _splits(self, before: str, behind: str) -> bool:
        """Does the marker between two pieces of text cut another marker in two?"""
        tail, head = before[-self._longest :], behind[: self._longest]
        found = self._marker.search(tail + head) if tail and head else None
        return found is not None and found.start() < len(tail) < found.end()

    def _is_bare(self, text: str) -> bool:
        """Does the text hold a call without its markers?"""
        json_call = '"name"' in text and BARE_JSON.search(text)
        return bool(json_call or (self.bare and self.bare.search(text)))

    def _is_broken(self, text: str) -> bool:
        """Does the text hold half a marker? One that ordinary tokens spell out in full is none."""
        if not self._edges.search(text) or not any(half in text for half in self._halves):
            return False
        rest = self._marker.sub("", text)
        return any(half in rest for half in self._halves)

    def bind(self, tokenizer: Tokenizer, thinking: bool = False) -> BoundFormat:
        """This format in the ids of one tokenizer; `thinking` as in `parse`, for every turn."""
        return BoundFormat(self, tokenizer, thinking)
