"""What the page says in words: streams, alarms, interventions, ages."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    """The driver to name in a headline: the largest share, but a named control token before a sum over
    tokens.
    """
    if not drivers:
        return "no driver recorded"
    top = max(drivers, key=lambda d: d.share)
    named = [d for d in drivers if token_of(d.stream)]
    if named and top.stream.startswith("hazard"):
        top = max(named, key=lambda d: (d.share, len(d.stream)))
    return stream_words(top.stream)


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
    left = max(0, int(seconds))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size} {unit}")
            left %= size
        elif parts:
            parts.append(f"0 {unit}")
    return " ".join(p for p in parts[:2] if not p.startswith("0 ") or len(parts) == 1)
