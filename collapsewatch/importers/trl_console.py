"""The console output of a TRL run: one Python dict per logged step, between progress bars and warnings."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from .base import Imported, Importer, ImportFailed, Options, beside_wandb
from .columns import Columns, whole
from .source import CONSOLE, Source

_ROW = re.compile(r"\{'[^{}\n]*\}")
_BAR = re.compile(r"(?<![\w/.])(\d+)/(\d+) \[")
_NOT_LITERAL = re.compile(r"(?<=: )(-?(?:nan|inf))(?=[,}])")
_WRAPPED = re.compile(r"(?:np\.\w+|tensor)\(([^(),]*)[^()]*\)")
_KEY = re.compile(r"'([^'\n]+)': ")
_SCORES = frozenset({"reward", "accuracy"})
_KINDS = 1000  # dicts of different keys; what prints more is no trainer
_BARS = 1000  # progress bars of different lengths; what draws more is no progress bar


class TrlConsole(Importer):
    """Reads the dict lines; the step is the row's own, else its progress bar's, else the row's number.

    A trainer redraws its bar whenever it logs, so the bars drawn twice are the logged steps; the place of a
    dict among the bars says little, because standard output is buffered and standard error is not.
    """

    source: ClassVar[str] = "trl_console"

    def sniff(self, source: Source) -> bool:
        is_step = _Steps(self.options)
        return source.suffix in CONSOLE and any(is_step(m[0]) for m in _ROW.finditer(source.head))

    def superseded(self, path: Path) -> bool:
        return beside_wandb(path)

    def read(self, source: Source) -> list[Imported]:
        told, rows, bars, is_step = 0, list[dict[str, Any]](), dict[str, _Bar](), _Steps(self.options)
        for raw in source.raw_lines():
            if b"{'" not in raw and b" [" not in raw:
                continue
            line = raw.decode("utf-8", "replace")
            steps = [m[0] for m in _ROW.finditer(line) if is_step(m[0])]
            told += len(steps)
            rows += filter(None, map(_parse, steps))
            for done, total in _BAR.findall(line):
                if total in bars or len(bars) < _BARS:
                    bars.setdefault(total, _Bar()).draw(int(done))
        if not rows:
            raise ImportFailed(f"{source.name}: got {told} broken dict lines, expected readable ones of TRL")
        drawn = max(bars.values(), key=lambda bar: bar.drawn, default=_Bar()).redrawn
        if len(drawn) < told or len(rows) < told:
            drawn = list(range(1, told + 1))
        own = [is_step.number(row) for row in rows]
        return [self.scalars(source, [(s if s is not None else drawn[i], rows[i]) for i, s in enumerate(own)])]


class _Bar:
    """The bars of one length: how often they were drawn, and the steps at which twice or more in a row."""

    def __init__(self) -> None:
        self.drawn, self.redrawn = 0, list[int]()
        self._done, self._times = -1, 0

    def draw(self, done: int) -> None:
        self._times = self._times + 1 if done == self._done else 1
        self._done = done
        self.drawn += 1
        if self._times == 2 and done > 0:
            self.redrawn.append(done)


class _Steps:
    """Tells a row of training from an evaluation's (`eval_reward`), from the last summary, and from any other dict."""

    def __init__(self, options: Options) -> None:
        self._columns = Columns(options.names)
        self._steps: dict[tuple[str, ...], bool] = {}

    def __call__(self, row: str) -> bool:
        names = tuple(_KEY.findall(row))
        if names not in self._steps:
            if len(self._steps) >= _KINDS:
                self._steps.clear()
            self._steps[names] = not _SCORES.isdisjoint(self._columns.known(names))
        return self._steps[names]

    def number(self, row: Mapping[str, Any]) -> int | None:
        """The step that a row says it is of."""
        column = self._columns.step(row)
        return whole(row[column]) if column else None


def _parse(row: str) -> dict[str, Any] | None:
    try:
        found = ast.literal_eval(_NOT_LITERAL.sub(r"'\1'", _WRAPPED.sub(r"\1", row)))
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # what the compiler makes of nonsense
        return None
    return found if isinstance(found, dict) else None
