"""`stop`: ends the training at an alarm, before more is spent on it."""

from __future__ import annotations

from typing import Any, ClassVar

from .base import Intervention, Training


class Stop(Intervention):
    """Has the trainer stop after this step as at its end: the run is `finished`, and the row says why so early."""

    name: ClassVar[str] = "stop"
    schedules: ClassVar[tuple[str, ...]] = ("triggered",)

    def apply(self, step: int, training: Training) -> dict[str, Any]:
        training.trainer.control.should_training_stop = True
        return {"of": training.trainer.state.max_steps}
