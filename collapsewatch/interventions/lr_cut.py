"""`lr_cut`: a lower learning rate while it is on, and the schedule's own again after.

A collapse at 3e-3 came back after supervised updates for as long as the rate stayed; at 1e-4 the same training was
quiet (docs/measurements.md).
"""

from __future__ import annotations

from typing import Any, ClassVar

from .base import Intervention, Training
from .rates import scale_rate


class LRCut(Intervention):
    """Multiplies the learning rate by `factor`, whatever its schedule makes of it."""

    name: ClassVar[str] = "lr_cut"
    schedules: ClassVar[tuple[str, ...]] = ("triggered", "interleaved")
    standing: ClassVar[bool] = True

    def __init__(self, factor: float = 0.1) -> None:
        if not 0 < factor < 1:
            raise ValueError(f"intervention {self.name}: factor: got {factor}, expected between 0 and 1")
        self._factor = factor

    def begin(self, step: int, training: Training) -> dict[str, Any]:
        return {"learning_rate": scale_rate(training.trainer, self._factor)[0]}

    def end(self, step: int, training: Training) -> dict[str, Any]:
        return {"learning_rate": scale_rate(training.trainer, 1 / self._factor)[0]}
