"""Harmony: the turns of gpt-oss, made of messages on channels, of which the last is a call or the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from ..records import Call
from ..structure import Parsed, Reason
from .base import Found, Marker
from .named import NamedCalls, named_call
from .spelling import spelled

_PLAIN = re.compile(r"<\|channel\|>(analysis|commentary|final)")
# A recipient names the tool, before the channel or behind it.
_TO, _ON, _TYPE = (
    r" to=(?P<to>[^\s<]+)",
    r"<\|channel\|>(?P<on>analysis|commentary)",
    r" ?<\|constrain\|>json| json| code",
)
_BEFORE = re.compile(f"{_TO}{_ON}(?P<type>{_TYPE})?")
_BEHIND = re.compile(f"{_ON}{_TO}(?P<type>{_TYPE})?")


class GptOss(NamedCalls):
    """`<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>`, one call in a turn.

    The prompt ends in `<|start|>assistant`, and so does what joins one message to the next. Messages on
    `analysis` are reasoning, one on `commentary` without a recipient is a preamble, the one on `final` is the
    answer. Functions are called on `commentary`, the built-in tools on `analysis`; `python` takes code, not JSON.
    """

    name: ClassVar[str] = "gpt_oss"
    # The sequences only tell what kind of content begins; without one it is taken for that of a call.
    markers: ClassVar[tuple[Marker, ...]] = (
        Marker("<|channel|>", "channel"),
        Marker("<|constrain|>", "divide"),
        Marker("<|message|>", "open"),
        Marker("<|end|>", "message_close"),
        Marker("<|start|>", "restart"),
        Marker("<|call|>", "end"),
        Marker("<|return|>", "end"),
        Marker("<|endoftext|>", "end"),
        Marker("<|startoftext|>", "header"),
        Marker("<|channel|>analysis<|message|>", "think_open"),
        Marker("<|channel|>commentary<|message|>", "message"),
        Marker("<|channel|>final<|message|>", "message"),
    )
    follow: ClassVar[Mapping[str, tuple[str, str]]] = {
        "start": ("channel think_open message", "channel"),
        "channel": ("open", "open divide"),
        "divide": ("", "open"),
        "open": ("", "end"),
        "think_open": ("message_close", "message_close"),
        "message": ("", "message_close end"),
        "message_close": ("restart", ""),
        "restart": ("", "channel think_open message"),
    }
    bare: ClassVar[re.Pattern[str]] = re.compile(r"\bto=functions\.\w")
    shape: ClassVar[re.Pattern[str]] = re.compile(r"\bto=(?:functions\.)?(?P<name>[\w.-]{1,64})[^{]{0,80}(?=\{)")

    def __init__(self) -> None:
        super().__init__()
        self._token = spelled(text for text in self.role if text.count("<|") == 1)

    def parse(self, pieces: Sequence[str], thinking: bool = False) -> Parsed:
        """As in the base; no prompt of this family opens a reasoning block."""
        flat = [""]
        for index, piece in enumerate(pieces):
            first, *rest = self._token.split(piece) if index % 2 else [piece]
            flat[-1] += first
            flat += rest
        turn = _Turn(self.calls)
        for index, piece in enumerate(flat):
            if index % 2:
                turn.mark(piece, self.role[piece])
            else:
                turn.read(piece)
        return self.recover(self.finish(turn.over()), pieces)

    def calls(self, body: Sequence[str]) -> Found | Reason:
        """The call in `body`: recipient, content."""
        recipient, content = body
        if recipient == "python":
            return Found((Call(recipient, {"code": content}),)) if content.strip() else Reason.INVALID_SYNTAX
        return named_call(recipient.removeprefix("functions."), content)


class _Turn:
    """A walk over the control tokens of one turn: in the header or content of a message, between two, at the end."""

    def __init__(self, calls: Callable[[Sequence[str]], Found | Reason]) -> None:
        self.parsed, self._calls = Parsed(), calls
        self._state, self._first, self._answered = "header", True, False
        self._header: list[str] = []
        self._content = ""

    def read(self, text: str) -> None:
        """A piece of text."""
        if self._state == "header":
            self._header.append(text)
        elif self._state == "content":
            self._content = text
        elif text and not text.isspace():
            self.parsed.say(text, late=True)
            self.parsed.defects.add(Reason.AFTER_END if self._state == "end" else Reason.ROLE_ECHO)

    def mark(self, marker: str, role: str) -> None:
        """A control token."""
        if self._state == "header" and role in ("channel", "divide"):
            self._header.append(marker)
            return
        if self._state == "header" and role == "open":
            self._state, self._content = "content", ""
            return
        defects = self.parsed.defects
        if self._state in ("header", "content"):
            self._leave(marker)
        elif self._state == "end":
            defects.add(Reason.AFTER_END)
        elif role != "restart":
            defects.add(Reason.STRAY_CLOSE if role in ("end", "message_close") else Reason.STRAY_OPEN)
        if role == "end":
            self.parsed.ended = self.parsed.ended or marker
            self._state = "end"
        elif role == "message_close":
            self._state = "between" if self._state != "end" else "end"
        else:
            self._state, self._first = "header", False
            self._header = [] if role == "restart" else [marker]

    def over(self) -> Parsed:
        """The turn is over; what was found in it."""
        if self._state in ("header", "content"):
            self._leave("")
        if self.parsed.prose and not self.parsed.attempted and not self._answered:
            self.parsed.defects.add(Reason.NO_ANSWER)
        return self.parsed

    def _leave(self, marker: str) -> None:
        """The message that is open ends at `marker`, or with the turn."""
        parsed, header = self.parsed, "".join(self._header)
        if self._state == "header" and self._first and not header.strip() and marker != "<|start|>":
            return  # an empty turn
        before = set(parsed.defects)
        if self._answered:
            parsed.defects.add(Reason.AFTER_END)
        if marker not in ("", "<|end|>", "<|call|>", "<|return|>", "<|endoftext|>"):
            parsed.defects.add(Reason.ROLE_ECHO if marker in ("<|start|>", "<|startoftext|>") else Reason.STRAY_OPEN)
        author = "" if self._first else "assistant"
        if self._state == "header":
            self._broken(header)
        elif not header.startswith(author):
            parsed.defects.add(Reason.HALLUCINATED_RESPONSE if "to=assistant" in header else Reason.ROLE_ECHO)
            parsed.say(self._content, late=True)
        else:
            self._message(header.removeprefix(author), marker)
        if not marker:
            parsed.unfinished |= parsed.defects - before

    def _message(self, header: str, marker: str) -> None:
        parsed, content = self.parsed, self._content
        if plain := _PLAIN.fullmatch(header):
            if plain[1] == "analysis":
                parsed.thought.append(content)
                if marker != "<|end|>":
                    parsed.defects.add(Reason.UNCLOSED_THINK)
                return
            parsed.say(content)
            self._answered = self._answered or plain[1] == "final"
            if marker == "<|call|>":
                parsed.defects.add(Reason.STRAY_CLOSE)
        elif found := _BEFORE.fullmatch(header) or _BEHIND.fullmatch(header):
            recipient, kind = found["to"], found["type"] or ""
            function = recipient.startswith("functions.")
            if function != (found["on"] == "commentary"):
                parsed.defects.add(Reason.STRAY_OPEN)
            # Without the type of the content, or its marker where that stands, it is what is left of a header.
            if not kind if found.re is _BEFORE else function and "<|constrain|>" not in kind:
                parsed.defects.add(Reason.BROKEN_MARKER)
            parsed.open()
            parsed.body = [content]
            if marker in ("", "<|call|>"):
                parsed.close(self._calls([recipient, content]))
            else:
                parsed.spoil(Reason.UNCLOSED_CALL)
        else:
            self._broken(header)

    def _broken(self, header: str) -> None:
        """A message whose header is none."""
        text = header + self._content
        if "to=" not in header:
            self.parsed.defects.add(Reason.BROKEN_MARKER)
            self.parsed.say(text)
            return
        self.parsed.open()
        self.parsed.body = [text]
        self.parsed.spoil(Reason.BROKEN_MARKER)
