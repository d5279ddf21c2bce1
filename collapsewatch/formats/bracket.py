"""Bracketed calls without control tokens: ACEBench's prompts and ToolACE's data, on models of any chat family."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..records import Call
from ..structure import Reason
from .base import ChatFormat, Found, Marker
from .literals import SPACED, bare_call, call_list, call_salvage, call_text, list_start


class Bracket(ChatFormat):
    """`[ApiName(key1='value1', key2=2), OtherApi()]` and the end token of the model's family.

    ACEBench's checker deletes all white space and reads the rest as Python: of names that ToolACE has, those
    with spaces and dots pass there, those with dashes and slashes do not; here all pass. An answer in brackets,
    `["Missing necessary parameters (key1) for the api (ApiName)"]`, is text.
    """

    name: ClassVar[str] = "bracket"
    markers: ClassVar[tuple[Marker, ...]] = (
        Marker("<|im_end|>", "end"),
        Marker("<|endoftext|>", "end"),
        Marker("<|eot_id|>", "end"),
        Marker("<|end_of_text|>", "end"),
        Marker("</s>", "end"),
        Marker("<|im_start|>", "header"),
        Marker("<|start_header_id|>", "header"),
        Marker("<|end_header_id|>", "header"),
        Marker("<think>", "think_open"),
        Marker("</think>", "think_close"),
    )
    follow: ClassVar[Mapping[str, tuple[str, str]]] = {
        "start": ("think_open", "end"),
        "think_open": ("think_close", "think_close"),
        "think_close": ("", "end"),
        "close": ("end", "end"),
    }
    implicit: ClassVar[str] = list_start(SPACED)
    bare: ClassVar[re.Pattern[str]] = bare_call(SPACED)

    def calls(self, body: Sequence[str]) -> Found | Reason:
        return call_list(body[0], SPACED)

    def write(self, calls: Sequence[Call]) -> str:
        return f"[{', '.join(map(call_text, calls))}]"

    def salvage(self, text: str) -> list[Call]:
        return call_salvage(text, SPACED)
