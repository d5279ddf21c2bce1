"""Llama 4: the whole turn is a list of calls written as Python; Llama 3.2 and its kin write the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..records import Call
from ..structure import Reason
from .base import ChatFormat, Found, Marker
from .literals import bare_call, call_list, call_salvage, list_start


class Llama4(ChatFormat):
    """`[get_weather(city="SF"), now()]<|eot|>`, also between `<|python_start|>` and `<|python_end|>`.

    The documentation forbids text beside the list, and a call without its brackets. Llama 3.2 and 3.3 write the
    list where they are asked for it, and end it by `<|eot_id|>`. Source: llama-models,
    models/llama4/prompt_format.md.
    """

    name: ClassVar[str] = "llama4"
    markers: ClassVar[tuple[Marker, ...]] = (
        Marker("<|python_start|>", "open"),
        Marker("<|python_end|>", "close"),
        Marker("<|eot|>", "end"),
        Marker("<|eom|>", "end"),
        Marker("<|eot_id|>", "end"),
        Marker("<|end_of_text|>", "end"),
        Marker("<|header_start|>", "header"),
        Marker("<|header_end|>", "header"),
        Marker("<|start_header_id|>", "header"),
        Marker("<|end_header_id|>", "header"),
        Marker("<|begin_of_text|>", "header"),
    )
    follow: ClassVar[Mapping[str, tuple[str, str]]] = {
        "start": ("open", "open end"),
        "open": ("", "close"),
        "close": ("end", "end"),
    }
    single: ClassVar[bool] = True
    implicit: ClassVar[str] = list_start()
    bare: ClassVar[re.Pattern[str]] = bare_call()

    def calls(self, body: Sequence[str]) -> Found | Reason:
        return call_list(body[0])

    def salvage(self, text: str) -> list[Call]:
        return call_salvage(text)
