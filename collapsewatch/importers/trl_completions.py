"""The rollouts that TRL writes with `log_completions`: `completions/completions_00010.parquet`, one file per step.

Columns: `step`, `prompt`, `completion` (text, or messages), one per reward function, what else the reward functions
log, `advantage`; rows that somebody else writes in this form may tell `reward` itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from .base import Imported, Importer, ImportFailed
from .columns import number, whole
from .messages import take
from .parquet import columns, rows
from .source import Source
from .turns import Place, Turns

_BEFORE, _AFTER = ("step", "prompt", "completion"), "advantage"
_SAYING_NOTHING = "completions"


class TrlCompletions(Importer):
    """Classifies every completion; the files of a folder are one run.

    Without a column `reward` the reward is the sum over the reward functions, as with TRL's default weights.
    """

    source: ClassVar[str] = "trl_completions"

    def sniff(self, source: Source) -> bool:
        if source.suffix != ".parquet":
            return False
        names = columns(source)
        return names >= set(_BEFORE) if names else source.name.startswith("completions_")

    def home(self, path: Path) -> Path:
        return path.parent

    def read(self, source: Source) -> list[Imported]:
        return self.read_all([source])

    def read_all(self, sources: Sequence[Source]) -> list[Imported]:
        turns, faults = Turns(self.options.format), list[str]()
        rollouts = 0
        for source in sources:
            try:
                for row in rows(source):
                    rollouts += 1
                    _count(turns, row, rollouts)
            except ImportFailed as error:
                faults.append(str(error))
        if not rollouts:
            raise ImportFailed(faults[0] if faults else f"{sources[0].name}: got no completion, expected rows")
        folder = sources[0].path.resolve().parent
        name = folder.parent.name if folder.name == _SAYING_NOTHING else folder.name
        path = sources[0].path.parent if len(sources) > 1 else sources[0].path
        return [turns.imported(name, self.source, path, faults=tuple(faults))]


def _count(turns: Turns, row: Mapping[str, Any], line: int) -> None:
    completion, told = row["completion"], _rewards(row)
    place = Place(line, whole(row["step"]), 0, str(row["prompt"]))
    if isinstance(completion, list):
        take(turns, [m for m in completion if isinstance(m, dict)], place, told)
    else:
        turns.rollout(place.step, turns.add(str(completion or ""), place).attempted, told)


def _rewards(row: Mapping[str, Any]) -> dict[str, float]:
    """The mean of each reward function, and the reward; what else is logged beside them is text."""
    others = {n: row[n] for n in row if n not in (*_BEFORE, _AFTER, "reward") and isinstance(row[n], float)}
    reward = number(row["reward"]) if "reward" in row else sum(v for v in others.values() if v == v)
    known = any(v == v for v in others.values()) or "reward" in row
    return {f"rewards/{n}/mean": v for n, v in others.items()} | {"reward": reward if known else float("nan")}
