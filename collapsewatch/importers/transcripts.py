"""Transcripts: one assistant turn per JSON line.

`text`, and if known `model`, `step`, `turn` (its index in the dialogue), `dialogue`, `stop` (a finish reason).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

from ..records import Classified, Observation, StepRecord, Stop, Structure
from ..shares import Example, TurnCount, excerpt, parse_rates, tabulate
from ..structure import Reason, classify
from .base import Imported, Importer, ImportFailed, number

_KNOWN = frozenset({"text", "model", "step", "turn", "dialogue", "stop"})
_HEAD = 4_000_000  # characters that are read to tell what a file is
_STOPS: dict[str, Stop] = {
    **dict.fromkeys(("eos", "stop", "end_turn", "stop_sequence", "tool_calls", "tool_use", "function_call"), "eos"),
    **dict.fromkeys(("length", "max_tokens", "model_length"), "length"),
}
"""How serving engines and their APIs spell why a turn ended."""
_EXAMPLES, _EXCERPT = 2, 160  # of each reason; characters of each


@dataclass(frozen=True, slots=True)
class _Turn:
    line: int
    model: str
    step: int | None
    turn: int | None
    dialogue: str
    cut: bool
    judged: Classified
    excerpt: str


class Transcripts(Importer):
    """Classifies every turn; each model in the file is a run. Without step numbers the run is one record."""

    source: ClassVar[str] = "transcripts"

    def sniff(self, path: Path) -> bool:
        if path.suffix != ".jsonl":
            return False
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return any(isinstance(_row(line), dict) for line in file.read(_HEAD).split("\n"))

    def read(self, path: Path) -> list[Imported]:
        runs: dict[str, list[_Turn]] = defaultdict(list)
        names: set[str] = set()
        lines, wrong = 0, list[str]()
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            for count, line in enumerate(file, 1):
                if not line.strip():
                    continue
                lines += 1
                row = _row(line)
                if isinstance(row, str):
                    wrong.append(f"{path.name}:{count}: got {line.strip()[:60]!r} ({row})")
                    continue
                turn = self._turn(row, count, path.stem)
                runs[turn.model].append(turn)
                names |= row.keys()
        if not lines:
            raise ImportFailed(f"{path.name}: got no line, expected one assistant turn per line")
        if not runs:
            raise ImportFailed(f"{wrong[0]}, expected an object with `text`; so in all {lines} lines")
        faults = (f"{len(wrong)} of {lines} lines left out, the first {wrong[0]}",) if wrong else ()
        unmapped = tuple(sorted(names - _KNOWN))
        return [self._run(name, own, path, unmapped, faults) for name, own in runs.items()]

    def _turn(self, row: Mapping[str, Any], line: int, stem: str) -> _Turn:
        stop = _STOPS.get(str(row.get("stop")).lower(), "unknown")
        judged = classify(row["text"], self.format, stop)
        return _Turn(
            line=line,
            model=_told(row, "model", stem),
            step=_whole(row.get("step")),
            turn=_whole(row.get("turn")),
            dialogue=_told(row, "dialogue", ""),
            cut=stop == "length",
            judged=judged,
            excerpt="" if judged.structure.healthy else excerpt(row["text"], _EXCERPT),
        )

    def _run(
        self, name: str, turns: Sequence[_Turn], path: Path, unmapped: tuple[str, ...], faults: tuple[str, ...]
    ) -> Imported:
        dated = all(t.step is not None for t in turns)
        steps: dict[int, list[_Turn]] = defaultdict(list)
        for t in turns:
            steps[t.step if dated and t.step is not None else 0].append(t)
        records = tuple(StepRecord(s, 0.0, {"turns": len(steps[s])}, _rates(steps[s])) for s in sorted(steps))
        counts = [
            TurnCount(t.step if dated else None, t.turn, str(t.judged.structure), str(t.judged.reason)) for t in turns
        ]
        structure = tabulate(counts, parse_rates(t.judged for t in turns), _examples(turns))
        return Imported(name, self.source, path, records, unmapped, dated, faults, structure)


def _row(line: str) -> dict[str, Any] | str:
    """A line's object with `text`, or what is wrong with the line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return str(error)
    if not isinstance(row, dict):
        return "no object"
    return row if isinstance(row.get("text"), str) else "no `text`"


def _told(row: Mapping[str, Any], name: str, default: str) -> str:
    return default if row.get(name) is None else str(row[name])


def _whole(value: Any) -> int | None:
    found = number(value)
    return int(found) if isfinite(found) else None


def _examples(turns: Iterable[_Turn]) -> dict[str, list[Example]]:
    """The first turns of each reason that differ."""
    found: dict[str, list[Example]] = defaultdict(list)
    for t in turns:
        own = found[t.judged.reason]
        if len(own) < _EXAMPLES and t.excerpt not in [example.text for example in own]:
            own.append(Example(t.line, t.excerpt))
    return found


def _rates(turns: Sequence[_Turn]) -> tuple[Observation, ...]:
    """Outcome rates over the turns of one step; a dialogue counts as a prompt group."""
    groups = len({t.dialogue for t in turns})

    def rate(name: str, hits: Sequence[bool]) -> Observation:
        return Observation(name, sum(hits) / len(hits), groups)

    judged = [t.judged for t in turns]
    found = [
        rate("polluted", [j.structure is Structure.POLLUTED for j in judged]),
        rate("collapsed", [j.structure is Structure.COLLAPSED for j in judged]),
        rate("empty", [j.reason == Reason.EMPTY for j in judged]),
        rate("repeated", [j.reason == Reason.REPETITION for j in judged]),
        rate("truncated", [t.cut for t in turns]),
    ]
    attempted = sum(j.attempted for j in judged)
    if attempted:
        failed = attempted - sum(len(j.calls) for j in judged)
        found.append(Observation("parse_failure", max(failed, 0) / attempted, groups))
    return tuple(found)
