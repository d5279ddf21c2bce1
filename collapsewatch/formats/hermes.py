"""Hermes calls in ChatML turns: Qwen2.5, Qwen3 with and without `<think>`, SmolLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..records import Call, Slot
from ..structure import Reason
from .base import ChatFormat, Marker, json_call


class Hermes(ChatFormat):
    """`<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>`, parallel calls on lines of their own.

    `<|endoftext|>` ends a turn too: it is the second stop token of these families and the only one of their
    base models. A reasoning block stands first or not at all, and `</think>` needs its `<think>`.
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
    legal: ClassVar[Mapping[Slot, frozenset[str]]] = {
        Slot.START: frozenset({"open", "think_open"}),
        Slot.OPEN: frozenset(),
        Slot.BODY: frozenset({"close"}),
        Slot.CLOSE: frozenset({"open", "end"}),
        Slot.TEXT: frozenset({"open", "end"}),
        Slot.THINK: frozenset({"think_close"}),
        Slot.END: frozenset(),
    }

    def body(self, text: str) -> Call | Reason:
        return json_call(text)
