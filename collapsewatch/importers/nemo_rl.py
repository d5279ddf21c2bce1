"""The console of a NeMo-RL run: `==== Step 3/100 ====`, and later `Training Results:` with a value per line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from .base import Imported, Importer
from .source import CONSOLE, Source

_RESULTS = "Training Results:"
_STEP = re.compile(r"={5,} Step (\d{1,18})/\d+ ={5,}")
_VALUE = re.compile(r"^(?:\([^()]*\))?\s*• ([^:•]+): ([-+\w.]+?)s?(?: |$)")  # before it, what Ray says of the process
_NAMES = {
    "Avg Reward": "reward",
    "Avg Total Reward": "reward",  # with dynamic sampling: of all rollouts, not of those that are trained on
    "Loss": "loss",
    "Mean Generation Length": "completions/mean_length",
    "Total step time": "step_time",
}


class NemoRl(Importer):
    """Reads the results of each step; NeMo-RL counts its steps anew in every epoch, here they go on."""

    source: ClassVar[str] = "nemo_rl"

    def sniff(self, source: Source) -> bool:
        return source.suffix in CONSOLE and _RESULTS in source.head and "• Avg " in source.head

    def read(self, source: Source) -> list[Imported]:
        return [self.scalars(source, _rows(source))]


def _rows(source: Source) -> Iterator[tuple[int, dict[str, str]]]:
    step, header, row = 0, 0, dict[str, str]()
    for line in source.lines():
        if begun := _STEP.search(line):
            header = int(begun[1])
        elif _RESULTS in line:
            if row:
                yield step, row
            step, header, row = max(step + 1, header), 0, {}
        elif step and (told := _VALUE.match(line)) and told[1] in _NAMES:
            row[_NAMES[told[1]]] = told[2]
    if row:
        yield step, row
