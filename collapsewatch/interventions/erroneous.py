"""`erroneous`: supervised updates on the ground truth of prompts the policy now fails (the paper's ETS).

No erroneous text is imitated: a rollout's failure only selects its prompt, the expert's dialogue is learnt.
Source: arXiv 2606.26027; released code, `process_error_idx.py` (any failed rollout within the last 10 steps).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from .base import Intervention, NotApplicable, PromptRow, Training
from .learner import Learner
from .sft import TokenRow

LEAST_WARMUP = 5
"""Steps over which RL comes back at least; the paper's warm-up after a supervised phase."""


class Erroneous(Intervention):
    """SFT on expert dialogues of recently failed prompts, with an optimizer of its own; then RL warms up again.

    As in the paper, RL resumes with a fresh optimizer and a warm-up: the old Adam moments still point where the
    run was going when it broke. The warm-up is the run's own, as a factor on its schedule, so the learning rate
    never exceeds what the schedule would have given. Under `synchronous`, where there is no phase to come back from,
    RL goes on as it was.

    Args:
        learning_rate: of the supervised updates; 1e-5 is the paper's better one for 1.5 B parameters.
        updates: optimizer steps per application.
        batch: dialogues per update and rank.
        at_once: dialogues in one forward.
        window: steps back to look for failed prompts.
        reset_reference: RL's KL reference becomes the policy after the updates, as in the paper.
        seed: of the order in which failed prompts are taken.
    """

    name: ClassVar[str] = "erroneous"

    def __init__(
        self,
        learning_rate: float = 1e-5,
        updates: int = 8,
        batch: int = 16,
        at_once: int = 16,
        window: int = 10,
        reset_reference: bool = False,
        seed: int = 0,
    ) -> None:
        self._learner = Learner(self.name, learning_rate, updates, batch, at_once, reset_reference)
        self._failed: deque[list[PromptRow]] = deque(maxlen=window)
        self._random = random.Random(seed)
        self._applied: int | None = None  # the step of the last application

    def check(self, training: Training) -> None:
        self._learner.check(training)
        # What an earlier training left is of other parameters and other steps: a warm-up from a step that lies
        # ahead would turn the learning rate negative.
        self._failed.clear()
        self._applied = None

    def observe(self, step: int, failed: Sequence[PromptRow], training: Training) -> None:
        self._failed.append(list(failed))
        self._warm_up(training.trainer, step)

    def apply(self, step: int, training: Training) -> dict[str, Any]:
        prompts = [row for failed in self._failed for row in failed]
        if not prompts:
            raise NotApplicable("no prompt failed within the window")
        self._random.shuffle(prompts)  # every rank holds the same list and draws the same order
        rows = self._learner.expert(prompts, training)
        if more := self.more(prompts, training):  # among the others, so that few updates learn of both
            rows = [*rows, *more]
            self._random.shuffle(rows)
        done = self._learner.learn(rows, training)
        if training.schedule != "synchronous":
            training.trainer.optimizer.optimizer.state.clear()
            self._applied = step
            self._warm_up(training.trainer, step)
        return {"prompts": len(prompts), **done}

    def more(self, prompts: Sequence[PromptRow], training: Training) -> list[TokenRow]:
        """What is learnt beside the expert's dialogues: here nothing."""
        return []

    def state_dict(self) -> dict[str, Any]:
        failed = [[dict(row) for row in rows] for rows in self._failed]
        mine = {"failed": failed, "random": self._random.getstate(), "applied": self._applied}
        return {**self._learner.state_dict(), **mine}

    def load_state_dict(self, state: Mapping[str, Any], training: Training) -> None:
        self._learner.load_state_dict(state, training)
        self._failed.extend(state["failed"])
        self._random.setstate(state["random"])
        self._applied = state["applied"]

    def _warm_up(self, trainer: Any, step: int) -> None:
        """After an application, scale the learning rate that the schedule has just set for the next step."""
        if self._applied is None:
            return
        length = max(LEAST_WARMUP, trainer.args.get_warmup_steps(trainer.state.max_steps))
        factor = (step - self._applied + 1) / (length + 1)
        # Only a schedule that is a function of the step sets the rate anew each step; others build on the last.
        schedule = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
        if factor < 1 and isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
            for group in trainer.optimizer.param_groups:
                group["lr"] *= factor
