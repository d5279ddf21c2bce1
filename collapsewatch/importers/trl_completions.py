"""The rollouts that TRL writes with `log_completions`: `completions/completions_00010.parquet`, one file per step.

With W&B there is also a table of them per step, in the run's folder: `files/media/table/completions_*.table.json`.
Columns: `step`, `prompt`, `completion` (text, or messages), one per reward function, what else the reward functions
log, `advantage`; rows that somebody else writes in this form may tell `reward` itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from .base import Imported, Importer, ImportFailed
from .columns import number, whole
from .json_rows import document
from .messages import take
from .parquet import columns, rows
from .source import Source
from .turns import Place, Turns

_BEFORE, _AFTER = ("step", "prompt", "completion"), "advantage"
_TABLE = ".table.json"
_SAYING_NOTHING = ("completions", "table", "media", "files")


class TrlCompletions(Importer):
    """Classifies every completion; the files of a folder are one run.

    Without a column `reward` the reward is the sum over the reward functions, as with TRL's default weights.
    """

    source: ClassVar[str] = "trl_completions"

    def sniff(self, source: Source) -> bool:
        if source.name.endswith(_TABLE):
            return all(f'"{name}"' in source.head[:1000] for name in ("columns", *_BEFORE))
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
                for row in _table(source) if source.name.endswith(_TABLE) else rows(source):
                    rollouts += 1
                    _count(turns, row, rollouts)
            except ImportFailed as error:
                faults.append(str(error))
        if not rollouts:
            raise ImportFailed(faults[0] if faults else f"{sources[0].name}: got no completion, expected rows")
        folders = sources[0].path.resolve().parents
        name = next((folder.name for folder in folders if folder.name not in _SAYING_NOTHING), "")
        path = sources[0].path.parent if len(sources) > 1 else sources[0].path
        return [turns.imported(name, self.source, path, faults=tuple(faults))]


def _table(source: Source) -> Iterator[dict[str, Any]]:
    """The rows of a table of W&B; those without the columns of a completion are left out."""
    try:
        table, wrong = document(source)
    except ValueError as error:
        raise ImportFailed(f"{source.name}: got broken JSON ({error}), expected a table") from error
    names, data = (table.get("columns"), table.get("data")) if isinstance(table, dict) else (None, None)
    if wrong or not isinstance(names, list) or not isinstance(data, list):
        raise ImportFailed(f"{source.name}: got no whole table, expected `columns` and `data`")
    for cells in data:
        if isinstance(cells, list) and len(cells) == len(names) and set(_BEFORE) <= set(map(str, names)):
            yield dict(zip(map(str, names), cells, strict=True))


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
