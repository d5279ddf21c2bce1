"""The console of an OpenRLHF run: `Global step 12: {'reward': 0.4, ...}`, between what Ray and vLLM print."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from .base import Imported, Importer
from .source import CONSOLE, Source

# OpenRLHF logs a Python dict of floats; one of tensors has their brackets.
_STEP = re.compile(r"Global step (\d{1,18}): \{([^}\n]*)\}")
_VALUE = re.compile(r"'([^']+)': (?:tensor\()?([-+\w.]+)")


class OpenRlhf(Importer):
    """Reads one row per global step; evaluations are printed apart and left out."""

    source: ClassVar[str] = "openrlhf"

    def sniff(self, source: Source) -> bool:
        return source.suffix in CONSOLE and _STEP.search(source.head) is not None

    def read(self, source: Source) -> list[Imported]:
        return [self.scalars(source, _rows(source))]


def _rows(source: Source) -> Iterator[tuple[int, dict[str, str]]]:
    for line in source.raw_lines(re.compile(rb"Global step ")):
        for step, row in _STEP.findall(line.decode("utf-8", "replace")):
            yield int(step), dict(_VALUE.findall(row))
