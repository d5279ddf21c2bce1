"""The monitor in one actor process of verl: rows of its micro-batches to the run's record, gathered from all ranks."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..combine import RankMeasure, Sums, combine
from ..detectors import FA_PER_10K
from ..formats.bound import BoundFormat
from ..formats.detect import AUTO, bind
from ..measure import measure_rank
from ..monitor import Monitor
from ..records import StepRecord
from ..views import by_hazard
from .forward import Columns, log_probs, outcome, read_columns
from .rows import Row, read_rows, to_rollouts

KEEP_TEXT = 8


class ActorWatch:
    """Watches the updates of one FSDP engine; `run_dir` is the same on all ranks, and one they all see.

    Raises:
        ValueError: a chat format that is none, or a false-alarm budget that is none.
        StoreError: the folder cannot be written.
    """

    def __init__(self, engine: Any, run_dir: Path) -> None:
        self._engine, self._tokenizer = engine, engine.model_config.tokenizer
        self._bound: BoundFormat = bind(os.environ.get("COLLAPSEWATCH_FORMAT") or AUTO, self._tokenizer)
        self._ids = torch.as_tensor(self._bound.probe_ids.tolist())
        budget = float(os.environ.get("COLLAPSEWATCH_FA_PER_10K") or FA_PER_10K)
        self.monitor = Monitor(run_dir, dist.get_rank(), budget)
        for note in self._bound.notes:
            self.monitor.event("notice", note)
        self._rows: dict[int, Row] = {}
        self._numbered = self._groups = 0
        self.step = 0

    def guard(self, stage: str) -> AbstractContextManager[None]:
        """Our failures are counted here, and end nothing."""
        return self.monitor.guard(stage)

    def columns(self, output: Any, output_args: Mapping[str, Any], batch: Mapping[str, Any]) -> Columns | None:
        """What has to be read of a forward before the engine goes on with its logits."""
        lengths = batch["input_ids"].offsets().diff()
        return read_columns(self._engine, output, {**output_args, "collapsewatch_lengths": lengths}, self._ids)

    def take(self, columns: Columns | None, batch: Mapping[str, Any], model_output: Mapping[str, Any]) -> None:
        """Keep the rows of a micro-batch; of a row trained in several epochs the first time."""
        read = outcome(model_output) if columns is None else log_probs(columns, model_output)
        if self._engine.is_mp_src_rank_with_outputs():  # of ranks that share their rows, one
            for row in read_rows(batch, read):
                self._rows.setdefault(row.number, row)
        step = batch.get("global_steps", None)
        if isinstance(step, int):
            self.step = step - 1

    def end_step(self) -> StepRecord | None:
        """Measure and judge the update that has ended; every rank comes here, and gets the same observations."""
        self.step += 1
        rows, self._rows = list(self._rows.values()), {}
        prompts = sorted({uid for uids in _gathered({row.uid for row in rows}) for uid in uids})
        groups = {uid: self._groups + i for i, uid in enumerate(prompts)}
        measured = RankMeasure({}, (), (), ())
        with self.guard("measure"):
            if rows:
                measured = self._measure(rows, groups)
        ranks: list[Sums] = _gathered(measured.sums)
        self._groups += len(groups)
        self._numbered += max((row.number for row in rows), default=-1) + 1
        record: StepRecord | None = None
        if any(ranks):
            with self.guard("measure"):
                record = combine(ranks, measured, self.step, time.time())
        if record is not None:
            self.monitor.log(record)
        return record

    def loaded(self, checkpoint: str) -> None:
        """Go on behind the step that a checkpoint's path tells, with detection as it stood."""
        found = re.search(r"global_step_(\d+)", checkpoint)
        if not found:
            return
        self.step = int(found[1])
        told: list[Any] = [None]
        if dist.get_rank() == 0:  # the only one that is sure to see the folder
            with self.guard("resume"):
                self.monitor.go_on(self.step)
            told = [self.monitor.state_dict()]
        dist.broadcast_object_list(told)
        self.monitor.load_state_dict(told[0])

    def _measure(self, rows: list[Row], groups: Mapping[str, int]) -> RankMeasure:
        rollouts = to_rollouts(rows, groups, self._numbered, len(self._ids))
        measured = measure_rank(rollouts, self._bound)
        details = list(measured.rollouts)
        for i in by_hazard(details)[:KEEP_TEXT]:
            prompt, text = (self._tokenizer.decode(part.tolist()) for part in (rows[i].prompt, rows[i].ids))
            details[i] = replace(details[i], prompt=prompt, text=text)
        return replace(measured, rollouts=tuple(details))


def _gathered(value: Any) -> list[Any]:
    """`value` of every rank, in their order."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
