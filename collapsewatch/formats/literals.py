"""Calls written as Python, `name(key=literal, ...)`, read in one pass: nothing is evaluated or compiled."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from ..records import Call
from ..structure import Reason
from .body import Found

T = TypeVar("T")

NAME = r"[^\W\d][\w.-]*"
"""A tool's name where calls are Python but for the dash, which names of tools may hold."""
_SIGNS = r"""()\[\]{}<>"'`=,:;|"""
_PLAIN = rf"[^\s\d{_SIGNS}][^\s{_SIGNS}]*"  # what may be meant for a name; also in bytes
SPACED = rf"[^\s\d{_SIGNS}](?:[^\t\r\n{_SIGNS}]*[^\s{_SIGNS}])?"
"""A tool's name that may hold spaces and slashes, too."""

_TRIES, _WINDOW = 64, 65_536  # as for JSON
_DEPTH = 100
_BLANK = re.compile(r"[ \t\r\n]*+")
_FILLED = rf"\(\s*(?:\)|{_PLAIN}\s*=)"
_KEY = re.compile(r"[^\W\d]\w*")
_ATOM = re.compile(r"[+-]?[\w.]++(?:(?<=[eE])[+-]\w++)?", re.ASCII)
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_QUOTE = re.compile(r"""([rRuU]?)('''|\"""|'|")""")
_STRICT = {
    "'": re.compile(r"((?:[^'\\\n]|\\.)*+)'", re.DOTALL),
    '"': re.compile(r'((?:[^"\\\n]|\\.)*+)"', re.DOTALL),
    "'''": re.compile(r"((?:(?!''')[^\\]|\\.)*+)'''", re.DOTALL),
    '"""': re.compile(r'((?:(?!""")[^\\]|\\.)*+)"""', re.DOTALL),
}
# With line breaks and quotes in it: the string ends at the quote that something can follow.
_LENIENT = {quote: re.compile(rf"(.*?){quote}(?=\s*[,)\]}}:])", re.DOTALL) for quote in _STRICT}
_ESCAPE = re.compile(r"\\(\r?\n|[0-7]{1,3}|x[\da-fA-F]{2}|u[\da-fA-F]{4}|U[\da-fA-F]{8}|.)", re.DOTALL)
_ESCAPED = dict(zip("\\'\"abfnrtv", "\\'\"\a\b\f\n\r\t\v", strict=True)) | {"\n": "", "\r\n": ""}


def call_list(text: str, name: str = NAME) -> Found | Reason:
    """The calls that `text` states as `[name(key=literal, ...), ...]`, and the text behind the list."""
    reader = _Reader(text, name)
    try:
        reader.need("[")
        calls = reader.items("]", reader.call)
    except ValueError:
        return Reason.INVALID_SYNTAX
    return Found(tuple(calls), text[reader.at :]) if calls else Reason.INVALID_SYNTAX


def call_lines(text: str, name: str = NAME) -> Found | Reason:
    """The calls that `text` states as `name(key=literal, ...)`, one after the other."""
    reader = _Reader(text, name)
    calls: list[Call] = []
    try:
        while not (calls and reader.done()):
            calls.append(reader.call())
    except ValueError:
        return Reason.INVALID_SYNTAX
    return Found(tuple(calls))


def call_text(call: Call) -> str:
    """A call written as Python: what `call_list` reads."""
    return f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"


def list_start(name: str = _PLAIN) -> str:
    """Where a list of calls begins: `[name(` first thing in the text, `[name(key=` or `[name()` anywhere."""
    return rf"\A\s*\[\s*{name}\(|\[\s*{name}{_FILLED}"


def bare_call(name: str = _PLAIN) -> re.Pattern[str]:
    """A call without the brackets of its list, first thing in the text."""
    end = r"\s*+(?:\]\s*+)?\Z"
    call = rf"{_PLAIN}\(\s*(?:\){end}|{_PLAIN}\s*=)"
    if name != _PLAIN:  # a name with spaces is also how prose begins: such a call must be all there is
        call = rf"(?:{call}|{name}\(\s*(?:\)|{_PLAIN}\s*=.*\)){end})"
    return re.compile(rf"\A\s*{call}", re.DOTALL)


def call_salvage(text: str, name: str = NAME) -> list[Call]:
    """Calls written as Python anywhere in `text`, quotes and line breaks in strings forgiven; bounded work."""
    # A name with spaces begins behind a bracket, a comma or a line break only: anywhere else it is prose.
    begin = r"(?:\A|[\[,\n])[ \t]*" if name == SPACED else rf"(?<![^\s{_SIGNS}])"
    found: list[Call] = []
    text, end = text[:_WINDOW], 0
    for tried, match in enumerate(re.finditer(rf"{begin}({name})\(", text)):
        if tried == _TRIES:
            break
        if match.start(1) < end:
            continue
        for strings in (_STRICT, _LENIENT):
            reader = _Reader(text, name, match.start(1), strings)
            try:
                found.append(reader.call())
            except ValueError:
                continue
            end = reader.at
            break
    return found


