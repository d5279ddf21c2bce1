"""Llama 4: the whole turn is a list of calls written as Python; Llama 3.2 and its kin write the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..records import Call
from ..structure import Parsed, Reason
from .base import ChatFormat, Found, Marker
from .body import json_salvage, json_series
from .literals import bare_call, call_list, call_salvage, list_start
from .llama3 import STATED

_CODE = ["<|python_start|>", "<|python_end|>"]
_OBJECT = re.compile(r"\s*(?=\{)")
_NEXT = re.compile(r"\s*;?\s*(?=\{)")
_CALL = re.compile(rf"\s*{STATED}")


class Llama4(ChatFormat):
    """`[get_weather(city="SF"), now()]<|eot|>`, also between `<|python_start|>` and `<|python_end|>`.

    The documentation forbids text beside the list, and a call without its brackets. Llama 3.2 and 3.3 write the
    list where they are asked for it, and end it by `<|eot_id|>`. The template of the released models asks for
    JSON instead, as Llama 3 writes it, one object behind the other. Source: llama-models,
    models/llama4/prompt_format.md, and that template.
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
        "open": ("close", "close"),
        "close": ("end", "end"),
    }
    single: ClassVar[bool] = True
    implicit: ClassVar[str] = rf"{list_start()}|{STATED}"
    bare: ClassVar[re.Pattern[str]] = bare_call()

    def calls(self, body: Sequence[str]) -> Found | Reason:
        if found := _OBJECT.match(body[0]):
            return json_series(body[0], _NEXT, found.end(), ("parameters", "arguments"))
        return call_list(body[0])

    def parse(self, pieces: Sequence[str], thinking: bool = False) -> Parsed:
        # The released models' template writes the content of a turn with calls as code before them, even if empty.
        if [*pieces[1:4:2]] == _CODE and not pieces[2].strip() and _CALL.match(pieces[4]):
            pieces = [pieces[0] + pieces[4], *pieces[5:]]
        return super().parse(pieces, thinking)

    def salvage(self, text: str) -> list[Call]:
        return call_salvage(text) or json_salvage(text)
