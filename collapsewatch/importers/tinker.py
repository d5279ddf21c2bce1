"""`metrics.jsonl` of tinker-cookbook: `{"step": 3, "env/all/reward/total": 0.4, ...}`, one step per line."""

from __future__ import annotations

from typing import Any, ClassVar

from .base import Imported, Importer, run_name
from .columns import Columns, whole
from .json_rows import objects
from .source import JSON_LINES, Source

_OF_ALL, _OF_SOME = "env/all/", "env/"
_MIXED = "env/all/by_group/frac_mixed"
_OURS = ("progress/batch", "optim/lr", "loss:sum", "clock_cycle:unique")  # the last two are the service's own


class Tinker(Importer):
    """Reads the values over all environments; a group in which rewards differ has a gradient, any other has none."""

    source: ClassVar[str] = "tinker"

    def sniff(self, source: Source) -> bool:
        rows = source.head_rows
        names = set().union(*rows) if source.suffix in JSON_LINES else set()
        ours = any(name.startswith(_OF_ALL) or name in _OURS for name in names)
        return "step" in names and ours and bool(Columns(self.options.names).known(names))

    def read(self, source: Source) -> list[Imported]:
        rows = ((whole(row.get("step")), _values(row)) for row in objects(source))
        return [self.scalars(source, rows, run_name(source))]


def _values(row: dict[str, Any]) -> dict[str, Any]:
    kept = {n: v for n, v in row.items() if n.startswith(_OF_ALL) or not n.startswith(_OF_SOME)}
    mixed = kept.pop(_MIXED, None)
    return kept | ({"frac_reward_zero_std": 1 - mixed} if isinstance(mixed, float) else {})
