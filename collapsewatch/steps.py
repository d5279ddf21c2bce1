"""One optimizer step of a TRL training: micro-batches to a record, gathered from every rank."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from accelerate.utils import gather_object

from .combine import RankMeasure, Sums, combine
from .formats.bound import BoundFormat
from .interventions.base import PromptRow, Training
from .ledger import Ledger, Seen
from .measure import measure_rank
from .monitor import Monitor
from .records import StepRecord, TokenView
from .rollouts import Rollouts
from .selftest import complaints
from .views import ViewKeeper, by_hazard

_log = logging.getLogger(__name__)


class StepMeasure:
    """Measures steps. `keep_text`: rollouts whose text is kept, the most hazardous first; `keep_tokens`: share of
    the prompts whose rollouts are kept token by token; `failures`: whether the prompts that were failed are wanted,
    `with_text` with a rollout of each.
    """

    def __init__(
        self,
        training: Training,
        chat_format: BoundFormat,
        ledger: Ledger,
        tokenizer: Any,
        monitor: Monitor,
        *,
        keep_text: int,
        keep_tokens: float,
        failures: bool,
        with_text: bool = False,
    ) -> None:
        self._training, self._bound, self._ledger, self._tokenizer = training, chat_format, ledger, tokenizer
        self._monitor, self._keep_text, self._failures = monitor, keep_text, failures
        self._decode = tokenizer.decode if with_text else None
        self._keeper = ViewKeeper(chat_format, lambda i: str(tokenizer.decode([i])), keep_tokens)
        self._views: list[TokenView] = []
        trainer, args = training.trainer, training.trainer.args
        fresh = getattr(args, "steps_per_generation", 1) <= args.gradient_accumulation_steps
        self._on_policy = getattr(trainer, "num_iterations", 1) == 1 and fresh
        self._said: set[str] = set()

    def record(self, step: int, seen: Sequence[Seen]) -> tuple[StepRecord | None, list[PromptRow]]:
        """The step on all ranks, and the prompts that any of them failed; no record where nothing was measured."""
        measured, failed, metrics = RankMeasure({}, (), (), ()), list[PromptRow](), dict[str, float]()
        with self._monitor.guard("measure"):
            if seen:
                measured, failed, metrics = self._measure(step, seen)
        gathered: list[tuple[Sums, list[PromptRow]]] = [(measured.sums, failed)]
        if self._training.ranks > 1:  # also on a rank that failed to measure: the others wait for it
            gathered = gather_object(gathered)
        ranks = [sums for sums, _ in gathered]
        record: StepRecord | None = None
        if any(ranks):
            with self._monitor.guard("measure"):
                record = combine(ranks, measured, step, time.time(), metrics)
        return record, [row for _, rows in gathered for row in rows]

    def logged(self, record: StepRecord, alarmed: bool) -> None:
        """What goes into the store beside the record: views of rollouts, and complaints, each said once."""
        views, self._views = self._views, []
        self._monitor.log_views([(record.step, view) for view in views])
        if alarmed:
            self._monitor.log_views(self._keeper.suspects())
        for name, text in complaints(record.metrics, self._on_policy).items():
            if name not in self._said:
                self._said.add(name)
                _log.warning("collapsewatch: step %d: %s", record.step, text)
                self._monitor.event("notice", f"{name}: {text}")

    def _measure(self, step: int, seen: Sequence[Seen]) -> tuple[RankMeasure, list[PromptRow], dict[str, float]]:
        """What this rank adds to the step, the prompts it failed, and its own metrics."""
        rollouts = self._ledger.rollouts(seen)
        measured = measure_rank(rollouts, self._bound)
        with self._monitor.guard("views"):
            self._views = self._keeper.take(step, rollouts, measured.rollouts, self._ledger.prompt)
        measured = self._with_text(measured, rollouts)
        failed = self._ledger.failed(rollouts, self._decode) if self._failures else []
        errors = [batch.max_error for _, batch in seen if batch is not None and math.isfinite(batch.max_error)]
        return measured, failed, {"probe/max_error": max(errors)} if errors else {}

    def _with_text(self, measured: RankMeasure, rollouts: Rollouts) -> RankMeasure:
        """The measure, with prompt and text for the most hazardous rollouts and for those kept token by token."""
        rows = list(measured.rollouts)
        viewed = {view.rollout for view in self._views}
        worst = by_hazard(rows)[: self._keep_text]
        for i in {*worst, *(i for i, row in enumerate(rows) if row.rollout in viewed)}:
            text = self._tokenizer.decode(rollouts.ids[i, : rollouts.length[i]].tolist())
            rows[i] = replace(rows[i], prompt=self._ledger.prompt(rows[i].rollout), text=text)
        return replace(measured, rollouts=tuple(rows))
