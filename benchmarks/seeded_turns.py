"""Turns for the benchmarks, made from a seed: calls, replies, and calls broken in known ways.

They are written as a chat format's family writes them (the table of `tests/renderers.py`), of invented words.
"""

from __future__ import annotations

import json
import random
import runpy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from collapsewatch.formats import format_named
from collapsewatch.records import Call

FAMILIES = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "renderers.py"))["FAMILIES"]
TEXT = "free text"
TOOLS: dict[str, dict[str, Any]] = {
    "search_flights": {"from": ["ZRH", "SFO"], "to": ["NRT", "LHR"], "date": ["2026-11-30"], "note": TEXT},
    "get_weather": {"city": ["Zürich", "São Paulo", "東京"], "days": [1, 3, 7], "question": TEXT},
    "send_message": {"recipient": ["Eve", "Frank"], "message": TEXT},
    "web_search": {"query": TEXT, "limit": [5, 10]},
    "add_reminder": {"title": TEXT, "notify": [True, False]},
}
SYLLABLES = ["an", "ber", "con", "da", "el", "ga", "hi", "in", "ka", "lo", "mer", "no", "or", "qui", "ra", "sol", "tem"]
GAPS = [" "] * 4 + [", ", ". "]


def prose(rng: random.Random, size: int) -> str:
    """Sentences of invented words, of about `size` characters."""
    said = ""
    while len(said) < size:
        said += "".join(rng.choices(SYLLABLES, k=rng.choice((1, 1, 2, 3)))) + rng.choice(GAPS)
    return said.strip(" ,.").capitalize() + "."


def tool_call(rng: random.Random, size: int) -> Call:
    """A call whose free text has about `size` characters."""
    name = rng.choice(list(TOOLS))
    return Call(name, {key: prose(rng, size) if of is TEXT else rng.choice(of) for key, of in TOOLS[name].items()})


def with_body(change: Callable[[str], str], parts: Sequence[str]) -> str:
    """The turn with what stands in its call, the longest part, changed."""
    at = max(range(0, len(parts), 2), key=lambda i: len(parts[i]))
    return "".join([*parts[:at], change(parts[at]), *parts[at + 1 :]])


def restated(change: Callable[[Any], Any], body: str) -> str:
    """A body that is JSON, changed; any other as it is."""
    try:
        return json.dumps(change(json.loads(body)), ensure_ascii=False)
    except (ValueError, KeyError, TypeError):
        return body


def broken(parts: Sequence[str], roles: dict[str, str]) -> dict[str, str]:
    """The turn, given as parts with markers at the odd indices, in every way of breaking it."""
    opening = {marker for marker, role in roles.items() if role in ("section_open", "open", "prefix")}
    closing = {marker for marker, role in roles.items() if role in ("section_close", "close")}
    whole = "".join(parts)
    return {
        "not closed": "".join(takewhile(lambda part: part not in closing, parts)),
        "body cut short": with_body(lambda body: body.rstrip()[:-3] + "\n", parts),
        "opened twice": "".join(2 * part if part in opening else part for part in parts),
        "not opened": "".join(part for part in parts if part not in opening),
        "no markers": "".join(parts[::2]),
        "half a marker": "".join([*parts[:1], *(part[:-1] for part in parts[1:2]), *parts[2:]]),
        "single quotes": with_body(lambda body: body.replace('"', "'"), parts),
        "no name": with_body(partial(restated, lambda call: {"arguments": call["arguments"]}), parts),
        "arguments a string": with_body(partial(restated, lambda c: {**c, "arguments": str(c["arguments"])}), parts),
        "result invented": f'{whole}\n<tool_response>\n{{"status": "ok"}}\n</tool_response>\nIt is done.',
        "user's turn written": f"{whole}\nuser\nAnd what about tomorrow?",
        "markers only": "\n".join(parts[1::2]),
        "loop": "I will check the weather. " * (25 + len(whole) // 25),
        "symbols only": "!" * 80,
    }


class Turn(NamedTuple):
    """`kind`: `call`, `reply`, or the way it is broken."""

    kind: str
    text: str


def turns(name: str, count: int, size: int, seed: int) -> list[Turn]:
    """`count` turns of a chat format: half calls, a tenth of them parallel; a fifth replies; the rest broken calls.

    `size`: characters of free text in a call. ChatML's stop token is left out, as engines do before they parse.
    """
    rng, roles, family, made = random.Random(seed), format_named(name).role, FAMILIES[name], []
    for _ in range(count):
        drawn = rng.random()
        calls = (
            [] if drawn < 0.2 else [tool_call(rng, size) for _ in range(2 if drawn > 0.95 and family.parallel else 1)]
        )
        parts = family.render(calls, "" if calls else prose(rng, size + 100), None)
        parts = parts[:-2] if parts[-2:] == ["<|im_end|>", ""] else parts
        kind, text = "call" if calls else "reply", "".join(parts)
        if 0.2 <= drawn < 0.5:
            ways = {way: wreck for way, wreck in broken(parts, roles).items() if wreck != text}
            kind, text = rng.choice(list(ways.items()))
        made.append(Turn(kind, text))
    return made
