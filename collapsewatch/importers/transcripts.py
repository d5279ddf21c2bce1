"""Transcripts: one assistant turn per JSON line: `text`, and if known `model`, `step`, `dialogue`, `stop`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

from ..plugins import UnknownPlugin
from ..records import Classified, Observation, StepRecord, Stop, Structure
from ..structure import Reason, classify
from .base import Imported, Importer, ImportFailed, number

_KNOWN = frozenset({"text", "model", "step", "turn", "dialogue", "stop"})
_LONGEST = 4_000_000  # characters of a line that are read to tell what it is
_STOPS: dict[str, Stop] = {"eos": "eos", "stop": "eos", "length": "length"}


@dataclass(frozen=True, slots=True)
class _Turn:
    model: str
    step: int | None
    dialogue: str
    cut: bool
    judged: Classified


class Transcripts(Importer):
    """Classifies every turn; each model in the file is a run. Without step numbers the run is one record."""

    source: ClassVar[str] = "transcripts"

    def sniff(self, path: Path) -> bool:
        if path.suffix != ".jsonl":
            return False
        with path.open(encoding="utf-8", errors="replace") as file:
            line = next((x for x in iter(lambda: file.readline(_LONGEST), "") if x.strip()), "")
        try:
            row = json.loads(line)
        except ValueError:
            return False
        return isinstance(row, dict) and isinstance(row.get("text"), str)

    def read(self, path: Path) -> list[Imported]:
        turns: list[_Turn] = []
        names: set[str] = set()
        with path.open(encoding="utf-8", errors="replace") as file:
            for count, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    turns.append(self._turn(row, path.stem))
                except UnknownPlugin:
                    raise  # the chat format asked for, not the line
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise ImportFailed(
                        f"{path.name}:{count}: got {line[:60]!r} ({error}), expected an object with `text`"
                    ) from error
                names |= set(row)
        if not turns:
            raise ImportFailed(f"{path.name}: got no line, expected one assistant turn per line")
        runs: dict[str, list[_Turn]] = defaultdict(list)
        for turn in turns:
            runs[turn.model].append(turn)
        unmapped = tuple(sorted(names - _KNOWN))
        return [self._run(name, own, path, unmapped) for name, own in runs.items()]

    def _turn(self, row: Any, stem: str) -> _Turn:
        stop = _STOPS.get(str(row.get("stop")), "unknown")
        step = number(row.get("step"))
        return _Turn(
            model=str(row.get("model", stem)),
            step=int(step) if isfinite(step) else None,
            dialogue=str(row.get("dialogue", "")),
            cut=stop == "length",
            judged=classify(row["text"], self.format, stop),
        )

    def _run(self, name: str, turns: Sequence[_Turn], path: Path, unmapped: tuple[str, ...]) -> Imported:
        dated = all(t.step is not None for t in turns)
        steps: dict[int, list[_Turn]] = defaultdict(list)
        for t in turns:
            steps[t.step if dated and t.step is not None else 0].append(t)
        records = tuple(StepRecord(s, 0.0, {"turns": len(steps[s])}, _shares(steps[s])) for s in sorted(steps))
        return Imported(name, self.source, path, records, unmapped, dated)


def _shares(turns: Sequence[_Turn]) -> tuple[Observation, ...]:
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
