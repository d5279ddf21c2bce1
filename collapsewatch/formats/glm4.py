"""GLM's calls with tagged arguments: GLM-4.5 and 4.6 on lines of their own, GLM-4.7 and 5 without line breaks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..records import Call
from ..structure import Parsed, Reason
from .base import Found, Marker
from .body import json_salvage, untyped
from .named import NamedCalls, name_problem

_PAIR = ["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
_LOOSE_PAIR = re.compile(
    r"\s{0,8}<arg_key>([^<]{1,256})</arg_key>\s{0,8}<arg_value>(.*?)(?:</arg_value>|(?=</?tool_call>|<arg_key>|\Z))",
    re.DOTALL,
)


class Glm4(NamedCalls):
    """`<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`, one pair per argument.

    A value has no type: it is the JSON value it states, else a string. The stop tokens are the headers of the
    next turn: after a call the tool's, which no reply may end with, after a reply the user's.
    """

    name: ClassVar[str] = "glm4"
    markers: ClassVar[tuple[Marker, ...]] = (
        Marker("<tool_call>", "open"),
        Marker("</tool_call>", "close"),
        *(Marker(text, "divide") for text in _PAIR),
        Marker("<|observation|>", "end"),
        Marker("<|user|>", "end"),
        Marker("<|endoftext|>", "end"),
        Marker("<|assistant|>", "header"),
        Marker("<|system|>", "header"),
        Marker("<tool_response>", "response_open"),
        Marker("</tool_response>", "response_close"),
        Marker("<think>", "think_open"),
        Marker("</think>", "think_close"),
    )
    follow: ClassVar[Mapping[str, tuple[str, str]]] = {
        "start": ("open think_open", "open end"),
        "think_open": ("think_close", "think_close"),
        "think_close": ("open", "open end"),
        "open": ("", "divide close"),
        "divide": ("divide close", "divide"),
        "close": ("open end", "open end"),
    }
    untyped: ClassVar[bool] = True
    shape: ClassVar[re.Pattern[str]] = re.compile(r"(?P<name>[\w.-]{1,64})\s{0,8}(?=<arg_key>|</tool_call>)")

    def calls(self, body: Sequence[str]) -> Found | Reason:
        name = body[0].strip()
        problem = name_problem(name)
        if problem is not None:
            return problem
        arguments: dict[str, Any] = {}
        for at in range(1, len(body), 8):
            # <arg_key> key </arg_key> gap <arg_value> value </arg_value> gap
            part = body[at : at + 8]
            if list(part[::2]) != _PAIR or part[3].strip() or part[7].strip():
                return Reason.INVALID_SYNTAX
            key = part[1].strip()
            if not key or key in arguments:
                return Reason.INVALID_SYNTAX
            arguments[key] = untyped(part[5])
        return Found((Call(name, arguments),))

    def finish(self, parsed: Parsed) -> Parsed:
        if parsed.ended == "<|observation|>" and not parsed.attempted:
            parsed.defects.add(Reason.HALLUCINATED_RESPONSE)
        return super().finish(parsed)

    def salvage(self, text: str) -> list[Call]:
        found: list[Call] = []
        text, end = text[:65_536], 0
        for match in self.shape.finditer(text):
            if match.start() < end:
                continue
            arguments, end = {}, match.end()
            while pair := _LOOSE_PAIR.match(text, end):
                arguments[pair[1].strip()], end = untyped(pair[2]), pair.end()
            found.append(Call(match["name"], arguments))
        return found or json_salvage(text)
