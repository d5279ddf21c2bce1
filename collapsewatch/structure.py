"""Which of the four structures a turn has, and why: the closed list of reasons and the rules between them.

Serving parsers turn a malformed call into plain text; here every turn that is not healthy gets a reason.
Rules: the paper's four structural states (arXiv 2606.26027, section 4.3), made operational on real turns
(docs/measurements.md, "Structure on real turns").
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from .formats import format_named
from .records import Call, Classified, Stop, Structure
from .schemas import accepts

if TYPE_CHECKING:
    from .formats.body import Found

Tools = Sequence[str | Mapping[str, Any]]
"""Tools a call may name: names, or OpenAI-style schemas, bare or under `function`."""


class Reason(StrEnum):
    """Why a turn has its structure. Where several apply, the one listed first here is given."""

    # collapsed: no content is left
    EMPTY = "empty"
    CONTROL_TOKENS_ONLY = "control_tokens_only"  # markers and role names
    SYMBOLS_ONLY = "symbols_only"
    REPETITION = "repetition"
    # polluted, structural: the frame of markers and roles is broken
    NESTED_OPEN = "nested_open"
    STRAY_OPEN = "stray_open"  # a call or section opened where the format has none
    STRAY_CLOSE = "stray_close"  # closed or divided with nothing open
    HALLUCINATED_RESPONSE = "hallucinated_response"
    ROLE_ECHO = "role_echo"
    UNCLOSED_CALL = "unclosed_call"
    UNCLOSED_THINK = "unclosed_think"
    MISPLACED_THINK = "misplaced_think"  # a reasoning block that is not the first thing in the turn
    AFTER_END = "after_end"  # anything after the end of the turn
    BROKEN_MARKER = "broken_marker"  # half a marker, as in `<tool_call`
    # polluted, content: the frame holds, what it holds is not a call
    INVALID_JSON = "invalid_json"
    INVALID_SYNTAX = "invalid_syntax"  # not the format's own syntax, where that is not JSON alone
    CALL_NOT_OBJECT = "call_not_object"
    MISSING_NAME = "missing_name"
    ARGUMENTS_NOT_OBJECT = "arguments_not_object"
    # polluted, structural
    BARE_CALL = "bare_call"  # a call without markers
    TEXT_AROUND_CALL = "text_around_call"
    TRUNCATED = "truncated"
    NO_ANSWER = "no_answer"  # a reasoning block and nothing after it
    # polluted, content: well-formed, but not a call of these tools
    UNKNOWN_TOOL = "unknown_tool"
    WRONG_ARGUMENT = "wrong_argument"
    OK = "ok"

    @property
    def family(self) -> str:
        """`structural` (the frame of the turn), `content` (the call inside an intact frame) or `ok`."""
        if self is Reason.OK:
            return "ok"
        return "content" if self in _CONTENT else "structural"


_CONTENT = {
    Reason.INVALID_JSON,
    Reason.INVALID_SYNTAX,
    Reason.CALL_NOT_OBJECT,
    Reason.MISSING_NAME,
    Reason.ARGUMENTS_NOT_OBJECT,
    Reason.UNKNOWN_TOOL,
    Reason.WRONG_ARGUMENT,
}
_RANK = {reason: rank for rank, reason in enumerate(Reason)}

_ROLES = frozenset({"user", "assistant", "system", "tool"})
# A role's name alone on a line, or first in the turn: what is left of a role header once its markers are
# stripped. Bounded repeats keep both linear.
_ROLE_ECHO = re.compile(
    r"(?m:^[ \t!>.:]{0,8}(?:user|assistant|system|tool)[ \t!>.:]{0,8}$)"
    r"|\A[\s!>.:]{0,8}(?:user|assistant)(?=\s)"
)
# The header under which released tool-use data shows a tool's answer to the model.
_RESULT_ECHO = re.compile(r"(?m:^[Ee]xecution result {0,2}:)")
_WORD = re.compile(r"</?\w{1,40}>|[^\W_]+")  # tag-like text is no content

# A loop compresses far better than text does: on the real turns healthy prose of 200 characters or more goes
# up to a ratio of 4.8 and labelled loops start at 8.4 (docs/measurements.md). Shorter text says too little.
_LOOP_RATIO, _LOOP_BYTES, _LOOP_TAIL = 8.0, 512, 1024
_LOOP_CALLS = 16  # calls from which on few distinct ones are a loop


@dataclass(slots=True)
class Parsed:
    """What a chat format's parser found in one turn, before it is judged; the parser fills it."""

    calls: list[Call] = field(default_factory=list)
    attempted: int = 0
    recovered: int = 0
    defects: set[Reason] = field(default_factory=set)
    unfinished: set[Reason] = field(default_factory=set)  # defects that more text might have mended
    prose: list[str] = field(default_factory=list)  # outside calls and reasoning, never blank
    late: bool = False  # some of the prose stands where not even a preamble may
    thought: list[str] = field(default_factory=list)
    wreck: list[str] = field(default_factory=list)  # bodies of calls that did not parse
    body: list[str] = field(default_factory=list)  # of the call that is open, as pieces
    ended: str = ""  # the end marker
    untyped: bool = False  # the syntax states no types: an argument may have been meant as the string it was

    def open(self) -> None:
        """A call begins."""
        self.attempted += 1
        self.body = []

    def close(self, found: Found | Reason) -> None:
        """The open call, or list of calls, ends; what stands behind it is prose."""
        if isinstance(found, Reason):
            self.spoil(found)
            return
        self.calls += found.calls
        self.attempted += len(found.calls) - 1
        self.body = []
        self.say(found.rest)

    def spoil(self, reason: Reason) -> None:
        """The open call is none."""
        self.defects.add(reason)
        self.wreck.append("".join(self.body))
        self.body = []

    def say(self, text: str, late: bool = False) -> None:
        """Text outside calls and reasoning."""
        if text and not text.isspace():
            self.prose.append(text)
            self.late = self.late or late or self.attempted > 0

    def stray(self, role: str) -> None:
        """A marker that no assistant turn may hold here."""
        if role == "header":
            self.defects.add(Reason.ROLE_ECHO)
        elif role.startswith("response"):
            self.defects.add(Reason.HALLUCINATED_RESPONSE)
        else:
            self.defects.add(Reason.STRAY_CLOSE)


