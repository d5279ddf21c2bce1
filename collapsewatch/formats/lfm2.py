"""LFM2 and LFM2.5: a list of calls written as Python between markers, in ChatML turns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..records import Call
from ..structure import Parsed, Reason
from .base import ChatFormat, Found, Marker, json_calls
from .body import json_salvage
from .literals import bare_call, call_list, call_salvage, list_start

_JSON = re.compile(r"\s*\[\s*\{")


class Lfm2(ChatFormat):
    """`<|tool_call_start|>[get_weather(city='SF'), now()]<|tool_call_end|><|im_end|>`, content before or behind it.

    Where the system prompt asks for JSON, the list is one of objects. Source: the chat templates that TRL 1.16
    ships, and the model card, whose example says what it is doing behind its call.
    """

    name: ClassVar[str] = "lfm2"
    markers: ClassVar[tuple[Marker, ...]] = (
        Marker("<|tool_call_start|>", "open"),
        Marker("<|tool_call_end|>", "close"),
        Marker("<|im_end|>", "end"),
        Marker("<|endoftext|>", "end"),
        Marker("<|im_start|>", "header"),
        Marker("<|startoftext|>", "header"),
        Marker("<|tool_list_start|>", "header"),
        Marker("<|tool_list_end|>", "header"),
        Marker("<|tool_response_start|>", "response_open"),
        Marker("<|tool_response_end|>", "response_close"),
        Marker("<think>", "think_open"),
        Marker("</think>", "think_close"),
    )
    follow: ClassVar[Mapping[str, tuple[str, str]]] = {
        "start": ("open think_open", "open end"),
        "think_open": ("think_close", "think_close"),
        "think_close": ("open", "open end"),
        "open": ("", "close"),
        "close": ("end", "end"),
    }
    preamble: ClassVar[bool] = True
    single: ClassVar[bool] = True
    bare: ClassVar[re.Pattern[str]] = re.compile(f"{list_start()}|{bare_call().pattern}")

    def finish(self, parsed: Parsed) -> Parsed:
        parsed.late = False
        return super().finish(parsed)

    def calls(self, body: Sequence[str]) -> Found | Reason:
        if _JSON.match(body[0]):
            return json_calls(body[0], array=True)
        return call_list(body[0])

    def salvage(self, text: str) -> list[Call]:
        return call_salvage(text) or json_salvage(text)
