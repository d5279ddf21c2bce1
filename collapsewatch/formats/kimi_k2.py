"""Kimi K2's calls, named by their ids: K2 Instruct and Thinking, K2.5."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from ..structure import Parsed, Reason
from .base import Found, Marker
from .named import NamedCalls, named_call

_ID = re.compile(r"\s*(?:functions\.)?(.*):[0-9]+\s*")
_RESULT = re.compile(r"(?m)^## Return of functions\.")


class KimiK2(NamedCalls):
    """`functions.NAME:INDEX<|tool_call_argument_begin|>{...}` in each call, parallel calls side by side.

    `[EOS]` ends a turn too: it is the tokenizer's own. A tool's answer has no marker, but a heading.
    """

    name: ClassVar[str] = "kimi_k2"
    markers: ClassVar[tuple[Marker, ...]] = (
        Marker("<|tool_calls_section_begin|>", "section_open"),
        Marker("<|tool_call_begin|>", "open"),
        Marker("<|tool_call_argument_begin|>", "divide"),
        Marker("<|tool_call_end|>", "close"),
        Marker("<|tool_calls_section_end|>", "section_close"),
        Marker("<|im_end|>", "end"),
        Marker("[EOS]", "end"),
        Marker("<|im_user|>", "header"),
        Marker("<|im_assistant|>", "header"),
        Marker("<|im_system|>", "header"),
        Marker("<|im_middle|>", "header"),
        Marker("<think>", "think_open"),
        Marker("</think>", "think_close"),
    )
    bare: ClassVar[re.Pattern[str]] = re.compile(r"functions\.[\w.-]{1,64}:[0-9]{1,9}\s{0,4}\{")
    shape: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:functions\.)?(?P<name>[\w.-]{1,64}):[0-9]{1,9}\s{0,4}(?:<\|tool_call_argument_begin\|>)?\s{0,4}(?=\{)"
    )

    def calls(self, body: Sequence[str]) -> Found | Reason:
        found = _ID.fullmatch(body[0]) if len(body) == 3 else None
        return named_call(found[1], body[2]) if found else Reason.INVALID_SYNTAX

    def finish(self, parsed: Parsed) -> Parsed:
        if any(_RESULT.search(text) for text in parsed.prose):
            parsed.defects.add(Reason.HALLUCINATED_RESPONSE)
        return super().finish(parsed)
