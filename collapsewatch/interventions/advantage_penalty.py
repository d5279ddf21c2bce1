"""`advantage_penalty`: rollouts with malformed turns lose advantage to the others of their group.

Relative, as advantages are: where all rollouts of a group are as malformed, none loses anything, for a push away from
whatever was sampled is a push towards what nobody looks at.
Source: the penalty that the released code has but does not call (`fcl_eval.py`, `compute_score_v2`).
"""

from __future__ import annotations

from typing import ClassVar

from .base import Generation, Intervention, Training


class AdvantagePenalty(Intervention):
    """Takes `weight` times the share of malformed turns off the advantage, less the group's mean of that."""

    name: ClassVar[str] = "advantage_penalty"
    standing: ClassVar[bool] = True

    def __init__(self, weight: float = 1.0) -> None:
        if not weight > 0:
            raise ValueError(f"intervention {self.name}: weight: got {weight}, expected above 0")
        self._weight = weight

    def advantages(self, batch: Generation, training: Training) -> None:
        groups = training.trainer.accelerator.gather(batch.malformed).view(-1, batch.generations)  # (G, R)
        excess = (groups - groups.mean(dim=1, keepdim=True)).flatten()  # (ranks * B,)
        first = training.rank * len(batch.malformed)
        loss = self._weight * excess[first : first + len(batch.malformed)].to(batch.advantages.dtype)  # (B,)
        batch.advantages.sub_(loss if batch.advantages.dim() == 1 else loss[:, None])
