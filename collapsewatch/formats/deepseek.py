"""DeepSeek's calls: V3 and R1 with a fenced JSON block, V3.1 with JSON alone, V3.2 and V4 with tags."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..records import Call
from ..structure import Parsed, Reason
from .base import Found, Marker
from .body import json_value, untyped
from .named import NamedCalls, name_problem, named_call

# The bars are U+FF5C and the gaps U+2581, as the tokenizer spells them. V3 has no tokens for reasoning, R1 has.
_TURN = (
    Marker("<｜end▁of▁sentence｜>", "end"),
    Marker("<｜begin▁of▁sentence｜>", "header"),
    Marker("<｜User｜>", "header"),
    Marker("<｜Assistant｜>", "header"),
    Marker("<think>", "think_open"),
    Marker("</think>", "think_close"),
)
_PARAMETER = ('<｜DSML｜parameter name="', "</｜DSML｜parameter>")
_NAMED = re.compile(r'([^"<>]*)">\s*')
_VALUE = re.compile(r'([^"<>]+)" string="(true|false)">(.*)', re.DOTALL)
_LOOSE_CALL = re.compile(r'invoke name="([^"]{1,256})">(.*?)(?:(?=</?(?:｜DSML｜)?invoke)|\Z)', re.DOTALL)
_LOOSE_VALUE = re.compile(
    r'parameter name="([^"]{1,256})"[^>]{0,64}>(.*?)(?:(?=</?(?:｜DSML｜)?parameter)|\Z)', re.DOTALL
)


class DeepSeekV3(NamedCalls):
    """`function<｜tool▁sep｜>NAME\\n```json\\n{...}\\n```` in each call, parallel calls on lines of their own.

    A tool's answer is followed by the next turn without a header.
    """

    name: ClassVar[str] = "deepseek_v3"
    markers: ClassVar[tuple[Marker, ...]] = (
        Marker("<｜tool▁calls▁begin｜>", "section_open"),
        Marker("<｜tool▁call▁begin｜>", "open"),
        Marker("<｜tool▁sep｜>", "divide"),
        Marker("<｜tool▁call▁end｜>", "close"),
        Marker("<｜tool▁calls▁end｜>", "section_close"),
        Marker("<｜tool▁outputs▁begin｜>", "response_open"),
        Marker("<｜tool▁outputs▁end｜>", "response_close"),
        Marker("<｜tool▁output▁begin｜>", "response_open"),
        Marker("<｜tool▁output▁end｜>", "response_close"),
        *_TURN,
    )
    bare: ClassVar[re.Pattern[str]] = re.compile(r"function[\w.-]{1,64}\n```json\n")
    shape: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:function)?(?P<name>[\w.-]{1,64})(?:<｜tool▁sep｜>)?\s{0,4}(?:```(?:json)?)?\s{0,4}(?=\{)"
    )

    def calls(self, body: Sequence[str]) -> Found | Reason:
        if len(body) != 3 or body[0].strip() != "function":
            return Reason.INVALID_SYNTAX
        name, opened, fenced = body[2].partition("\n```json\n")
        arguments, closed, rest = fenced.rpartition("\n```")
        return named_call(name, arguments) if opened and closed and not rest.strip() else Reason.INVALID_SYNTAX


class DeepSeekV31(DeepSeekV3):
    """`NAME<｜tool▁sep｜>{...}` in each call, parallel calls side by side; the markers of V3."""

    name: ClassVar[str] = "deepseek_v31"
    bare: ClassVar[re.Pattern[str]] = re.compile(r'(?m)^[\w.-]{1,64}\{"')

    def calls(self, body: Sequence[str]) -> Found | Reason:
        return named_call(body[0], body[2]) if len(body) == 3 else Reason.INVALID_SYNTAX


class DeepSeekV32(NamedCalls):
    """`<｜DSML｜invoke name="NAME">`, a tag for each parameter, `</｜DSML｜invoke>`; V4 names the section differently.

    `｜DSML｜` is a token, the rest of a tag is text. A parameter says whether its value is a string or JSON.
    """

    name: ClassVar[str] = "deepseek_v32"
    markers: ClassVar[tuple[Marker, ...]] = (
        Marker("<｜DSML｜function_calls>", "section_open"),
        Marker("</｜DSML｜function_calls>", "section_close"),
        Marker("<｜DSML｜tool_calls>", "section_open"),
        Marker("</｜DSML｜tool_calls>", "section_close"),
        Marker('<｜DSML｜invoke name="', "open"),
        Marker("</｜DSML｜invoke>", "close"),
        *(Marker(text, "divide") for text in _PARAMETER),
        Marker("｜DSML｜", "divide"),
        Marker("<function_results>", "response_open"),
        Marker("</function_results>", "response_close"),
        *_TURN,
    )
    # The token within a tag is legal wherever one of the tags is, and any of them where it stands.
    follow: ClassVar[Mapping[str, tuple[str, str]]] = {
        "start": ("section_open divide think_open", "section_open divide end"),
        "think_open": ("think_close", "think_close"),
        "think_close": ("section_open divide", "section_open divide end"),
        "section_open": ("open divide", ""),
        "open": ("", "divide close"),
        "divide": ("section_open open divide close section_close", "divide close"),
        "close": ("open divide section_close", ""),
        "section_close": ("end", "end"),
    }
    bare: ClassVar[re.Pattern[str]] = re.compile(r'<invoke name="')

    def calls(self, body: Sequence[str]) -> Found | Reason:
        named = _NAMED.fullmatch(body[0])
        problem = name_problem(named[1].strip()) if named else Reason.INVALID_SYNTAX
        if named is None or problem is not None:
            return problem or Reason.INVALID_SYNTAX
        arguments: dict[str, Any] = {}
        for at in range(1, len(body), 4):
            opened, stated, closed, gap = body[at : at + 4] if at + 4 <= len(body) else ("", "", "", "")
            value = _VALUE.fullmatch(stated)
            if (opened, closed) != _PARAMETER or gap.strip() or value is None or value[1] in arguments:
                return Reason.INVALID_SYNTAX
            decoded = (value[3], "") if value[2] == "true" else json_value(value[3])
            if decoded is None or decoded[1].strip():
                return Reason.INVALID_JSON
            arguments[value[1]] = decoded[0]
        return Found((Call(named[1].strip(), arguments),))

    def parse(self, pieces: Sequence[str], thinking: bool = False) -> Parsed:
        parsed = super().parse(pieces, thinking)
        sections = {marker[-11:] for marker in pieces[1::2] if self.role[marker].startswith("section")}
        if len(sections) > 1:
            parsed.defects.add(Reason.STRAY_CLOSE)
        return parsed

    def salvage(self, text: str) -> list[Call]:
        found = _LOOSE_CALL.findall(text[:65_536])
        return [Call(name, {key: untyped(value) for key, value in _LOOSE_VALUE.findall(body)}) for name, body in found]
