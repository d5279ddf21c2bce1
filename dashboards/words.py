"""What the page says in words: interventions, ages, and what a screen reader says."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from collapsewatch.records import Driver
from collapsewatch.words import number, plain, stream_words

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def aria(label: str) -> dict[str, Any]:
    """The attribute that names a component to a screen reader."""
    return {"aria-label": label}


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
