"""Importers: one small file per foreign log, one line in `IMPORTERS`.

To add one, subclass `base.Importer` in a new file and list it here, before the more general ones: the first that
recognises a file reads it. Outside code is named `pkg.mod:Class`. Our own runs need none: `report` reads them
through the store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

from ..plugins import UnknownPlugin, resolve
from .base import Imported, Importer, ImportFailed, NoTraining, Options, Unreadable
from .joining import averaged, joined
from .source import Source
from .walk import files

IMPORTERS: dict[str, str] = {
    "trainer_state": "collapsewatch.importers.trainer_state:TrainerState",
    "transcripts": "collapsewatch.importers.transcripts:Transcripts",
    "trl_completions": "collapsewatch.importers.trl_completions:TrlCompletions",
    "messages": "collapsewatch.importers.messages:Messages",
    "step_records": "collapsewatch.importers.step_records:StepRecords",
    "verl_rollouts": "collapsewatch.importers.verl_rollouts:VerlRollouts",
    "verl_file": "collapsewatch.importers.verl_file:VerlFile",
    "tinker": "collapsewatch.importers.tinker:Tinker",
    "tensorboard": "collapsewatch.importers.tensorboard:TensorBoard",
    "wandb": "collapsewatch.importers.wandb_offline:WandbOffline",
    "wandb_csv": "collapsewatch.importers.wandb_csv:WandbCsv",
    "trackio": "collapsewatch.importers.trackio:Trackio",
    "mlflow": "collapsewatch.importers.mlflow:MlflowDatabase",
    "mlruns": "collapsewatch.importers.mlflow:MlflowFiles",
    "openrlhf": "collapsewatch.importers.openrlhf:OpenRlhf",
    "nemo_rl": "collapsewatch.importers.nemo_rl:NemoRl",
    "trl_console": "collapsewatch.importers.trl_console:TrlConsole",
    "verl_console": "collapsewatch.importers.verl_console:VerlConsole",
    "csv": "collapsewatch.importers.table_text:TextTable",
    "json": "collapsewatch.importers.table_json:JsonTable",
}

__all__ = [
    "IMPORTERS",
    "ImportFailed",
    "Imported",
    "Importer",
    "NoTraining",
    "Options",
    "Source",
    "Unreadable",
    "find",
    "runs",
]


def find(source: Source, options: Options = Options()) -> Importer | None:
    """The importer that recognises this file, or None.

    Raises:
        OSError: the file cannot be read.
    """
    for name in IMPORTERS:
        importer: Importer = resolve(IMPORTERS, name, "importer")(options)
        if importer.sniff(source):
            return importer
    return None


def runs(root: Path, options: Options = Options(), skip: Collection[Path] = ()) -> Iterator[Imported | Unreadable]:
    """Every run in the file `root`, or in the files below the folder `root` except the folders of `skip`.

    What belongs to one run is joined. A file that nobody recognises, or that holds no training, is passed over in
    a folder; named itself, the former yields nothing and the latter is unreadable. Nothing that is wrong with one
    file stops the rest.

    Raises:
        UnknownPlugin: the chat format asked for, not the file, is wrong.
    """
    homes: dict[Path, dict[tuple[str, Path], list[Path]]] = defaultdict(lambda: defaultdict(list))
    importers: dict[str, Importer] = {}
    for path in files(root, skip):
        if isinstance(path, Unreadable):
            yield path
            continue
        try:
            importer = find(Source(path), options)
            if importer is None or (path != root and importer.superseded(path)):
                continue
            home = importer.home(path)
        except Exception as error:  # whatever a foreign file makes an importer do, the other files are still read
            yield Unreadable(path, _reason(error))
            continue
        importers[importer.source] = importer
        homes[home.parent][importer.source, home].append(path)
    for folder in sorted(homes):
        found: list[Imported] = []
        for (name, _), paths in homes[folder].items():
            try:
                found += averaged(importers[name].read_all([Source(path) for path in paths]))
            except UnknownPlugin:
                raise
            except Exception as error:  # as above
                if not isinstance(error, NoTraining) or root in paths:
                    yield Unreadable(paths[0], _reason(error))
        yield from joined(found)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ImportFailed) else f"{type(error).__name__}: {error}"