def classify(
    text: str,
    format: str = "hermes",
    stop: Stop = "unknown",
    tools: Tools | None = None,
    thinking: bool = False,
) -> Classified:
    """The structure of one assistant turn given as text, with or without its end marker.

    `tools`, if given, are the names or schemas that calls are held against. `thinking`: the prompt has opened
    the reasoning block, so the turn begins inside it. An end marker in the text outweighs `stop`. Linear in the
    length of the text; any text is judged, none raises.

    >>> classify('<tool_call>{"name": "now", "arguments": {}}</tool_call>').structure.value
    'tool_call'
    >>> classify("<tool_call><|im_end|>").reason.value
    'control_tokens_only'

    Raises:
        UnknownPlugin: no such format; the message lists the choices.
    """
    chat_format = format_named(format)
    return judge(chat_format.parse(chat_format.split(text), thinking), stop, tools)


def judge(parsed: Parsed, stop: Stop, tools: Tools | None = None) -> Classified:
    """The structure of a parsed turn, with the first reason of `Reason` that applies.

    Text around a call pollutes the turn, also where the template would render it: the paper's healthy call is
    nothing but calls, and the labels of the real turns agree.
    """
    prose, thought, wreck = "\n".join(parsed.prose), "".join(parsed.thought), "\n".join(parsed.wreck)
    loose = "\n".join((prose, thought, wreck))
    reason = _collapse(parsed, loose)
    if reason is not None:
        return Classified(Structure.COLLAPSED, reason, tuple(parsed.calls), parsed.attempted, parsed.recovered)
    defects = set(parsed.defects)
    # The words first: finding that they are not there is many times cheaper than the patterns.
    if any(role in prose for role in _ROLES) and _ROLE_ECHO.search(prose):
        defects.add(Reason.ROLE_ECHO)
    if "xecution result" in prose and _RESULT_ECHO.search(prose):
        defects.add(Reason.HALLUCINATED_RESPONSE)
    if not parsed.attempted and not _has_content(prose):
        defects.add(Reason.NO_ANSWER)
    if stop == "length" and not parsed.ended:
        # What the limit cut off was not closed for that reason alone.
        defects -= parsed.unfinished | {Reason.UNCLOSED_CALL, Reason.UNCLOSED_THINK, Reason.NO_ANSWER}
        defects.add(Reason.TRUNCATED)
    if tools is not None:
        defects |= _misused(parsed.calls, tools, parsed.untyped)
    if defects:
        structure, reason = Structure.POLLUTED, min(defects, key=_RANK.__getitem__)
    else:
        structure, reason = Structure.TOOL_CALL if parsed.calls else Structure.RESPONSE, Reason.OK
    return Classified(structure, reason, tuple(parsed.calls), parsed.attempted, parsed.recovered)


def _collapse(parsed: Parsed, loose: str) -> Reason | None:
    """Why no content is left in the turn, if so; `loose` is its text outside calls that parse."""
    if not parsed.calls and not _has_content(loose):
        if parsed.attempted or parsed.defects or _WORD.search(loose):
            return Reason.CONTROL_TOKENS_ONLY
        return Reason.SYMBOLS_ONLY if loose.strip() else Reason.EMPTY
    if _loops(loose):
        return Reason.REPETITION
    if len(parsed.calls) >= _LOOP_CALLS and 4 * len({repr(c) for c in parsed.calls}) <= len(parsed.calls):
        return Reason.REPETITION
    return None


def _has_content(text: str) -> bool:
    """Is there a word that is neither a role's name nor a tag?"""
    words = (match.group() for match in _WORD.finditer(text))
    return any(word[0] != "<" and word.lower() not in _ROLES for word in words)


def _loops(text: str) -> bool:
    """Is the text, or its tail, one passage over and over? Linear: a pass of deflate."""
    if len(text) * 4 < _LOOP_BYTES:  # too short in any encoding
        return False
    data = text.encode("utf-8", "surrogatepass")
    return any(
        len(part) >= _LOOP_BYTES and len(part) >= _LOOP_RATIO * len(zlib.compress(part, 1))
        for part in (data[-_LOOP_TAIL:], data)
    )


def _misused(calls: Iterable[Call], tools: Tools, untyped: bool) -> set[Reason]:
    """What is wrong with well-formed calls, held against the tools on offer; `untyped` as in `Parsed`."""
    schemas: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function: Mapping[str, Any] = {"name": tool} if isinstance(tool, str) else tool.get("function", tool)
        schemas[function["name"]] = function.get("parameters") or {}
    wrong: set[Reason] = set()
    for call in calls:
        if call.name not in schemas:
            wrong.add(Reason.UNKNOWN_TOOL)
        elif not accepts(schemas[call.name], call.arguments, untyped):
            wrong.add(Reason.WRONG_ARGUMENT)
    return wrong
