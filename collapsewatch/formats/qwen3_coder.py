"""XML calls in ChatML turns: Qwen3-Coder, Qwen3.5 and later, Nemotron 3, Step 3.5."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from ..records import Call
from ..structure import Reason
from .base import Found
from .body import json_text, untyped
from .hermes import Hermes
from .named import name_problem

_OPENER = re.compile(r"\s*<function=([^<>\n]*)>")
_PARAMETER = re.compile(r"\s*<parameter=([^<>\n]+)>(.*?)</parameter>", re.DOTALL)
_CLOSER = re.compile(r"\s*</function>\s*\Z")
_LOOSE_CALL = re.compile(r"<function=([^<>\n]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_LOOSE_PARAMETER = re.compile(r"<parameter=([^<>\n]+)>(.*?)(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
# What the templates before Qwen3.6 make of scalars.
_PYTHON = {"True": True, "False": False, "None": None}


class Qwen3Coder(Hermes):
    """`<tool_call>\\n<function=NAME>\\n<parameter=KEY>\\nVALUE\\n</parameter>\\n</function>\\n</tool_call>`.

    The markers and their order are those of Hermes; the tags within a call are ordinary text. A value has no
    type: it is the JSON value it states (or Python's True, False or None), else a string, less one line break
    at either end. The prompt of these families allows prose before a call and forbids it after.
    """

    name: ClassVar[str] = "qwen3_coder"
    preamble: ClassVar[bool] = True
    untyped: ClassVar[bool] = True
    bare: ClassVar[re.Pattern[str]] = re.compile(r"<function=[^<>\s]{1,256}>")

    def calls(self, body: Sequence[str]) -> Found | Reason:
        text = body[0]
        opener = _OPENER.match(text)
        if opener is None:
            return Reason.INVALID_SYNTAX
        problem = name_problem(opener[1].strip())
        if problem is not None:
            return problem
        arguments: dict[str, Any] = {}
        at = opener.end()
        while parameter := _PARAMETER.match(text, at):
            key, value = parameter.groups()
            # A tag inside a value is what a lost closing tag looks like.
            if key in arguments or "<parameter=" in value or "<function=" in value or "</function>" in value:
                return Reason.INVALID_SYNTAX
            arguments[key] = _value(value)
            at = parameter.end()
        return Found((Call(opener[1].strip(), arguments),)) if _CLOSER.match(text, at) else Reason.INVALID_SYNTAX

    def write(self, calls: Sequence[Call]) -> str:
        return "\n".join(map(_tagged, calls))

    def salvage(self, text: str) -> list[Call]:
        return [
            Call(name, {key: _value(value) for key, value in _LOOSE_PARAMETER.findall(inside)})
            for name, inside in _LOOSE_CALL.findall(text[:65_536])
            if name.strip()
        ]


def _tagged(call: Call) -> str:
    """A call in the tags of the syntax; text stands as it is, other values as JSON."""
    given = {key: value if isinstance(value, str) else json_text(value) for key, value in call.arguments.items()}
    inside = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in given.items())
    return f"<tool_call>\n<function={call.name}>\n{inside}</function>\n</tool_call>"


def _value(text: str) -> Any:
    """A value, without the one line break that the template puts at either end."""
    stated = text.removeprefix("\n").removesuffix("\n")
    return _PYTHON[stated] if stated in _PYTHON else untyped(stated)