class _Reader:
    """Reads Python literals and calls from a place in `text` on; a ValueError says that it cannot.

    Values are those of JSON: no tuple, set, bytes or complex number. `true`, `false` and `null` are read where
    JSON-minded models write them; of the escapes `\\N{...}` is none.
    """

    def __init__(self, text: str, name: str, at: int = 0, strings: dict[str, re.Pattern[str]] = _STRICT) -> None:
        self.text, self.at, self._name, self._strings = text, at, re.compile(name), strings

    def match(self, pattern: re.Pattern[str]) -> str:
        """What `pattern` matches here, behind white space; nothing if it does not."""
        self._skip()
        found = pattern.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        return found.group()

    def done(self) -> bool:
        """Is nothing but white space left?"""
        self._skip()
        return self.at == len(self.text)

    def take(self, sign: str) -> bool:
        """Step over `sign`, if it is what comes."""
        self._skip()
        found = self.text.startswith(sign, self.at)
        self.at += len(sign) * found
        return found

    def need(self, sign: str) -> None:
        if not self.take(sign):
            raise ValueError(f"no {sign} at {self.at}")

    def items(self, close: str, item: Callable[[], T]) -> list[T]:
        """Items divided by commas, up to `close`; a comma may stand behind the last."""
        found: list[T] = []
        while not self.take(close):
            if found:
                self.need(",")
                if self.take(close):
                    break
            found.append(item())
        return found

    def call(self) -> Call:
        name = self.match(self._name)
        self.need("(")
        pairs = self.items(")", self._argument)
        arguments = dict(pairs)
        if not name or len(arguments) < len(pairs):
            raise ValueError("no name, or an argument given twice")
        return Call(name, arguments)

    def value(self, depth: int = 0) -> Any:
        if depth == _DEPTH:
            raise ValueError("nested too deep")
        if self.take("["):
            return self.items("]", lambda: self.value(depth + 1))
        if self.take("("):
            return self._group(depth + 1)
        if self.take("{"):
            return dict(self.items("}", lambda: self._item(depth + 1)))
        if quoted := self.match(_QUOTE):
            return self._string(quoted)
        return _atom(self.match(_ATOM))

    def _skip(self) -> None:
        if self.text[self.at : self.at + 1].isspace() and (found := _BLANK.match(self.text, self.at)):
            self.at = found.end()

    def _argument(self) -> tuple[str, Any]:
        key = self.match(_KEY)
        self.need("=")
        if not key:
            raise ValueError("an argument without a name")
        return key, self.value()

    def _item(self, depth: int) -> tuple[Any, Any]:
        key = self.value(depth)
        if isinstance(key, list | dict):
            raise ValueError("a key that is no scalar")
        self.need(":")
        return key, self.value(depth)

    def _group(self, depth: int) -> Any:
        """What stands in round brackets: the one value in them, or a tuple, which is a list as in JSON."""
        found: list[Any] = []
        while not self.take(")"):
            if found:
                self.need(",")
                if self.take(")"):
                    return found
            found.append(self.value(depth))
        return found[0] if len(found) == 1 else found

    def _string(self, quoted: str) -> str:
        """The string that `quoted`, a prefix and a quote, begins, and those that follow it directly."""
        parts = []
        while quoted:
            quote = quoted.lstrip("rRuU")
            found = self._strings[quote].match(self.text, self.at)
            if found is None:
                raise ValueError("a string that does not end")
            self.at = found.end()
            parts.append(found[1] if quoted[0] in "rR" else _ESCAPE.sub(_unescaped, found[1]))
            quoted = self.match(_QUOTE)
        return "".join(parts)


def _unescaped(found: re.Match[str]) -> str:
    code = found[1]
    if code in _ESCAPED:
        return _ESCAPED[code]
    if code[0] in "01234567":
        return chr(int(code, 8))
    if len(code) > 1:
        point = int(code[1:], 16)
        if point > sys.maxunicode:
            raise ValueError(f"no character: {found[0]}")
        return chr(point)
    if code in "xuUN":
        raise ValueError(f"half an escape: {found[0]}")
    return found[0]  # an unknown escape stands for itself


def _atom(token: str) -> Any:
    if token in _WORDS:
        return _WORDS[token]
    if not token.lstrip("+-.")[:1].isdigit():  # float() reads nan and inf, too
        raise ValueError(f"no literal: {token}")
    return float(token) if {".", "e", "E"} & set(token) and "x" not in token.lower() else int(token, 0)
