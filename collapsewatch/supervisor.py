"""The supervisor: when the alarm stands, start the intervention, and measure what it changed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from .interventions.base import Intervention, NotApplicable, PromptRow, Training
from .records import Alarm, Applied, StepRecord, Tier

_log = logging.getLogger(__name__)


class Supervisor:
    """Starts `intervention` on an alarm, and again every `cooldown` steps for as long as the alarm holds.

    Never blind for longer than 10 steps, by default: in a simulated closed loop a cool-down of 10 cost 3
    broken steps a run, one of 50 cost 53. Hysteresis is the alarm's own: it clears after good steps.
    `alarm` is the last one; a training that is resumed during an alarm begins with it.
    """

    schedule = "triggered"

    def __init__(self, intervention: Intervention, cooldown: int = 10) -> None:
        if cooldown < 1:
            raise ValueError(f"cooldown: got {cooldown}, expected at least 1 step")
        self.intervention, self.cooldown = intervention, cooldown
        self.alarm: Alarm | None = None
        self._last = 0
        self._before: dict[str, float] = {}

    def step(
        self,
        record: StepRecord,
        alarms: Sequence[Alarm],
        state: str,
        failed: Sequence[PromptRow],
        training: Training,
    ) -> Iterator[Applied]:
        """One step of the closed loop: the rows to log about what was done and what the last act changed."""
        if self._before:
            yield self._effect(record)
        self.intervention.observe(record.step, failed, training)
        self.alarm = next((alarm for alarm in alarms if alarm.tier is Tier.ALARM), self.alarm)
        standing = state in (Tier.ALARM, Tier.HOLD)
        if not standing or self.alarm is None or (self._last and record.step - self._last < self.cooldown):
            return
        self._last = record.step
        status, detail = self._apply(record.step, training)
        if status == "applied":
            names = {"parse_failure", *(driver.stream for driver in self.alarm.drivers)}
            self._before = {o.stream: o.value for o in record.observations if o.stream in names}
            self._before["reward"] = record.metrics.get("reward", float("nan"))
            detail = {**detail, "before": self._before}
        yield self._row(record.step, status, detail)

    def _apply(self, step: int, training: Training) -> tuple[str, dict[str, Any]]:
        try:
            return "applied", self.intervention.apply(step, training)
        except NotApplicable as reason:
            return "skipped", {"reason": str(reason)}
        except Exception as error:
            if training.ranks > 1:  # the other ranks would wait for this one for ever: an end is better
                raise
            _log.exception("collapsewatch: intervention %s failed at step %d", self.intervention.name, step)
            return "failed", {"reason": f"{type(error).__name__}: {error}"}

    def _effect(self, record: StepRecord) -> Applied:
        now = {o.stream: o.value for o in record.observations}
        now["reward"] = record.metrics.get("reward", float("nan"))
        changed = {name: {"before": old, "after": now.get(name)} for name, old in self._before.items()}
        self._before = {}
        return self._row(record.step, "effect", {"applied_step": self._last, "streams": changed})

    def _row(self, step: int, status: str, detail: dict[str, Any]) -> Applied:
        trigger = self.alarm.step if self.alarm is not None else 0
        return Applied(step, self.intervention.name, self.schedule, trigger, status, detail)
