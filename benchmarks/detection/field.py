"""The runs of a split, what the other methods see of them, and the peers run over that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import series
from plan import KINDS, Plan, plan
from score import Truth, score
from simulate import Run, simulate

ALLOWED = 1.0
"""False alarms per 10,000 steps at which the thresholds of all other methods are set, on the training runs."""
PEERS = {
    "adwin": "river",
    "page_hinkley": "river",
    "rlwatch": "rlwatch",
    "rldoctor": "rldoctor",
    "ruptures": "ruptures",
}
_PEER = Path(__file__).with_name("peer.py")


@dataclass(frozen=True)
class Field:
    """One split: per run its truth and its series; the run itself is simulated again when it is needed."""

    truths: list[Truth]
    series: list[series.Series]

    def runs(self) -> Iterator[Run]:
        for truth in self.truths:
            yield simulate(truth.plan)


def plans(split: str, healthy: int, each: int) -> Iterator[Plan]:
    """The plans of a split; a smaller split is a part of the larger one."""
    for k, kind in enumerate(KINDS):
        for i in range(healthy if kind == "healthy" else each):
            yield plan(split, 1000 * k + i, kind)


def make(split: str, healthy: int, each: int) -> Field:
    """Simulate a split."""
    runs = (simulate(p) for p in plans(split, healthy, each))
    both = [(Truth.of(run.plan, run.steps), series.of(run)) for run in runs]
    return Field([t for t, _ in both], [s for _, s in both])


def part(whole: Field, healthy: int = 30, each: int = 4) -> Field:
    """The first runs of each kind: peers are slow, and need fewer runs to be told apart."""
    last = {kind: healthy if kind == "healthy" else each for kind in KINDS}
    kept = [i for i, t in enumerate(whole.truths) if t.plan.index % 1000 < last[t.plan.kind]]
    return Field([whole.truths[i] for i in kept], [whole.series[i] for i in kept])


def peers(folder: Path | None, train: Field, data: Field) -> dict[str, Any]:
    """Each peer's rows at its default and at the setting that training runs call for; 'not installed' without it."""
    out: dict[str, Any] = {}
    train, data = part(train), part(data)
    with tempfile.TemporaryDirectory() as scratch:
        files = {"train": Path(scratch) / "train.npz", "data": Path(scratch) / "data.npz"}
        for name, own in (("train", train), ("data", data)):
            np.savez(files[name], **series.packed(own.series))
        for name, package in PEERS.items():
            home = folder / package if folder else Path("nowhere")
            out[name] = _one(name, home.resolve(), train, data, files) if home.is_dir() else "not installed"
    return out


def _one(name: str, home: Path, train: Field, data: Field, files: dict[str, Path]) -> dict[str, Any]:
    trained = {label: score(train.truths, told) for label, told in _told(name, home, files["train"]).items()}
    chosen = {}
    for which in dict.fromkeys(label.split()[0] for label in trained):
        own = {label: row for label, row in trained.items() if label.split()[0] == which}
        meets = [label for label, row in own.items() if row["fa_per_10k"] <= ALLOWED]
        strict = meets or [min(own, key=lambda label: own[label]["fa_per_10k"])]
        chosen[max(strict, key=lambda label: own[label]["early_recall"])] = bool(meets)
    wanted = [label for label in trained if label in chosen or label.endswith("default")]
    told = _told(name, home, files["data"], wanted)
    return {label: score(data.truths, told[label]) | {"tuned": label in chosen} for label in wanted}


def _told(name: str, home: Path, file: Path, wanted: list[str] | None = None) -> dict[str, list[int]]:
    """What a peer says, from a process that sees its own packages only."""
    command = [sys.executable, str(_PEER), name, str(file), *(wanted or [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(home)})
    if done.returncode:
        raise SystemExit(f"{name}: exit {done.returncode}")
    told: dict[str, list[int]] = json.loads(done.stdout)
    return told
