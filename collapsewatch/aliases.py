"""What a user says of the columns of a log: `COLUMN=NAME`, one by one or in a file of them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path

from .importers.names import CANONICAL, FAMILIES


class AliasError(ValueError):
    """A mapping of columns that cannot be used."""


def read_aliases(path: Path) -> dict[str, str]:
    """The mapping in a file: a JSON object, or lines of COLUMN=NAME; `#` begins a comment line, quotes are dropped.

    Raises:
        AliasError: no such file, or something in it that is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise AliasError(f"--aliases: got {str(path)!r} ({reason}), expected a readable file") from error
    if not text.lstrip().startswith("{"):
        lines = (line.strip() for line in text.splitlines())
        return pairs((line for line in lines if line and not line.startswith("#")), "--aliases")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AliasError(f"--aliases: got broken JSON in {str(path)!r} ({error}), expected an object") from error
    if not all(isinstance(name, str) for name in found.values()):
        raise AliasError(f"--aliases: got a value that is no text in {str(path)!r}, expected column to name")
    return {column: _checked(name, "--aliases") for column, name in found.items()}


def pairs(given: Iterable[str], option: str = "--map") -> dict[str, str]:
    """The mapping of COLUMN=NAME texts; a column may hold `=`, a name never does.

    >>> pairs(["Avg. score = reward", '"it"=step'])
    {'Avg. score': 'reward', 'it': 'step'}

    Raises:
        AliasError: no such pair, or a name that no metric has.
    """
    found = {}
    for text in given:
        column, sign, name = (part.strip().strip("\"'") for part in text.rpartition("="))
        if not (column and sign and name):
            raise AliasError(f"{option}: got {text!r}, expected COLUMN=NAME")
        found[column] = _checked(name, option)
    return found


def _checked(name: str, option: str) -> str:
    if name in CANONICAL or name == "step" or name.startswith(FAMILIES):
        return name
    known = sorted(CANONICAL | {"step"})
    close = difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    raise AliasError(f"{option}: got name {name!r}, expected one of {', '.join(known)}{meant}")
