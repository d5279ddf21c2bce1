"""What the page says in words: streams, alarms, interventions, ages."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise

from collapsewatch.records import SLOTS, Driver

from .theme import plain

_PLACES = {
    "start": "at the start of a turn",
    "open": "right after an opened call",
    "body": "inside call arguments",
    "close": "after a closed call",
    "text": "in text",
    "think": "in a reasoning block",
    "end": "after the end of the turn",
}
_STREAMS = {
    "hazard": "control tokens where the format forbids them",
    "no_end": "no end of turn after a closed call",
    "reopen": "another call opened right after a closed one",
    "no_call_start": "no call at the start of a turn",
    "call_in_text": "a call opened in text",
    "polluted": "polluted turns",
    "collapsed": "collapsed turns",
    "parse_failure": "calls that do not parse",
    "empty": "empty turns",
    "truncated": "turns cut at the length limit",
    "repeated": "repetition loops",
    "no_call": "rollouts without a call",
}


_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def token_of(stream: str) -> str:
    """The control token a hazard stream is about, or '' for every other stream.

    >>> token_of("hazard:<tool_call>@text"), token_of("hazard@text"), token_of("polluted")
    ('<tool_call>', '', '')
    """
    head, _, place = stream.rpartition("@")
    name = head if head and place in SLOTS else stream
    return name.removeprefix("hazard:") if name.startswith("hazard:") else ""


def stream_words(stream: str) -> str:
    """A stream, said for a reader; a name outside the vocabulary is shown as it is.

    >>> stream_words("hazard:<tool_call>@text")
    '<tool_call> in text'
    >>> stream_words("hazard:<|im_end|>")
    '<|im_end|> where the format forbids it'
    """
    token = token_of(stream)
    place = _PLACES.get(stream.rpartition("@")[2], "") if "@" in stream else ""
    if token:
        return plain(f"{token} {place or 'where the format forbids it'}")
    if stream.startswith("hazard@") and place:
        return f"control tokens {place}"
    return plain(_STREAMS.get(stream, stream))


def cause(drivers: Sequence[Driver]) -> str:
    """What to name in a headline: the driver with the largest share, and the control token that is over its tolerance.

    A sum over tokens gives way to the token; an outcome (collapsed turns) is named beside it.
    """
    if not drivers:
        return "no driver recorded"
    top = max(drivers, key=lambda d: d.share)
    over = [d for d in drivers if token_of(d.stream) and d.level > d.tolerance]
    if not over or token_of(top.stream):
        return stream_words(top.stream)
    token = stream_words(max(over, key=lambda d: (d.share, len(d.stream))).stream)
    return token if top.stream.startswith("hazard") else f"{stream_words(top.stream)}, {token}"


def drivers(text: str | None) -> list[Driver]:
    """The drivers in an alarm row (JSON); a row written by something else than us names none."""
    try:
        return [
            # float() also reads the strings that stand for NaN and the infinities in JSON.
            Driver(d.pop("stream"), **{name: float(value) for name, value in d.items()})
            for d in json.loads(text or "[]")
        ]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def outcome(text: str | None) -> str:
    """What the detail of an intervention row (JSON) says of its effect, or of why there was none; '' if nothing.

    >>> outcome('{"streams": {"reward": {"before": 0.2, "after": 0.75}}}')
    ': reward 0.2 to 0.75'
    >>> outcome('{"reason": "no example"}'), outcome("{}")
    (': no example', '')
    """
    try:
        detail = json.loads(text or "{}")
        if "reason" in detail:
            return f": {plain(detail['reason'])}"
        streams = [(stream_words(name), float(v["before"]), float(v["after"])) for name, v in detail["streams"].items()]
    except (ValueError, TypeError, KeyError):
        return ""
    return ": " + ", ".join(f"{name} {number(before)} to {number(after)}" for name, before, after in streams[:4])


def number(value: float) -> str:
    """A value as a person reads it: three significant digits, and said so when it is not finite.

    >>> number(0.000012), number(0.98765), number(1234.5), number(float("nan"))
    ('1.2e-05', '0.988', '1.23e+03', 'not a number')
    """
    if math.isnan(value):
        return "not a number"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """A length of time, in the two largest units.

    >>> duration(3.2), duration(95), duration(7260), duration(200000)
    ('3 s', '1 min 35 s', '2 h 1 min', '2 d 7 h')
    """
    whole = max(0, int(seconds))
    for (unit, size), (below, part) in pairwise(_UNITS):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"
