"""The files below a folder, in order, each once, with what could not be entered."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from .base import Unreadable


def files(root: Path, skip: Collection[Path] = ()) -> Iterator[Path | Unreadable]:
    """Regular files below `root`, or `root` itself, a folder's own ones before those of folders in it.

    Left out are hidden files and folders, the folders of `skip`, and whatever was reached before by another
    name; symbolic links are followed, one that leads back up or nowhere is unreadable.
    """
    if not root.is_dir():
        yield root if root.is_file() else Unreadable(root, "no regular file")
        return
    real = root.resolve()
    seen = {path.resolve() for path in skip}
    waiting: list[tuple[Path, tuple[Path, ...]]] = [(root, (real,))]
    while waiting:
        folder, way = waiting.pop()
        if way[-1] in seen:
            continue
        seen.add(way[-1])
        try:
            # Real names first: of a file and a link to it beside it, the file is read.
            entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            yield Unreadable(folder, f"{error.strerror or error}")
            continue
        folders: list[tuple[Path, tuple[Path, ...]]] = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            try:
                target, mode = path.resolve(strict=True), path.stat().st_mode
            except (OSError, RuntimeError) as error:  # a link to itself is a RuntimeError before Python 3.13
                yield Unreadable(path, f"{getattr(error, 'strerror', None) or error}")
                continue
            if stat.S_ISDIR(mode) and target in way:
                yield Unreadable(path, f"link to {os.readlink(path)}, back to a folder above it")
            elif stat.S_ISDIR(mode):
                folders.append((path, (*way, target)))
            elif stat.S_ISREG(mode) and target not in seen:
                seen.add(target)
                yield path
        waiting += folders[::-1]
