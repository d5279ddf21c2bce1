"""The learning rate of a live training, scaled so that its schedule keeps its shape."""

from __future__ import annotations

from typing import Any


def scale_rate(trainer: Any, factor: float) -> list[float]:
    """Multiply the learning rate of the steps to come; returns the rate of each parameter group, for the next step.

    The rates that the schedule starts from are scaled too: else its next step would give the old rate back.
    """
    schedule = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
    if hasattr(schedule, "base_lrs"):
        schedule.base_lrs = [rate * factor for rate in schedule.base_lrs]
    for group in trainer.optimizer.param_groups:
        group["lr"] *= factor
    return [float(group["lr"]) for group in trainer.optimizer.param_groups]
