"""Phi-4-mini: a JSON list of calls between `<|tool_call|>` and `<|/tool_call|>`, or behind `functools`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..structure import Parsed, Reason
from .base import ChatFormat, Found, Marker
from .body import json_calls

_PLAIN = "functools"


class Phi4Mini(ChatFormat):
    """`<|tool_call|>[{"name": ..., "arguments": {...}}]<|/tool_call|><|end|>`, or `functools[{...}]<|end|>`.

    llama.cpp's template puts one object, not a list, between each pair of markers. vLLM's prompt asks for
    `functools`, where `parameters` is read for `arguments`.
    """

    name: ClassVar[str] = "phi4_mini"
    markers: ClassVar[tuple[Marker, ...]] = (
        Marker("<|tool_call|>", "open"),
        Marker("<|/tool_call|>", "close"),
        Marker("<|end|>", "end"),
        Marker("<|endoftext|>", "end"),
        Marker("<|assistant|>", "header"),
        Marker("<|user|>", "header"),
        Marker("<|system|>", "header"),
        Marker("<|tool|>", "header"),
        Marker("<|/tool|>", "header"),
        Marker("<|tool_response|>", "response_open"),
    )
    # Templates of serving engines render content before a call, as for Hermes.
    follow: ClassVar[Mapping[str, tuple[str, str]]] = {
        "start": ("open", "open end"),
        "open": ("", "close"),
        "close": ("open end", "open end"),
    }
    implicit: ClassVar[str] = rf"{_PLAIN}\s*[\[{{]"

    def calls(self, body: Sequence[str]) -> Found | Reason:
        text, plain = body[0].removeprefix(_PLAIN), body[0].startswith(_PLAIN)
        array = plain or text.lstrip().startswith("[")
        found = json_calls(text, array=array, whole=not plain)
        if found is Reason.ARGUMENTS_NOT_OBJECT:
            found = json_calls(text, "parameters", array=array, whole=not plain)
        return found

    def parse(self, pieces: Sequence[str], thinking: bool = False) -> Parsed:
        parsed = super().parse(pieces, thinking)
        behind = zip(pieces[1::2], pieces[2::2], strict=True)
        if any(self.role[marker] == "open" and text.lstrip().startswith(_PLAIN) for marker, text in behind):
            parsed.defects.add(Reason.NESTED_OPEN)
        return parsed
