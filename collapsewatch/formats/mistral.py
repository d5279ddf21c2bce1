"""Mistral: `[TOOL_CALLS]` and a JSON list, or from tokenizer v11 on a name and arguments per call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..records import Call
from ..structure import Parsed, Reason
from .base import ChatFormat, Found, Marker
from .body import json_calls, json_value

_CALLS, _ID, _ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_NAME = re.compile(r"\s*([\w.:/-]+)\s*")
_IDS = re.compile(r"[A-Za-z0-9]{9}")  # as mistral_common's validator has it


class Mistral(ChatFormat):
    """`[TOOL_CALLS][{"name": ..., "arguments": {...}}]</s>`, or `[TOOL_CALLS]name[ARGS]{...}` for each call.

    Tokenizer v11 has `[CALL_ID]` and an id behind the name. Content may stand before calls, from v7 on.
    Servers that drop special tokens leave `name{...}`: that is read, and is a broken marker. Source:
    mistral_common, tokens/tokenizers/instruct.py.
    """

    name: ClassVar[str] = "mistral"
    markers: ClassVar[tuple[Marker, ...]] = (
        Marker(_CALLS, "prefix"),
        Marker(_ID, "divide"),
        Marker(_ARGS, "divide"),
        Marker("</s>", "end"),
        Marker("[THINK]", "think_open"),
        Marker("[/THINK]", "think_close"),
        Marker("[TOOL_RESULTS]", "response_open"),
        Marker("[TOOL_CONTENT]", "response_open"),
        Marker("[/TOOL_RESULTS]", "response_close"),
        *(
            Marker(f"[{slash}{part}]", "header")
            for part in ("INST", "AVAILABLE_TOOLS", "SYSTEM_PROMPT", "MODEL_SETTINGS")
            for slash in ("", "/")
        ),
    )
    follow: ClassVar[Mapping[str, tuple[str, str]]] = {
        "start": ("prefix think_open", "prefix end"),
        "think_open": ("think_close", "think_close"),
        "think_close": ("prefix", "prefix end"),
        "prefix": ("", "divide"),
        "divide": ("", "divide"),
        "close": ("prefix end", "end"),
    }
    preamble: ClassVar[bool] = True

    def calls(self, body: Sequence[str]) -> Found | Reason:
        text, *parts = body
        if not parts and text.lstrip().startswith("["):
            return json_calls(text, array=True, whole=False)
        named = _NAME.match(text)
        if named is None:
            return Reason.MISSING_NAME
        if parts[:1] == [_ID] and len(parts) > 1 and _IDS.fullmatch(parts[1].strip()):
            parts = parts[2:]
        if not parts:
            given = text[named.end() :]
        elif len(parts) == 2 and parts[0] == _ARGS and named.end() == len(text):
            given = parts[1]
        else:
            return Reason.INVALID_SYNTAX
        decoded = json_value(given)
        if decoded is None:
            return Reason.INVALID_JSON
        if not isinstance(decoded[0], dict):
            return Reason.ARGUMENTS_NOT_OBJECT
        return Found((Call(named[1], decoded[0]),), decoded[1])

    def parse(self, pieces: Sequence[str], thinking: bool = False) -> Parsed:
        parsed = super().parse(pieces, thinking)
        bodies = [pieces[i + 1] for i in range(1, len(pieces), 2) if pieces[i] == _CALLS]
        lists = sum(text.lstrip()[:1] == "[" for text in bodies)
        marks = pieces[1::2]
        if lists and len(bodies) > 1:
            parsed.defects.add(Reason.STRAY_OPEN)
        elif marks.count(_ARGS) != len(bodies) - lists or marks.count(_ID) not in (0, len(bodies)):
            parsed.defects.add(Reason.BROKEN_MARKER)
            if not parsed.ended:
                parsed.unfinished.add(Reason.BROKEN_MARKER)
        return parsed
