"""What verl dumps of its rollouts: a folder (`rollout_data_dir`) with one `<step>.jsonl` per step.

A line is a rollout: `input`, `output`, `score`, `step` and whatever the reward function adds. `output` holds all
turns of the dialogue, and between them what the tools answered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from .base import Imported, Importer, ImportFailed
from .columns import COMMON, Columns, number, whole
from .source import JSON_LINES, Source
from .transcripts import Wrong, object_with
from .turns import Place, Turns

_KNOWN = frozenset({"input", "output", "gts", "gt", "ground_truth", "score", "step"})
# Control tokens may have been skipped when the ids were decoded.
_ANSWER = re.compile(r"(?:<\|im_end\|>)?\s*(?:<\|im_start\|>)?(?:user|tool)\n\s*(?=<tool_response>)")
_AGAIN = re.compile(r"</tool_response>\s*(?:<\|im_end\|>)?\s*(?:<\|im_start\|>)?assistant\n")


class VerlRollouts(Importer):
    """Classifies every turn of every rollout; the dumps of one folder are one run, the prompts its groups."""

    source: ClassVar[str] = "verl_rollouts"

    def sniff(self, source: Source) -> bool:
        return source.suffix in JSON_LINES and any(
            isinstance(row.get("output"), str) and isinstance(row.get("input"), str) and "score" in row
            for row in source.head_rows
        )

    def home(self, path: Path) -> Path:
        return path.parent if _step(path) is not None else path

    def read(self, source: Source) -> list[Imported]:
        return self.read_all([source])

    def read_all(self, sources: Sequence[Source]) -> list[Imported]:
        turns, columns, faults = Turns(self.options.format), Columns(self.options.names), list[str]()
        rollouts = 0
        for source in sorted(sources, key=lambda source: _step(source.path) or 0):
            lines, wrong = 0, Wrong(source)
            for lines, line in enumerate(source.lines(), 1):
                row = object_with("output", line)
                if not isinstance(row, str):
                    step = whole(row.get("step"))
                    _take(turns, row, _step(source.path) if step is None else step, lines, columns)
                    rollouts += 1
                elif line.strip():
                    wrong.add(lines, line, row)
            faults += wrong.faults(lines)
        first = sources[0]
        if not rollouts:
            raise ImportFailed(f"{first.name}: got no rollout with `output`, expected one per line")
        name = self.home(first.path).resolve().name if len(sources) > 1 else first.path.resolve().parent.name
        return [turns.imported(name, self.source, self.home(first.path), columns.unmapped(), tuple(faults))]


def _take(turns: Turns, row: Mapping[str, Any], step: int | None, line: int, columns: Columns) -> None:
    attempted = 0
    for turn, text in enumerate(turns_of(row["output"])):
        attempted += turns.add(text, Place(line, step, turn, str(row.get("input")))).attempted
    told = {"reward": number(row.get("score"))}
    for column in row.keys() - _KNOWN:
        meaning = columns[column]
        if meaning.known and meaning.name and meaning.name not in COMMON:
            value = row[column]
            told.setdefault(meaning.name, float(value) if isinstance(value, bool) else number(value))
    turns.rollout(step, attempted, told)


def turns_of(output: str) -> Iterator[str]:
    """The assistant's turns: what stands between the tools' answers."""
    begin = 0
    while (answer := _ANSWER.search(output, begin)) and (again := _AGAIN.search(output, answer.end())):
        yield output[begin : answer.start()]
        begin = again.end()
    yield output[begin : answer.start()] if answer else output[begin:]


def _step(path: Path) -> int | None:
    """The step that a dump is named by, also with compression's suffix."""
    digits = re.match(r"(?:step[_-]?)?(\d{1,18})\.", path.name)
    return int(digits[1]) if digits else None
