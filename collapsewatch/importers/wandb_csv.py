"""What W&B exports of a chart: a CSV with a column `RUN - METRIC` per run, beside `__MIN` and `__MAX` of it."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from .base import Imported, Importer, ImportFailed, NoTraining
from .columns import Columns, whole
from .source import Source

_BETWEEN = " - "
_RANGE = ("__MIN", "__MAX")
_TIMES = ("relative time", "wall time", "_timestamp", "timestamp")  # what the x axis may show instead of a step


class WandbCsv(Importer):
    """Reads the charts of a folder together: of a run each has one metric, and only together they tell it."""

    source: ClassVar[str] = "wandb_csv"

    def sniff(self, source: Source) -> bool:
        if source.suffix != ".csv":
            return False
        x, *others = _cells(source.head.partition("\n")[0].rstrip("\r")) or [""]
        charted = [name for name in others if _BETWEEN in name]
        axis = Columns().step([x]) or x.lower().startswith(_TIMES)
        return bool(axis and charted) and (charted == others or any(name.endswith(_RANGE) for name in charted))

    def home(self, path: Path) -> Path:
        return path.parent

    def read(self, source: Source) -> list[Imported]:
        return self.read_all([source])

    def read_all(self, sources: Sequence[Source]) -> list[Imported]:
        runs: dict[str, dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
        faults: list[str] = []
        for source in sources:
            lost = 0
            lines = source.lines()
            header = _cells(next(lines, ""))
            charted = [(i, *name.rpartition(_BETWEEN)[::2]) for i, name in enumerate(header)]
            charted = [(i, run, metric) for i, run, metric in charted if run and not metric.endswith(_RANGE)]
            steps = Columns().step(header[:1])
            for row, line in enumerate(filter(str.strip, lines), 1):
                cells = _cells(line)
                step = whole(cells[0]) if cells and steps else row
                if len(cells) < len(header) or step is None:
                    lost += 1
                    continue
                for i, run, metric in charted:
                    if cells[i]:
                        runs[run][step][metric] = cells[i]
            faults += [f"{lost} rows of {source.name} left out: without a step, or cut"] * bool(lost)
        faults += (fault for source in sources[1:] for fault in source.faults)  # the first one's own are told anyway
        if not runs:
            raise ImportFailed(f"{sources[0].name}: got no value, expected columns named RUN{_BETWEEN}METRIC")
        found: list[Imported] = []
        for name, rows in sorted(runs.items()):
            try:
                found.append(self.scalars(sources[0], sorted(rows.items()), name, tuple(faults)))
            except NoTraining:  # this run's charts show the loss alone, say
                continue
        if not found:
            raise NoTraining(f"{sources[0].name}: got no chart of a metric of training, expected one")
        return found


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line.replace("\0", "")]), [])
    except csv.Error:
        return []
