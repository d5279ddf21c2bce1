"""The monitor binds store and detection for one run: `log(record)` is the only call a trainer makes.

A monitoring failure never takes training down: it is counted, logged once, and shown as a `fault` event. A
monitor that is misconfigured fails in its constructor, before step 1.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from .detectors import FA_PER_10K, Detection, build
from .queries import open_run
from .records import Alarm, Applied, Event, StepRecord, Tier, TokenView
from .replay import judged
from .store import Store

_log = logging.getLogger(__name__)


class Monitor:
    """Remembers and judges every step of one run.

    Args:
        run_dir: the run's folder, `LOGDIR/<run>`.
        rank: of this process. Every rank judges the same gathered values; details are kept per rank.
        fa_per_10k: false-alarm budget of the detector, per 10,000 steps.
        config: the run's configuration as TOML, kept beside its data.
        max_steps: how many steps the run is to have, where that is known.

    Raises:
        StoreError: the folder cannot be written or belongs to another process.
        ValueError: a budget that is not positive.
    """

    def __init__(
        self,
        run_dir: Path | str,
        rank: int = 0,
        fa_per_10k: float = FA_PER_10K,
        config: str = "",
        max_steps: int | None = None,
    ) -> None:
        self.detection = Detection(build(fa_per_10k=fa_per_10k))
        self.store = Store(run_dir, rank=rank)
        self.rank = rank
        self.faults: Counter[str] = Counter()
        self.last_step = 0
        self._open = True
        if config and rank == 0:
            (Path(run_dir) / "config.toml").write_text(config)
        self.event("started", json.dumps({"max_steps": max_steps, "fa_per_10k": fa_per_10k}))

    @property
    def state(self) -> str:
        """`ok`, `alarm` or `hold`."""
        return self.detection.state

    def log(self, record: StepRecord) -> list[Alarm]:
        """Store one step and judge it; returns the alarm rows it raised. Never raises."""
        self.last_step = record.step
        alarms: list[Alarm] = []
        with self.guard("store"):
            self.store.log_step(record)
        with self.guard("detection"):
            alarms, evidence = self.detection.update(record)
            for held in evidence:
                self.store.log_evidence(held)
            for alarm in alarms:
                self.store.log_alarm(alarm)
            if alarms:
                self.store.flush()
        return alarms

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """More scalars of a step, known only after it was logged (`grad_norm`, `loss`, ...). Never raises."""
        with self.guard("store"):
            rows = [{"step": step, "rank": self.rank, "metric": k, "value": v} for k, v in metrics.items()]
            self.store.append("metrics", rows)

    def log_views(self, views: Sequence[tuple[int, TokenView]]) -> None:
        """Rollouts token by token, each with its step; after the step's own record. Never raises."""
        with self.guard("store"):
            self.store.log_views(views)

    def log_applied(self, applied: Applied) -> None:
        """Keep what an intervention did. Never raises."""
        with self.guard("store"):
            self.store.log_applied(applied)

    def event(self, name: str, detail: str = "") -> None:
        """Keep something that happened to the run. Never raises."""
        with self.guard("store"):
            self.store.log_event(Event(self.last_step, time.time(), name, detail))

    def go_on(self, step: int) -> Alarm | None:
        """Judge again what an earlier process of this run recorded up to `step`: a resumed training goes on from there.

        Returns the alarm that stands at that step, if one does. Steps recorded beyond it are taken again.

        Raises:
            RunError: the run cannot be read.
        """
        standing, self.last_step = None, step
        with closing(open_run(self.store.run_dir)) as run:
            records = (record for record in run.records() if record.step <= step)
            events = [event for event in run.events() if event.step <= step]
            for _, alarms in judged(self.detection, records, events):
                standing = next((alarm for alarm in alarms if alarm.tier is Tier.ALARM), standing)
        return standing if self.state != "ok" else None

    def mark(self, name: str) -> None:
        """An announced change (curriculum, learning-rate switch): baselines start again. Never raises."""
        with self.guard("detection"):
            self.detection.mark_event(self.last_step, name)
        self.event("mark", name)

    @contextmanager
    def guard(self, stage: str) -> Iterator[None]:
        """Count an exception of the block as a fault of `stage` and go on."""
        try:
            yield
        except Exception as error:  # the law of this module
            self.faults[stage] += 1
            if self.faults[stage] == 1:
                _log.exception("collapsewatch: %s failed at step %d; training goes on", stage, self.last_step)
                self.event("fault", f"{stage}: {type(error).__name__}: {error}")

    def state_dict(self) -> dict[str, Any]:
        """The detector's state, for a checkpoint."""
        return self.detection.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's detector state."""
        self.detection.load_state_dict(state)

    def close(self, status: str = "finished", detail: str = "") -> None:
        """End the run as `finished`, `interrupted` or `failed`; safe to call twice."""
        if not self._open:
            return
        self._open = False
        with self.guard("store"):
            self.store.flush()  # what its thread could not keep shows only then
            self.faults += Counter(store=max(self.store.dropped, sum(self.store.faults.values())))
        faults = ", ".join(f"{stage} {count}" for stage, count in sorted(self.faults.items()))
        self.event(status, detail or (f"faults: {faults}" if faults else ""))
        with self.guard("store"):
            self.store.close()
