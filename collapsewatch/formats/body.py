"""What stands inside a call: JSON, strictly; and what can be saved of one that has lost its frame."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..records import Call
from ..structure import Reason
from . import CannotWrite

_GIVEN = r'"(?:arguments|parameters)"\s*:'
# Its two keys in either order; the type that OpenAI's form states may stand before them.
BARE_JSON = re.compile(
    r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?'
    rf'(?:"name"\s*:\s*"[^"]*"\s*,\s*{_GIVEN}|{_GIVEN}\s*\{{[^{{}}]*+\}}\s*,\s*"name"\s*:)'
)
_OBJECT = re.compile(r'\{\s*"')
_TRIES, _WINDOW = 64, 65_536  # places in one text, and characters of it, from which a call is tried to be saved
_BLANK = " \t\n\r"


class Found(NamedTuple):
    """The calls of one body, never none, and the text that stands behind the last of them."""

    calls: tuple[Call, ...]
    rest: str = ""


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_STRICT = json.JSONDecoder(parse_constant=_refuse)


def json_value(text: str) -> tuple[Any, str] | None:
    """The JSON value (RFC 8259: no NaN, no bare line break) that `text` begins with, and the rest; None if none."""
    try:
        value, end = _STRICT.raw_decode(text, len(text) - len(text.lstrip(_BLANK)))
    except (ValueError, RecursionError):  # nesting too deep for the interpreter is no value either
        return None
    return value, text[end:]


def untyped(text: str) -> Any:
    """The value that `text` states where a syntax knows no types: JSON other than a string, else the text itself."""
    decoded = json_value(text)
    return text if decoded is None or decoded[1].strip(_BLANK) or isinstance(decoded[0], str) else decoded[0]


def call_of(value: Any, arguments: str = "arguments") -> Call | Reason:
    """The call that a JSON value states as `{"name": str, "<arguments>": {...}}`."""
    if not isinstance(value, dict):
        return Reason.CALL_NOT_OBJECT
    name, given = value.get("name"), value.get(arguments)
    if not isinstance(name, str) or not name:
        return Reason.MISSING_NAME
    if not isinstance(given, dict):
        return Reason.ARGUMENTS_NOT_OBJECT
    return Call(name, given)


def json_calls(text: str, arguments: str = "arguments", array: bool = False, whole: bool = True) -> Found | Reason:
    """The call, or with `array` the non-empty list of calls, that `text` states as JSON.

    With `whole` nothing but white space may stand behind it; without, what does is the rest.
    """
    decoded = json_value(text)
    if decoded is None or (whole and decoded[1].strip(_BLANK)):
        return Reason.INVALID_JSON
    value, rest = decoded
    if not array:
        call = call_of(value, arguments)
        return call if isinstance(call, Reason) else Found((call,), rest)
    if not isinstance(value, list) or not value:
        return Reason.INVALID_SYNTAX
    calls = [call_of(item, arguments) for item in value]
    broken = [call for call in calls if isinstance(call, Reason)]
    return broken[0] if broken else Found(tuple(call for call in calls if isinstance(call, Call)), rest)


def json_text(value: Any) -> str:
    """A value as JSON that `json_value` reads.

    Raises:
        CannotWrite: it is no JSON value.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CannotWrite(f"call: got the argument {value!r}, expected a JSON value") from error


def json_call(call: Call, arguments: str = "arguments") -> str:
    """The JSON object that states a call: what `call_of` reads; raises as `json_text`."""
    return json_text({"name": call.name, arguments: call.arguments})


def json_series(
    text: str, between: re.Pattern[str], at: int = 0, keys: Sequence[str] = ("arguments",)
) -> Found | Reason:
    """The calls that `text[at:]` states as JSON objects divided by `between`, and the rest; linear.

    `between` also matches the white space around it. `keys`: what the arguments may be called, the usual first.
    """
    calls: list[Call] = []
    while True:
        try:
            value, at = _STRICT.raw_decode(text, at)
        except (ValueError, RecursionError):
            return Reason.INVALID_JSON
        stated = [call_of(value, key) for key in keys]
        call = next((call for call in stated if isinstance(call, Call)), stated[0])
        if isinstance(call, Reason):
            return call
        calls.append(call)
        divided = between.match(text, at)
        if divided is None:
            return Found(tuple(calls), text[at:])
        at = divided.end()


def json_salvage(text: str, keys: Sequence[str] = ("arguments", "parameters")) -> list[Call]:
    """Calls stated as JSON objects anywhere in `text`, as far as bounded work finds them."""
    found: list[Call] = []
    text, end = text[:_WINDOW], 0
    for tried, match in enumerate(_OBJECT.finditer(text)):
        if tried == _TRIES:
            break
        if match.start() < end:
            continue
        try:
            value, end = _STRICT.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        calls = (call_of(value, key) for key in keys)
        found += [call for call in calls if isinstance(call, Call)][:1]
    return found
