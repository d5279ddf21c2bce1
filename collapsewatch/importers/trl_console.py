"""The console output of a TRL run: one Python dict per logged step, between progress bars and warnings."""

from __future__ import annotations

import ast
import re
from collections import Counter
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

from .base import Imported, Importer, ImportFailed, number, scalars

_SUFFIXES = (".log", ".txt", ".out", "")
_HEAD = 4_000_000  # characters: model loading may print a lot before the first step
# A dict of one line, or a progress bar; tqdm glues many bars to one line with carriage returns.
_PARTS = re.compile(r"(?P<row>\{'[^{}\n]*\})|(?<![\w/.])(?P<done>\d+)/(?P<total>\d+) \[")
_NOT_LITERAL = re.compile(r"(?<=: )(-?(?:nan|inf))(?=[,}])")
_NUMPY = re.compile(r"np\.float\d+\(([^()]*)\)")


class TrlConsole(Importer):
    """Reads the dict lines; the step is the row's own, else its progress bar's, else the row's number.

    A trainer redraws its bar whenever it logs, so the bars drawn twice are the logged steps; the place of a
    dict among the bars says little, because standard output is buffered and standard error is not.
    """

    source: ClassVar[str] = "trl_console"

    def sniff(self, path: Path) -> bool:
        if path.suffix not in _SUFFIXES:
            return False
        with path.open(encoding="utf-8", errors="replace") as file:
            head = file.read(_HEAD)
        return any(_is_step(m.group("row")) for m in _PARTS.finditer(head) if m.group("row"))

    def read(self, path: Path) -> list[Imported]:
        parts = list(_PARTS.finditer(path.read_text(encoding="utf-8", errors="replace")))
        told = [m.group("row") for m in parts if m.group("row") and _is_step(m.group("row"))]
        rows = [row for row in map(_parse, told) if row is not None]
        if not rows:
            raise ImportFailed(f"{path.name}: got {len(told)} broken dict lines, expected readable ones of TRL")
        steps = _redrawn([(m.group("done"), m.group("total")) for m in parts if m.group("total")])
        if len(steps) < len(told) or len(rows) < len(told):
            steps = list(range(1, len(told) + 1))
        own = [number(row.get("step")) for row in rows]
        numbered = [
            (int(s) if isfinite(s) else steps[i], row) for i, (s, row) in enumerate(zip(own, rows, strict=True))
        ]
        records, unmapped = scalars(numbered)
        return [Imported(path.stem, self.source, path, records, unmapped)]


def _redrawn(bars: list[tuple[str, str]]) -> list[int]:
    """The steps at which the training's bar, the one drawn most often, was drawn twice or more in a row."""
    totals = Counter(total for _, total in bars)
    longest = max(totals, key=lambda t: totals[t], default="")
    runs = [(int(done), len(list(same))) for done, same in groupby(d for d, total in bars if total == longest)]
    return [done for done, times in runs if times > 1 and done > 0]


def _is_step(row: str) -> bool:
    """Training, not evaluation (`eval_reward`) and not the last summary."""
    return "'reward':" in row


def _parse(row: str) -> dict[str, Any] | None:
    try:
        found = ast.literal_eval(_NOT_LITERAL.sub(r"'\1'", _NUMPY.sub(r"\1", row)))
    except (ValueError, SyntaxError):
        return None
    return found if isinstance(found, dict) else None
