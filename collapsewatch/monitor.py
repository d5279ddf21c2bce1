"""The monitor binds store and detection for one run: `log(record)` is the only call a trainer makes.

A monitoring failure never takes training down: it is counted, logged once, and shown as a `fault` event. A
monitor that is misconfigured fails in its constructor, before step 1.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .detectors import FA_PER_10K, Detection, build
from .losses import Losses
from .marks import RESUMED, Switches
from .queries import open_run
from .records import Alarm, Applied, Driver, Event, StepRecord, Tier, TokenView
from .replay import judged
from .store import Store

_log = logging.getLogger(__name__)
STATE_FILE = "collapsewatch.json"
"""The monitor's state in a checkpoint's folder."""
SERIES = 40  # steps between two interventions of one series, which is marked where it begins


def saved_state(folder: Path | str) -> dict[str, Any] | None:
    """The state that a monitor saved into a checkpoint's folder; None where none did.

    Raises:
        ValueError: the file is broken.
    """
    path = Path(folder) / STATE_FILE
    if not path.is_file():
        return None
    state = json.loads(path.read_text())
    if not isinstance(state, dict):
        raise ValueError(f"{path}: got {type(state).__name__}, expected what a monitor saved")
    return state


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
        self._fa_per_10k = fa_per_10k
        self.detection = self._detection()
        self.switches = Switches()
        self.losses = Losses()
        self.standing: Alarm | None = None
        """The alarm that began last, for as long as it is not over."""
        self.store = Store(run_dir, rank=rank)
        self.rank = rank
        self.faults: Counter[str] = Counter()
        self.last_step = 0
        self._applied: int | None = None  # the step of the last intervention
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
            self._stand(alarms)
            for held in evidence:
                self.store.log_evidence(held)
            for alarm in alarms:
                self.store.log_alarm(alarm)
            if alarms:
                self.store.flush()
        self.settings(record.step, record.metrics)
        self._look(record.step, record.metrics)
        return alarms

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """More scalars of a step, known only after it was logged (`grad_norm`, `loss`, ...). Never raises."""
        with self.guard("store"):
            rows = [{"step": step, "rank": self.rank, "metric": k, "value": v} for k, v in metrics.items()]
            self.store.append("metrics", rows)
        self.settings(step, metrics)
        with self.guard("scalars"):
            self.losses.add(step, metrics)

    def settings(self, step: int, values: Mapping[str, float]) -> None:
        """Mark what was switched: a learning rate off its schedule, another temperature or length. Never raises."""
        with self.guard("settings"):
            for name in self.switches.update(step, values):
                self.mark(name)

    def log_views(self, views: Sequence[tuple[int, TokenView]]) -> None:
        """Rollouts token by token, each with its step; after the step's own record. Never raises."""
        with self.guard("store"):
            self.store.log_views(views)

    def log_applied(self, applied: Applied) -> None:
        """Keep what an intervention did. Never raises."""
        with self.guard("store"):
            self.store.log_applied(applied)
        if applied.status in ("applied", "begin") and applied.step:
            again = self._applied is not None and applied.step - self._applied <= SERIES
            # What an alarm asked for is no change of plan; a rollback has ended its alarm by itself.
            if self.state != "ok" or not (applied.trigger_step or again):
                self.mark(f"intervention {applied.name}")
            self._applied = applied.step

    def event(self, name: str, detail: str = "") -> None:
        """Keep something that happened to the run. Never raises."""
        with self.guard("store"):
            self.store.log_event(Event(self.last_step, time.time(), name, detail))

    def go_on(self, step: int, state: Mapping[str, Any] | None = None) -> Alarm | None:
        """Detection as it stood at a checkpoint that was loaded; the trainer counts on from `step`.

        From the checkpoint's own `state` (see `save`): a training that is resumed, or rolled back and counts on.
        Without one, what an earlier process of this run recorded up to `step` is judged again. Steps recorded
        beyond it are taken again. Returns the alarm that stands then, if one does.

        Raises:
            RunError: the run cannot be read.
            ValueError: the state is of other detectors, or of none.
        """
        if state is not None:
            self.load_state_dict(state)
            back, self.last_step = state["step"] != step, step
            with self.guard("scalars"), closing(open_run(self.store.run_dir)) as run:
                self._remember(record for record in run.records() if record.step <= step)
            self.event("rolled_back" if back else RESUMED, str(state["step"]) if back else "checkpoint")
            return self.standing
        self.last_step, self.detection, self.standing = step, self._detection(), None
        with closing(open_run(self.store.run_dir)) as run:
            records = [record for record in run.records() if record.step <= step]
            events = [event for event in run.events() if event.step <= step]
            for _, alarms in judged(self.detection, records, events):
                self._stand(alarms)
        self._remember(records)
        self.event(RESUMED, "record")
        return self.standing

    def mark(self, name: str) -> None:
        """An announced change (curriculum, learning-rate switch): baselines start again. Never raises."""
        with self.guard("detection"):
            self.detection.mark_event(self.last_step, name)
        self.event("mark", name)

    def _remember(self, records: Iterable[StepRecord]) -> None:
        """The scalars so far, without telling again what was told."""
        self.losses = Losses()
        for record in records:
            self.losses.add(record.step, record.metrics)
            self.losses.update(record.step)

    def _look(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell of losses that scalars tell and no alarm does: content, or an accuracy that the reward masks."""
        with self.guard("scalars"):
            self.losses.add(step, metrics)
            if (found := self.losses.update(step)) is not None:
                self.event("finding", f"{found.kind} since step {found.onset}: {found.verdict}")

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

    def save(self, folder: Path | str, step: int | None = None) -> None:
        """Put the state into the folder of the checkpoint of a step, for `saved_state`; rank 0 does. Never raises."""
        self.last_step = self.last_step if step is None else step
        with self.guard("checkpoint"):
            # Whoever resumes here takes no earlier step again: what is recorded of them must be safe from a kill.
            self.store.flush(10.0)
        if self.rank:
            return
        with self.guard("checkpoint"):
            whole = Path(folder) / STATE_FILE
            part = whole.with_suffix(".part")
            part.write_text(json.dumps(self.state_dict(), allow_nan=False))
            part.replace(whole)
            self.event("checkpoint")

    def snapshot(self) -> dict[str, Any]:
        """The state as it now is, for `go_on` to go back to without a checkpoint."""
        self.event("checkpoint")
        return dict(json.loads(json.dumps(self.state_dict(), allow_nan=False)))

    def state_dict(self) -> dict[str, Any]:
        """What `go_on` needs, as plain JSON-able values."""
        standing = None if self.standing is None else asdict(self.standing)
        state = {"step": self.last_step, "detection": self.detection.state_dict(), "standing": standing}
        return state | {"switches": self.switches.state_dict(), "applied": self._applied}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue bit for bit where `state_dict` was taken; what it is worth nothing for stays as it was.

        Raises:
            ValueError: the state is of other detectors, or of none.
        """
        detection, switches, alarm = self._detection(), Switches(), None
        try:
            detection.load_state_dict(state["detection"])
            switches.load_state_dict(state["switches"])
            if (standing := state["standing"]) is not None:
                drivers = tuple(Driver(**d) for d in standing["drivers"])
                alarm = Alarm(**{**standing, "tier": Tier(standing["tier"]), "drivers": drivers})
            step, applied = int(state["step"]), state["applied"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"state: got {type(error).__name__}: {error}, expected what `save` wrote") from error
        self.detection, self.switches, self.standing = detection, switches, alarm
        self.last_step, self._applied = step, applied

    def _detection(self) -> Detection:
        return Detection(build(fa_per_10k=self._fa_per_10k))

    def _stand(self, alarms: Sequence[Alarm]) -> None:
        self.standing = next((a for a in alarms if a.tier is Tier.ALARM), self.standing)
        if self.state == "ok":
            self.standing = None

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
