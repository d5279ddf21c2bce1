"""What every importer does: recognise a file, and turn it into step records."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..records import StepRecord
from ..shares import Shares
from .columns import Columns
from .series import series
from .source import Source


class ImportFailed(ValueError):
    """A file that an importer recognised and could not read."""


class NoTraining(ImportFailed):
    """A file that an importer can read, and in it no step of training by reinforcement learning."""


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


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file or folder of which nothing could be read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Options:
    """What a user says of logs: the chat format of texts, and `names`, column to metric (`columns.CANONICAL`)."""

    format: str = "hermes"
    names: Mapping[str, str] = field(default_factory=dict)


_RANK = re.compile(r"(?<![a-z])rank[_-]?\d+[_.-]?|[_.-]?rank[_-]?\d+$", re.IGNORECASE)
_SAYING_NOTHING = re.compile(
    r"(?:grpo|train|training|trainer|run|main|console|log|logs|metrics|output|out|progress|stdout|stderr|slurm|"
    r"trainer_state|log_history|history|results|rank|\d+)(?:[_.-]?(?:log|logs|metrics|out|state|\d+))*",
    re.IGNORECASE,
)


class Importer(ABC):
    """Reads one kind of foreign log."""

    source: ClassVar[str]

    def __init__(self, options: Options = Options()) -> None:
        self.options = options

    @abstractmethod
    def sniff(self, source: Source) -> bool:
        """Is this file one of ours? Looks at its name and its head at most, and never raises on its contents."""

    def superseded(self, path: Path) -> bool:
        """Does another file beside it hold all of this one? Then a folder is read without it."""
        return False

    @abstractmethod
    def read(self, source: Source) -> list[Imported]:
        """The runs in the file.

        Raises:
            ImportFailed: the file is broken or, as `NoTraining`, holds no step of training.
        """

    def home(self, path: Path) -> Path:
        """What all files of one run have in common: its folder, say; by default the path without a rank's number."""
        return path.with_name(_RANK.sub("", path.name))

    def read_all(self, sources: Sequence[Source]) -> list[Imported]:
        """The runs in the files of one home; of those with one name (a run's ranks) the values are averaged.

        Raises:
            ImportFailed: as `read`.
        """
        return [run for source in sources for run in self.read(source)]

    def scalars(
        self,
        source: Source,
        rows: Iterable[tuple[int | None, Mapping[str, Any]]],
        name: str = "",
        faults: tuple[str, ...] = (),
    ) -> Imported:
        """The run of (step, logged values) rows; its name is the file's unless given.

        Raises:
            NoTraining: no row tells a metric of training.
        """
        found = series(rows, Columns(self.options.names))
        if not found.records:
            raise NoTraining(f"{source.name}: got no row with a metric of training, expected rows of training")
        name, told = name or run_name(source), (*faults, *source.faults, *found.faults)
        return Imported(name, self.source, source.path, found.records, found.unmapped, faults=told)


def beside_wandb(path: Path) -> bool:
    """Is it the console output that a W&B run keeps beside its own records?"""
    return path.name == "output.log" and any(path.parent.parent.glob("*.wandb"))


def run_name(source: Source) -> str:
    """What to call the run of a file: by its name, or by its folder's where half of all runs have such a file.

    >>> run_name(Source(Path("logs/seed3/train.log"))), run_name(Source(Path("logs/seed3.log.gz")))
    ('seed3', 'seed3')
    """
    stem = _RANK.sub("", source.stem)
    return source.path.resolve().parent.name if _SAYING_NOTHING.fullmatch(stem or "run") else stem
