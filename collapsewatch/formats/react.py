"""ReAct turns, as lines with labels or as the tags of Search-R1 and its kin; neither has tokens of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import ClassVar

from ..records import Call
from ..structure import Parsed, Reason
from . import CannotWrite
from .base import ChatFormat, Found, Marker
from .body import json_text, json_value

_LOOSE = re.compile(r"Action[ \t*\d]{0,8}:[ \t*]*([^\n*]+)[\s*]*(?:Action[ \t*\d]{0,8}Input[ \t*\d]{0,8}:[\s*]*)?")

# Of a label that is broken in two, half would be a name; what is in brackets is another syntax.
_NO_NAME = frozenset('\n:{}[]()<>"')


class React(ChatFormat):
    """`Action: NAME`, `Action Input: {...}`; or `<search>query</search>`, a call of `search` with one `query`.

    Input that does not begin as JSON is the one argument `input`.
    A turn makes one call or gives its answer: behind `Final Answer:`, or in `<answer>`; with neither it is
    no action at all. What stands before `Action:` or `Final Answer:` is reasoning. Observations are written by
    the environment alone. The end markers are those of ChatML and of Llama 3.
    Source: ReAct (arXiv 2210.03629) and Search-R1 (arXiv 2503.09516), as their common runners read them.
    """

    name: ClassVar[str] = "react"
    markers: ClassVar[tuple[Marker, ...]] = (
        Marker("Action:", "prefix"),
        Marker("Action Input:", "divide"),
        Marker("Final Answer:", "message"),
        Marker("Observation:", "response_open"),
        Marker("<search>", "open"),
        Marker("</search>", "close"),
        Marker("<answer>", "message"),
        Marker("</answer>", "message_close"),
        Marker("<information>", "response_open"),
        Marker("</information>", "response_close"),
        Marker("<result>", "response_open"),
        Marker("</result>", "response_close"),
        Marker("<think>", "think_open"),
        Marker("</think>", "think_close"),
        Marker("<|im_end|>", "end"),
        Marker("<|endoftext|>", "end"),
        Marker("<|im_start|>", "header"),
        Marker("<|eot_id|>", "end"),
        Marker("<|end_of_text|>", "end"),
        Marker("<|start_header_id|>", "header"),
    )
    follow: ClassVar[Mapping[str, tuple[str, str]]] = {
        "start": ("prefix open message think_open", "prefix open message"),
        "think_open": ("think_close", "think_close"),
        "think_close": ("prefix open message", "prefix open message"),
        "prefix": ("", "divide"),
        "open": ("", "close"),
        "close": ("end", "end"),
        "message": ("", "message_close end"),
        "message_close": ("end", "end"),
    }
    preamble: ClassVar[bool] = True
    single: ClassVar[bool] = True
    plain: ClassVar[bool] = True
    bare: ClassVar[re.Pattern[str]] = re.compile(r"Action[ \t*\d]{1,8}(?:Input[ \t*\d]{0,8})?:")

    def calls(self, body: Sequence[str]) -> Found | Reason:
        if len(body) != 3:
            return Reason.INVALID_SYNTAX
        name, given = body[0].strip(), body[2].strip()
        if not name:
            return Reason.MISSING_NAME
        if _NO_NAME & set(name):
            return Reason.INVALID_SYNTAX
        if given and given[0] not in "{[":
            return Found((Call(name, {"input": given}),))
        decoded = json_value(given)
        if decoded is None:
            return Reason.INVALID_JSON
        value, rest = decoded
        return Found((Call(name, value),), rest) if isinstance(value, dict) else Reason.ARGUMENTS_NOT_OBJECT

    def write(self, calls: Sequence[Call]) -> str:
        if len(calls) != 1:
            raise CannotWrite(f"react: got {len(calls)} calls in one turn, expected one")
        return f"Action: {calls[0].name}\nAction Input: {json_text(calls[0].arguments)}\n"

    def answer(self, text: str) -> str:
        return f"Final Answer: {text}"

    def salvage(self, text: str) -> list[Call]:
        text = text[:65_536]
        tried = ((match[1].strip(), json_value(text[match.end() :])) for match in islice(_LOOSE.finditer(text), 64))
        return [Call(name, value[0]) for name, value in tried if name and value and isinstance(value[0], dict)]

    def _read(self, parsed: Parsed, state: str, text: str) -> str:
        if state == "done" and text and not text.isspace():
            parsed.defects.add(Reason.TEXT_AROUND_CALL)
        return super()._read(parsed, state, text)

    def _mark(self, parsed: Parsed, state: str, marker: str) -> str:
        """Beside the states of every format: answer (in its tags), final (behind its label) and done."""
        role = self.role[marker]
        if state == "answer" and role == "message_close":
            return "done"
        if state in ("answer", "final", "done") and role != "end":
            parsed.defects.add(Reason.UNCLOSED_CALL if state == "answer" else Reason.TEXT_AROUND_CALL)
            state = "text"
        if state == "text" and role in ("prefix", "message") and not parsed.attempted:
            parsed.thought += parsed.prose
            parsed.prose.clear()
        if state == "call" and role == "close":
            query = "".join(parsed.body).strip()
            plain = query and len(parsed.body) == 1
            parsed.close(Found((Call("search", {"query": query}),)) if plain else Reason.INVALID_SYNTAX)
            return "text"
        if state == "end" or role != "message":
            return super()._mark(parsed, state, marker)
        self._break_off(parsed, state, role)
        if parsed.attempted:
            parsed.defects.add(Reason.TEXT_AROUND_CALL)
        return "answer" if marker == "<answer>" else "final"

    def _leave(self, parsed: Parsed, state: str) -> None:
        super()._leave(parsed, state)
        if state == "answer":
            parsed.defects.add(Reason.UNCLOSED_CALL)
        elif state == "text" and not parsed.attempted:
            parsed.defects.add(Reason.NO_ANSWER)
