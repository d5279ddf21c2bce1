"""Calls whose name stands outside their arguments, often in a section of the turn: DeepSeek, Kimi, GLM, gpt-oss."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import ClassVar

from ..records import Call
from ..structure import Parsed, Reason
from .base import ChatFormat
from .body import Found, json_value

_NAME = re.compile(r'[^\s{}\[\]()<>"]+')
_PLACES, _WINDOW = 64, 65_536  # in one text, and characters of it, where a call is looked for that lost its frame


class NamedCalls(ChatFormat):
    """A family whose templates write content before its calls, so that a preamble is no defect."""

    preamble: ClassVar[bool] = True
    shape: ClassVar[re.Pattern[str]]
    """What stands before the JSON arguments of a call, with or without markers; the group `name` is its name."""
    # The families that write their calls between section markers. An end at the start is an empty turn.
    follow: ClassVar[Mapping[str, tuple[str, str]]] = {
        "start": ("section_open think_open", "section_open end"),
        "think_open": ("think_close", "think_close"),
        "think_close": ("section_open", "section_open end"),
        "section_open": ("open", ""),
        "open": ("", "divide"),
        "divide": ("", "close"),
        "close": ("open section_close", ""),
        "section_close": ("end", "end"),
    }

    def parse(self, pieces: Sequence[str], thinking: bool = False) -> Parsed:
        return self.recover(super().parse(pieces, thinking), pieces)

    def recover(self, parsed: Parsed, pieces: Sequence[str]) -> Parsed:
        """Count what can be saved in the turn as a whole: a lost marker parts a call's name from its arguments."""
        if parsed.defects:
            parsed.recovered = max(0, len(self.salvage("".join(pieces))) - len(parsed.calls))
        return parsed

    def salvage(self, text: str) -> list[Call]:
        text = text[:_WINDOW]
        places = ((match["name"], json_value(text[match.end() :])) for match in self.shape.finditer(text))
        return [Call(name, found[0]) for name, found in islice(places, _PLACES) if found and isinstance(found[0], dict)]


def named_call(name: str, arguments: str) -> Found | Reason:
    """The call of that name with the JSON object that `arguments` is; white space around either is layout."""
    problem = name_problem(name.strip())
    if problem is not None:
        return problem
    decoded = json_value(arguments)
    if decoded is None or decoded[1].strip(" \t\n\r"):
        return Reason.INVALID_JSON
    value = decoded[0]
    return Found((Call(name.strip(), value),)) if isinstance(value, dict) else Reason.ARGUMENTS_NOT_OBJECT


def name_problem(name: str) -> Reason | None:
    """Why `name` can be no tool's: prose has white space, some other syntax brackets or quotes."""
    if not name:
        return Reason.MISSING_NAME
    return None if _NAME.fullmatch(name) else Reason.INVALID_SYNTAX
