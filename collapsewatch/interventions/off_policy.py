"""`off_policy`: the first rollouts of a group take the expert's actions, which the environment executes (OPS).

The expert's turns are trained on like the policy's own, with the reward they earn and advantages over the mixed
group. In the paper it harmed the runs it was to help.
Source: arXiv 2606.26027; released code, `manager.py` (`sft_replace`, one rollout of 8, the ratio left as it is).
"""

from __future__ import annotations

from typing import Any, ClassVar

from .base import FREE, Guide, Intervention, PromptRow, Training


class OffPolicy(Intervention):
    """Forces the expert's actions on the first `count` rollouts of each group; RL's own update, nothing else."""

    name: ClassVar[str] = "off_policy"
    schedules: ClassVar[tuple[str, ...]] = ("synchronous", "interleaved", "triggered")
    standing: ClassVar[bool] = True
    guides_rollouts: ClassVar[bool] = True
    guided: ClassVar[Guide] = Guide(expert=True)

    def __init__(self, count: int = 1) -> None:
        if count < 1:
            raise ValueError(f"intervention {self.name}: count: got {count}, expected at least 1 rollout a group")
        self._count = count

    def check(self, training: Training) -> None:
        group = training.trainer.num_generations
        if self._count >= group:
            raise ValueError(f"intervention {self.name}: count: got {self._count}, expected less than all {group}")

    def begin(self, step: int, training: Training) -> dict[str, Any]:
        return {"rollouts": self._count, "of": training.trainer.num_generations}

    def guide(self, row: PromptRow, member: int) -> Guide:
        return self.guided if member < self._count else FREE
