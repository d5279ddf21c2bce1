"""`sft_first`: supervised updates on prompts of the dataset, then RL (the paper's SFT -> RL).

Source: arXiv 2606.26027; released code, `sft_1.5b_fcl.sh` (batches of 128 at 1e-5, 69 updates), then `sft_rl_*.sh`.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

from .base import Intervention, NotApplicable, Training
from .learner import Learner


class SFTFirst(Intervention):
    """SFT on expert dialogues of the training dataset, before the first step of RL.

    Args:
        learning_rate, updates, batch: the paper's for 1.5 B parameters.
        at_once: dialogues in one forward.
        reset_reference: RL's KL reference becomes the supervised policy, as in the paper.
        seed: of the prompts that are drawn.
    """

    name: ClassVar[str] = "sft_first"
    schedules: ClassVar[tuple[str, ...]] = ("first",)

    def __init__(
        self,
        learning_rate: float = 1e-5,
        updates: int = 69,
        batch: int = 128,
        at_once: int = 16,
        reset_reference: bool = False,
        seed: int = 0,
    ) -> None:
        self._learner = Learner(self.name, learning_rate, updates, batch, at_once, reset_reference)
        self._seed = seed

    def check(self, training: Training) -> None:
        self._learner.check(training)

    def apply(self, step: int, training: Training) -> dict[str, Any]:
        dataset = training.trainer.train_dataset
        if not hasattr(dataset, "__len__"):
            raise NotApplicable("the dataset is a stream, whose prompts cannot be drawn before RL takes them")
        wanted = min(self._learner.wanted(training.ranks), len(dataset))
        prompts = [dataset[i] for i in random.Random(self._seed).sample(range(len(dataset)), wanted)]
        return {"prompts": wanted, **self._learner.learn(self._learner.expert(prompts, training), training)}
