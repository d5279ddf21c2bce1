"""The supervisor: acts or switches as the schedule says, and measures what it changed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from .interventions import INTERVENTIONS
from .interventions.base import FREE, Guide, Intervention, NotApplicable, PromptRow, Training
from .plugins import resolve
from .records import Alarm, Applied, Driver, StepRecord, Tier
from .schedules import SCHEDULES, Schedule, Triggered

_log = logging.getLogger(__name__)
AGAIN = 10  # steps from a switch that failed to the next try


class Supervisor:
    """Runs one intervention under one schedule; `alarm` is the last one that began.

    Raises:
        ValueError: a schedule that the intervention makes no sense under.
    """

    def __init__(self, intervention: Intervention, schedule: Schedule | None = None) -> None:
        self.intervention, self.schedule = intervention, schedule or Triggered()
        if self.schedule.name not in intervention.schedules:
            raise ValueError(
                f"intervention {intervention.name}: got schedule {self.schedule.name!r}, "
                f"expected one of {', '.join(intervention.schedules)}"
            )
        self.alarm: Alarm | None = None
        self.on = False
        self.supervised = 0
        """Optimizer steps taken under supervision: supervised updates, and steps with a standing intervention on."""
        self._last: int | None = None  # the step of the last act or switch
        self._retry = 0  # no switch is tried before this step
        self._before: dict[str, float] = {}  # levels before the act, until its effect is measured
        self._began: dict[str, float] = {}  # the same, until a standing one is switched off
        self._pending = False
        self._resumed = False

    def start(self, step: int, training: Training) -> Iterator[Applied]:
        """As a training begins, or goes on at `step`: what is to be done before its next step."""
        if step == 0:
            self.intervention.healthy(0, training)
        if step == 0 or (self.intervention.standing and not self._resumed):
            yield from self._decide(StepRecord(step, 0.0), False, training)

    def step(
        self,
        record: StepRecord,
        alarms: Sequence[Alarm],
        state: str,
        failed: Sequence[PromptRow],
        training: Training,
    ) -> Iterator[Applied]:
        """One step of the closed loop: the rows to log about what was done and what the last act changed."""
        self.supervised += self.on
        if self._pending:
            self._pending = False
            yield self._row(
                record.step, "effect", {"applied_step": self._last, "streams": _changed(self._before, record)}
            )
        self.alarm = next((alarm for alarm in alarms if alarm.tier is Tier.ALARM), self.alarm)
        alarmed = state in (Tier.ALARM, Tier.HOLD) and self.alarm is not None
        training = replace(training, onset=self.alarm.onset_step if alarmed and self.alarm else None)
        self.intervention.observe(record.step, failed, training)
        if not alarmed:
            self.intervention.healthy(record.step, training)
        yield from self._decide(record, alarmed, training)

    def guides(self, rows: Sequence[PromptRow], generations: int, first: int = 0) -> list[Guide]:
        """How each rollout of a generation batch is to be sampled; `first` is the number of its first among all."""
        if not self.on:
            return [FREE] * len(rows)
        return [self.intervention.guide(row, (first + i) % generations) for i, row in enumerate(rows)]

    def metrics(self) -> dict[str, float]:
        """What is kept at every step: `supervised_steps` so far, and the intervention's own."""
        return {"supervised_steps": float(self.supervised), **self.intervention.metrics()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: plain values, and tensors of the intervention."""
        kept = {name: getattr(self, name) for name in _KEPT}
        alarm = None if self.alarm is None else asdict(self.alarm)
        own = {**kept, "name": self.intervention.name, "schedule": self.schedule.name, "alarm": alarm}
        # JSON makes plain values of ours, such as streams that are named by an enumeration's members.
        return {**json.loads(json.dumps(own)), "intervention": self.intervention.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], training: Training) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the state is of another intervention or schedule.
        """
        named, own = (state["name"], state["schedule"]), (self.intervention.name, self.schedule.name)
        if named != own:
            raise ValueError(f"supervisor: got the state of {' '.join(named)}, expected {' '.join(own)}")
        self.intervention.load_state_dict(state["intervention"], training)
        self._resumed = True
        for name in _KEPT:
            setattr(self, name, state[name])
        if (alarm := state["alarm"]) is not None:
            drivers = tuple(Driver(**driver) for driver in alarm["drivers"])
            self.alarm = Alarm(**{**alarm, "tier": Tier(alarm["tier"]), "drivers": drivers})

    def _decide(self, record: StepRecord, alarmed: bool, training: Training) -> Iterator[Applied]:
        step, levels = record.step, self._levels(record, alarmed)
        act = self.intervention
        if not act.standing:
            if self.schedule.due(step, alarmed, self._last):
                yield from self._act("applied", act.apply, step, levels, training)
        elif self.schedule.on(step, alarmed) != self.on and step >= self._retry:
            if not self.on:
                yield from self._act("begin", act.begin, step, levels, training)
            else:
                began, changed = self._last, _changed(self._began, record)
                yield from self._act("end", act.end, step, levels, training, began=began, streams=changed)

    def _act(
        self,
        done: str,
        hook: Callable[[int, Training], dict[str, Any]],
        step: int,
        levels: dict[str, float],
        training: Training,
        **more: Any,
    ) -> Iterator[Applied]:
        """Call a hook: a row of what it did, and of each problem on the side."""
        self._last = step
        try:
            status, detail = done, hook(step, training)
        except NotApplicable as reason:
            status, detail = "skipped", {"reason": str(reason)}
        except Exception as error:
            if training.ranks > 1:  # the other ranks would wait for this one for ever: an end is better
                raise
            _log.exception("collapsewatch: intervention %s failed at step %d", self.intervention.name, step)
            status, detail = "failed", {"reason": f"{type(error).__name__}: {error}"}
        self._retry = 0 if status == done else step + AGAIN
        if status == done:
            self.supervised += int(detail.get("updates", 0))
            if done == "end":
                self.on = False
            else:
                self.on = done == "begin"
                self._before, self._began, self._pending = levels, levels, True
                more = {"before": levels}
            detail = {**detail, **more}
        yield self._row(step, status, detail)
        problems, self.intervention.problems = self.intervention.problems, []
        for status, detail in problems:
            yield self._row(step, status, detail)

    def _levels(self, record: StepRecord, alarmed: bool) -> dict[str, float]:
        """The streams that drove the alarm, all of them without one, with `parse_failure` and the reward."""
        drivers = {driver.stream for driver in self.alarm.drivers} if alarmed and self.alarm is not None else None
        wanted = None if drivers is None else {"parse_failure", *drivers}
        levels = {o.stream: o.value for o in record.observations if wanted is None or o.stream in wanted}
        if "reward" in record.metrics or levels:
            levels["reward"] = record.metrics.get("reward", float("nan"))
        return levels

    def _row(self, step: int, status: str, detail: dict[str, Any]) -> Applied:
        trigger = self.alarm.step if self.alarm is not None and self.schedule.name == "triggered" else 0
        return Applied(step, self.intervention.name, self.schedule.name, trigger, status, detail)


def supervise(intervention: str | Intervention | None, schedule: str | Schedule | None) -> Supervisor | None:
    """A supervisor of these, by name or as they are; without a schedule, under the intervention's usual one."""
    if intervention is None:
        return None
    act: Intervention = (
        resolve(INTERVENTIONS, intervention, "intervention")() if isinstance(intervention, str) else intervention
    )
    when = act.schedules[0] if schedule is None else schedule
    return Supervisor(act, resolve(SCHEDULES, when, "schedule")() if isinstance(when, str) else when)


_KEPT = ("on", "supervised", "_last", "_retry", "_before", "_began", "_pending")


def _changed(before: Mapping[str, float], record: StepRecord) -> dict[str, dict[str, float | None]]:
    """Each stream's level before and now; before None where there was no step before."""
    now = {o.stream: o.value for o in record.observations}
    now["reward"] = record.metrics.get("reward", float("nan"))
    return {name: {"before": before.get(name), "after": now.get(name)} for name in before or now}
