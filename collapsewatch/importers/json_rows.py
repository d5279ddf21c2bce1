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
_Bracket = tuple[str, int]  # and where it stands


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

    Of a broken document the objects in which it breaks are left out, or all behind its last whole value.

    Raises:
        ValueError: it cannot be mended.
    """
    text = source.text()
    try:
        return json.loads(text), ()
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    except json.JSONDecodeError as error:
        mended = max(_without_breaks(text, error.pos), _closed(text, error.pos), key=len)
        if not mended:
            raise
        return json.loads(mended), (f"broken JSON ({error}): {len(text) - len(mended)} characters left out",)


def _without_breaks(text: str, at: int) -> str:
    """The text without the object in which it breaks, at each break; '' if that does not make it whole."""
    for _ in range(_CUTS):
        opened, _ = _open(text, at)
        mark, begin = opened[-1] if opened else ("", 0)
        end = text.find("}", at) + 1 if mark == "{" else text.find("{", at)
        if not opened or end <= 0:
            return ""
        if mark == "{":
            text = f"{text[:begin]}null{text[end:]}"
        else:  # between the rows of a list
            before = text[:at].rstrip().rstrip(",")
            text = f"{before}{',' * (before[-1] != '[')}{text[end:]}"
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            at = error.pos
        except RecursionError:
            return ""
        else:
            return text
    return ""


def _closed(text: str, at: int) -> str:
    """The text up to its last whole object or list before `at`, closed; '' if that is none."""
    _, (end, opened) = _open(text, at)
    closed = text[:end] + "".join(_CLOSE[mark] for mark, _ in reversed(opened))
    return closed if opened and isinstance(parse(closed), dict | list) else ""


def _open(text: str, at: int) -> tuple[list[_Bracket], tuple[int, list[_Bracket]]]:
    """The brackets that are open at a place, and the end of the last value closed before, with those open there."""
    opened: list[_Bracket] = []
    last: tuple[int, list[_Bracket]] = (0, [])
    for token in _TOKEN.finditer(text, 0, at):
        mark = token[0]
        if mark in ("{", "["):
            opened.append((mark, token.start()))
        elif mark in ("]", "}") and opened:
            opened.pop()
            last = (token.end(), opened[:])
    return opened, last
