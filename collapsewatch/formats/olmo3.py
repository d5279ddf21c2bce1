"""OLMo 3: calls written as Python, one a line, in ChatML turns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..records import Call
from ..structure import Reason
from .base import ChatFormat, Found, Marker
from .literals import bare_call, call_lines, call_salvage


class Olmo3(ChatFormat):
    """`<function_calls>\\nget_weather(city='SF')\\nnow()\\n</function_calls><|im_end|>`."""

    name: ClassVar[str] = "olmo3"
    markers: ClassVar[tuple[Marker, ...]] = (
        Marker("<function_calls>", "open"),
        Marker("</function_calls>", "close"),
        Marker("<|im_end|>", "end"),
        Marker("<|endoftext|>", "end"),
        Marker("<|im_start|>", "header"),
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
    single: ClassVar[bool] = True
    bare: ClassVar[re.Pattern[str]] = bare_call()

    def calls(self, body: Sequence[str]) -> Found | Reason:
        return call_lines(body[0])

    def salvage(self, text: str) -> list[Call]:
        return call_salvage(text)
