"""One run of the grid: trained, or gone on with, and what came of it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from math import nan
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from grid import WINDOW, Cell

from collapsewatch.queries import RunError, open_run
from collapsewatch.trainer.config import from_mapping
from collapsewatch.trainer.resuming import CHECKPOINTS, whole_checkpoints
from collapsewatch.trainer.train import train

ALIVE = 0.8
"""Share of its best reward that a run alive has at the end. Source: the project's bar for triggered supervision."""
EVALUATED = {"held_out": "eval", "format_ood": "eval/format_ood", "content_ood": "eval/content_ood"}


@dataclass(frozen=True)
class Row:
    """What came of one run. Rewards and parse rate are means over `WINDOW` steps, the best over any such window.

    `held_out`, `format_ood`, `content_ood`: rewards on held-out tasks, as trained, in another call format and with
    other tools: the mean of the last two evaluations less the one before training.
    """

    cell: str
    arm: str
    schedule: str
    rate: float
    seed: int
    final: float
    best: float
    parse_rate: float
    alive: float
    supervised: float
    held_out: float
    format_ood: float
    content_ood: float

    @property
    def run(self) -> str:
        """Name of its run."""
        return run_name(self.cell, self.seed)


MEASURED = [field.name for field in fields(Row) if field.name not in ("cell", "arm", "schedule", "rate", "seed")]


def finish(cell: Cell, seed: int, logdir: Path, changes: Mapping[str, Any]) -> float:
    """Train one run unless it stands finished, from its last checkpoint where it has one; returns the seconds."""
    name, start = run_name(cell.name, seed), time.perf_counter()
    folder = logdir / name
    if finished(folder):
        return 0.0
    config = from_mapping({**cell.knobs(seed), "name": name, "logdir": str(logdir), **changes}, name)
    resume = bool(whole_checkpoints(folder, config.intervention != "none"))
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    train(config, resume=resume)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return time.perf_counter() - start


def run_name(cell: str, seed: int) -> str:
    """Name of a run's folder, by its cell's."""
    return f"{cell}-{seed}"


def finished(folder: Path) -> bool:
    """Whether the run stands, trained to its end."""
    try:
        with closing(open_run(folder)) as run:
            return run.status() == "finished"
    except RunError:
        return False


def row(cell: Cell, seed: int, logdir: Path) -> Row:
    """What a finished run left."""
    with closing(open_run(logdir / run_name(cell.name, seed))) as run:
        metrics = [record.metrics for record in run.records()]
        evaluated = {key: run.series(f"{name}/reward").mean for key, name in EVALUATED.items()}
        supervised = run.series("supervised_steps").max
    window = min(WINDOW, len(metrics))
    rewards = np.array([values["reward"] for values in metrics])
    smooth = np.convolve(rewards, np.ones(window) / window, "valid")
    parsed = [values["parse_rate"] for values in metrics[-window:] if "parse_rate" in values]
    return Row(
        cell.name,
        cell.arm,
        cell.schedule,
        cell.rate,
        seed,
        float(smooth[-1]),
        float(smooth.max()),
        float(np.mean(parsed)) if parsed else 0.0,
        float(smooth[-1] >= ALIVE * smooth.max() > 0),
        supervised[-1] if supervised else 0.0,
        **{key: float(np.mean(values[-2:])) - values[0] if values else nan for key, values in evaluated.items()},
    )
