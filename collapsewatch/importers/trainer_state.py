"""`trainer_state.json`, which a Hugging Face trainer leaves in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from .base import Imported, Importer, ImportFailed, NoTraining, run_name
from .columns import whole
from .json_rows import document
from .source import Source


class TrainerState(Importer):
    """Reads the log history of a TRL run; evaluation and summary rows are left out."""

    source: ClassVar[str] = "trainer_state"

    def sniff(self, source: Source) -> bool:
        return source.suffix == ".json" and (source.stem == "trainer_state" or '"log_history"' in source.head)

    def superseded(self, path: Path) -> bool:
        """A checkpoint's log begins with that of every earlier checkpoint of its run."""
        run, step = path.parent.parent, _checkpoint(path.parent)
        if step is None:
            return False
        later = (_checkpoint(folder) for folder in run.iterdir() if (folder / path.name).is_file())
        return (run / path.name).is_file() or any(other is not None and other > step for other in later)

    def read(self, source: Source) -> list[Imported]:
        try:
            state, faults = document(source)
        except ValueError as error:
            raise ImportFailed(f"{source.name}: got broken JSON ({error}), expected a trainer state") from error
        rows = state.get("log_history") if isinstance(state, dict) else state
        if not isinstance(rows, list):
            raise ImportFailed(f"{source.name}: got no list `log_history`, expected a trainer state")
        steps = [(whole(row.get("step")), row) for row in rows if isinstance(row, dict)]
        if not any("reward" in row for _, row in steps):
            raise NoTraining(f"{source.name}: got {len(rows)} rows without `reward`, expected rows of GRPO training")
        return [self.scalars(source, steps, _name(source), faults)]


def _name(source: Source) -> str:
    """A checkpoint's parent says more than `checkpoint-200`."""
    folder = source.path.resolve().parent
    return run_name(source) if _checkpoint(folder) is None else folder.parent.name


def _checkpoint(folder: Path) -> int | None:
    """The step of a `checkpoint-N` folder."""
    name, _, step = folder.name.rpartition("-")
    return int(step) if name == "checkpoint" and step.isdecimal() else None
