"""Hermes calls in ChatML turns: Qwen2.5, Qwen3 with and without `<think>`, SmolLM, Granite 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..records import Call
from ..structure import Reason
from .base import ChatFormat, Found, Marker, json_calls
from .body import json_call


class Hermes(ChatFormat):
    """`<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>`, parallel calls on lines of their own.

    `<|endoftext|>` ends a turn too: it is the second stop token of these families and the only one of their
    base models. A reasoning block stands first or not at all, and `</think>` needs its `<think>`, or a prompt
    that has opened it.
    """

    name: ClassVar[str] = "hermes"
    markers: ClassVar[tuple[Marker, ...]] = (
        Marker("<tool_call>", "open"),
        Marker("</tool_call>", "close"),
        Marker("<|im_end|>", "end"),
        Marker("<|endoftext|>", "end"),
        Marker("<|im_start|>", "header"),
        Marker("<tool_response>", "response_open"),
        Marker("</tool_response>", "response_close"),
        Marker("<think>", "think_open"),
        Marker("</think>", "think_close"),
    )
    # A Qwen template renders content before a call, so a call opened after prose is legal for the probe, even
    # where the structure calls the turn polluted. An end at the start is an empty turn.
    follow: ClassVar[Mapping[str, tuple[str, str]]] = {
        "start": ("open think_open", "open end"),
        "think_open": ("think_close", "think_close"),
        "think_close": ("open", "open end"),
        "open": ("", "close"),
        "close": ("open end", "open end"),
    }

    def calls(self, body: Sequence[str]) -> Found | Reason:
        return json_calls(body[0])

    def write(self, calls: Sequence[Call]) -> str:
        return "\n".join(f"<tool_call>\n{json_call(call)}\n</tool_call>" for call in calls)
