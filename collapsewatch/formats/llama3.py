"""Llama 3.1 to 3.3: the whole turn is a call in JSON, behind `<|python_tag|>` where tools are built in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..records import Call
from ..structure import Parsed, Reason
from .base import ChatFormat, Found, Marker
from .body import json_call, json_salvage, json_series
from .literals import call_lines, call_salvage

_TAG, _MESSAGE = "<|python_tag|>", "<|eom_id|>"
STATED = r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"(?:[^"\\]|\\.)*"\s*,\s*"(?:arguments|parameters)"\s*:'
_OBJECT = re.compile(r"\s*(?=\{)")
_NEXT = re.compile(r"\s*;\s*(?=\{)")
_BUILTIN = r"[^\W\d]\w*\.call(?=\()"


class Llama3(ChatFormat):
    """`{"name": ..., "parameters": {...}}<|eot_id|>`; `<|python_tag|>` and that or `tool.call(k="v")`, `<|eom_id|>`.

    `arguments` is read for `parameters`. The template writes one call; several are divided by `;`, as serving
    engines read them. What `<|python_tag|>` begins, and nothing else, ends by `<|eom_id|>`. Code for the
    interpreter is no call. Source: llama-models, models/llama3_3/prompt_format.md.
    """

    name: ClassVar[str] = "llama3"
    markers: ClassVar[tuple[Marker, ...]] = (
        Marker(_TAG, "prefix"),
        Marker("<|eot_id|>", "end"),
        Marker(_MESSAGE, "end"),
        Marker("<|end_of_text|>", "end"),
        Marker("<|start_header_id|>", "header"),
        Marker("<|end_header_id|>", "header"),
        Marker("<|begin_of_text|>", "header"),
    )
    follow: ClassVar[Mapping[str, tuple[str, str]]] = {
        "start": ("prefix", "prefix end"),
        "close": ("end", "end"),
    }
    single: ClassVar[bool] = True
    implicit: ClassVar[str] = rf"\A\s*\{{|{STATED}"

    def calls(self, body: Sequence[str]) -> Found | Reason:
        if found := _OBJECT.match(body[0]):
            return json_series(body[0], _NEXT, found.end(), ("parameters", "arguments"))
        built_in = call_lines(body[0], _BUILTIN)
        if isinstance(built_in, Reason):
            return built_in
        return Found(tuple(Call(call.name.removesuffix(".call"), call.arguments) for call in built_in.calls))

    def write(self, calls: Sequence[Call]) -> str:
        return "; ".join(json_call(call, "parameters") for call in calls)

    def salvage(self, text: str) -> list[Call]:
        return json_salvage(text) or call_salvage(text, _BUILTIN)

    def parse(self, pieces: Sequence[str], thinking: bool = False) -> Parsed:
        parsed = super().parse(pieces, thinking)
        tagged = _TAG in pieces[1::2]
        if parsed.ended and tagged != (parsed.ended == _MESSAGE):
            parsed.defects.add(Reason.STRAY_OPEN if tagged else Reason.STRAY_CLOSE)
        return parsed
