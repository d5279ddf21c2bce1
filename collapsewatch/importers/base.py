"""What every importer does: recognise a file, and turn it into step records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

from ..records import Observation, StepRecord
from ..shares import Shares


class ImportFailed(ValueError):
    """A file that an importer recognised and could not read."""


@dataclass(frozen=True, slots=True)
class Imported:
    """One run out of a foreign log: its records in step order, and the names nobody knows here.

    `dated` is false when the log has no step numbers: then there is one record over everything, of step 0.
    `faults` says what of the file could not be read; `structure` is there when the log holds turns.
    """

    name: str
    source: str
    path: Path
    records: tuple[StepRecord, ...]
    unmapped: tuple[str, ...] = ()
    dated: bool = True
    faults: tuple[str, ...] = ()
    structure: Shares | None = None


class Importer(ABC):
    """Reads one kind of foreign log."""

    source: ClassVar[str]

    def __init__(self, format: str = "hermes") -> None:
        self.format = format  # the chat format, for those that read text

    @abstractmethod
    def sniff(self, path: Path) -> bool:
        """Is this file one of ours? Reads its beginning at most, and never raises on its contents."""

    def superseded(self, path: Path) -> bool:
        """Does another file beside it hold all of this one? Then a folder is read without it."""
        return False

    @abstractmethod
    def read(self, path: Path) -> list[Imported]:
        """The runs in the file.

        Raises:
            ImportFailed: the file is broken or holds no step of training.
        """


ALIASES: dict[str, str] = {
    "completion_length": "completions/mean_length",  # TRL before 0.16
    "clipped_ratio": "completions/clipped_ratio",
    "mean_reward": "reward",
}
_EXACT = frozenset(
    {"epoch", "entropy", "frac_reward_zero_std", "grad_norm", "kl", "learning_rate", "loss", "num_tokens"}
    | {"reward", "reward_std", "step", "step_time", "tools/call_frequency", "tools/failure_frequency"}
)
_PREFIXES = ("clip_ratio/", "completions/", "environment/", "profiling/", "rewards/", "sampling/")


def number(value: Any) -> float:
    """A number out of a log, NaN for anything else: loggers print numbers as text, and `nan` among them.

    >>> number("1.5e-6"), number(True), number("n/a")
    (1.5e-06, nan, nan)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return float("nan")
    try:
        return float(value)
    except (ValueError, OverflowError):  # an integer too large
        return float("nan")


def scalars(rows: Iterable[tuple[int, Mapping[str, Any]]]) -> tuple[tuple[StepRecord, ...], tuple[str, ...]]:
    """Records out of (step, logged values) rows, and the names without a meaning here.

    Of a step logged twice the later row counts. Values that are not finite are left out. What logs say of
    structure becomes a stream; one prompt group is assumed, because no log tells how many there were.
    """
    records: dict[int, StepRecord] = {}
    unmapped: set[str] = set()
    for step, row in rows:
        metrics: dict[str, float] = {}
        for key, raw in row.items():
            value = number(raw)
            name = ALIASES.get(key, key)
            if name not in _EXACT and not name.startswith(_PREFIXES):
                unmapped.add(key)
            if isfinite(value) and (name == key or name not in row):
                metrics[name] = value
        metrics.pop("step", None)
        records[step] = StepRecord(step, 0.0, metrics, tuple(_streams(metrics)))
    return tuple(records[s] for s in sorted(records)), tuple(sorted(unmapped))


def _streams(metrics: Mapping[str, float]) -> Iterable[Observation]:
    cut = metrics.get("completions/clipped_ratio")
    if cut is not None and 0 <= cut <= 1:
        yield Observation("truncated", cut, 1)
    calls = metrics.get("tools/call_frequency")
    if calls is not None and calls >= 0:
        # Calls per rollout: at least 1 - calls of the rollouts made none.
        yield Observation("no_call", max(0.0, 1.0 - calls), 1)
