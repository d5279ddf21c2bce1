"""Importers: one small file per foreign log, one line in `IMPORTERS`.

To add one, subclass `base.Importer` in a new file and list it here; outside code is named `pkg.mod:Class`.
Our own runs need none: `report` reads them through the store.
"""

from __future__ import annotations

from pathlib import Path

from ..plugins import resolve
from .base import Imported, Importer, ImportFailed

IMPORTERS: dict[str, str] = {
    "trainer_state": "collapsewatch.importers.trainer_state:TrainerState",
    "transcripts": "collapsewatch.importers.transcripts:Transcripts",
    "trl_console": "collapsewatch.importers.trl_console:TrlConsole",
}

__all__ = ["IMPORTERS", "ImportFailed", "Imported", "Importer", "find"]


def find(path: Path, format: str = "hermes") -> Importer | None:
    """The importer that recognises this file, or None; `format` is the chat format of texts in it."""
    for name in IMPORTERS:
        importer: Importer = resolve(IMPORTERS, name, "importer")(format)
        if importer.sniff(path):
            return importer
    return None
