"""JSON as logs have it: objects line by line among other text, nested values as columns, documents that are cut."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .source import Source, parse

_WRAPPERS = frozenset({"data", "log", "logs", "metrics", "scalars", "values"})
"""Names of an object in a row that say nothing of what is in it."""
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}]', re.DOTALL)
_CUTS = 20  # places of a document that are mended; what is broken more often is no document any more
_CLOSE = {"{": "}", "[": "]"}


def objects(source: Source) -> Iterator[dict[str, Any]]:
    """The objects that stand on a line, alone or behind other text; a line that holds a broken one is a fault."""
    lost, count, first = 0, 0, 0
    for count, line in enumerate(source.lines(), 1):
        begin = line.find("{")
        if begin < 0:
            continue
        row = parse(line[begin:].rstrip().rstrip(","))
        if isinstance(row, dict):
            yield row
        elif not line[:begin].strip():
            lost, first = lost + 1, first or count
    if lost:
        source.faults.append(f"{lost} of {count} lines left out, the first {source.name}:{first}: no whole JSON object")


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a row by the path to them.

    >>> flat({"step": 1, "data": {"reward": 0.5}, "actor": {"kl": 0.1}})
    {'step': 1, 'reward': 0.5, 'actor/kl': 0.1}
    """
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, prefix if name in _WRAPPERS else f"{prefix}{name}/")
        else:
            found[prefix + name] = value
    return found


def document(source: Source) -> tuple[Any, tuple[str, ...]]:
    """The JSON value that is the file, and what is wrong with it.

    Of a broken document the objects are left out in which it breaks; of one that ends early, the last.

    Raises:
        ValueError: it cannot be mended.
    """
    text, cuts = source.text(), 0
    while True:
        try:
            return json.loads(text), (f"broken JSON: mended in {cuts} places",) * (cuts > 0)
        except json.JSONDecodeError as error:
            mended = _mended(text, error.pos) if cuts < _CUTS else None
            if mended is None:
                raise
            text, cuts = mended, cuts + 1
        except RecursionError as error:
            raise ValueError("nested too deep") from error


def _mended(text: str, at: int) -> str | None:
    """The text without the innermost object around `at`, or closed where it ends too early; None without one."""
    opened: list[tuple[str, int]] = []
    for token in _TOKEN.finditer(text, 0, at):
        mark = token[0]
        if mark in "{[":
            opened.append((mark, token.start()))
        elif mark in "]}" and opened:
            opened.pop()
    inside = [begin for mark, begin in opened if mark == "{"]
    if not inside:
        return None
    end = text.find("}", max(at, inside[-1])) + 1
    if end:
        return f"{text[: inside[-1]]}null{text[end:]}"
    # It ends early: all that is open is closed behind the last whole value.
    outer = [mark for mark, begin in opened if begin < inside[-1]]
    before = text[: inside[-1]].rstrip()
    if before.endswith(":"):  # the value of a name
        before += "null"
    return before.rstrip(",") + "".join(_CLOSE[mark] for mark in reversed(outer))
