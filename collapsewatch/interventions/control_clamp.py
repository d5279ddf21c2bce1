"""`control_clamp`: a loss on the probability of control tokens where the chat format forbids them.

The mechanism's direct antidote, and it needs no data: what is pushed down is the hazard that detection watches, token
by token and slot by slot. But a token has one row of the LM head for where it is legal and where it is not, and a
weight that is large enough to matter takes it away in both: at 0.1 the tiny model lost its calls within twenty steps
(docs/results.md).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from .base import Forward, Intervention, Training

CERTAIN = 1 - 1e-6
"""Illegal probability beyond which the loss is taken as here: float32 does not tell it from 1. Its slope remains."""


class ControlClamp(Intervention):
    """Adds `weight` times the hazard to the loss: -log(1 - illegal probability), summed in a turn, mean over turns."""

    name: ClassVar[str] = "control_clamp"
    standing: ClassVar[bool] = True

    def __init__(self, weight: float = 0.01) -> None:
        if not weight > 0:
            raise ValueError(f"intervention {self.name}: weight: got {weight}, expected above 0")
        self._weight = weight

    def begin(self, step: int, training: Training) -> dict[str, Any]:
        return {"weight": self._weight}

    def loss(self, batch: Forward, training: Training) -> torch.Tensor | None:
        turns = batch.turns()
        if not turns:
            return None
        mass = batch.control().exp().masked_fill(batch.legal(), 0.0).sum(dim=1)  # (n,)
        mass = mass * (CERTAIN / mass.detach()).clamp(max=1.0)
        return self._weight * -torch.log1p(-mass).sum() / turns
