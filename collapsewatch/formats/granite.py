"""Granite 3 and granite-20b-functioncalling; Granite 4 writes Hermes calls."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..structure import Parsed, Reason
from .base import ChatFormat, Found, Marker
from .body import json_calls, json_series

_EACH = re.compile(r"\s*<function_call>\s*")


class Granite(ChatFormat):
    """`<|tool_call|>[{"name": ..., "arguments": {...}}, ...]<|end_of_text|>` and nothing else in the turn.

    3.1 spells it `<tool_call>`; granite-20b-functioncalling writes `<function_call> {...}` once per call, and
    ends by `<|endoftext|>`. Source: the chat templates of granite-3.0-8b-instruct and granite-3.3-2b-instruct.
    """

    name: ClassVar[str] = "granite"
    markers: ClassVar[tuple[Marker, ...]] = (
        Marker("<|tool_call|>", "prefix"),
        Marker("<tool_call>", "prefix"),
        Marker("<|end_of_text|>", "end"),
        Marker("<|endoftext|>", "end"),
        Marker("<|start_of_role|>", "header"),
        Marker("<|end_of_role|>", "header"),
        Marker("<function_response>", "response_open"),
        Marker("<think>", "think_open"),
        Marker("</think>", "think_close"),
    )
    follow: ClassVar[Mapping[str, tuple[str, str]]] = {
        "start": ("prefix think_open", "prefix end"),
        "think_open": ("think_close", "think_close"),
        "think_close": ("prefix", "prefix end"),
        "close": ("end", "end"),
    }
    single: ClassVar[bool] = True
    implicit: ClassVar[str] = "<function_call>"

    def calls(self, body: Sequence[str]) -> Found | Reason:
        if each := _EACH.match(body[0]):
            return json_series(body[0], _EACH, each.end())
        return json_calls(body[0], array=True, whole=False)

    def parse(self, pieces: Sequence[str], thinking: bool = False) -> Parsed:
        parsed = super().parse(pieces, thinking)
        behind = zip(pieces[1::2], pieces[2::2], strict=True)
        if any(self.role[marker] == "prefix" and _EACH.match(text) for marker, text in behind):
            parsed.defects.add(Reason.NESTED_OPEN)
        return parsed
