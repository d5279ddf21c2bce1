"""`erroneous`: supervised updates on the ground truth of prompts the policy now fails (the paper's ETS).

No erroneous text is imitated: a rollout's failure only selects its prompt, the expert's dialogue is learnt.
Source: arXiv 2606.26027; released code, `process_error_idx.py` (any failed rollout within the last 10 steps).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from .base import Intervention, NotApplicable, PromptRow, Training
from .sft import sft_update

LEAST_WARMUP = 5
"""Steps over which RL comes back at least; the paper's warm-up after a supervised phase."""


class Erroneous(Intervention):
    """SFT on expert dialogues of recently failed prompts, with an optimizer of its own; then RL warms up again.

    As in the paper, RL resumes with a fresh optimizer and a warm-up: the old Adam moments still point where the
    run was going when it broke. The warm-up is the run's own, as a factor on its schedule, so the learning rate
    never exceeds what the schedule would have given.

    Args:
        learning_rate: of the supervised updates; 1e-5 is the paper's better one for 1.5 B parameters.
        updates: optimizer steps per application.
        batch: dialogues per update and rank.
        window: steps back to look for failed prompts.
        seed: of the order in which failed prompts are taken.
    """

    name: ClassVar[str] = "erroneous"

    def __init__(
        self, learning_rate: float = 1e-5, updates: int = 8, batch: int = 16, window: int = 10, seed: int = 0
    ) -> None:
        self._learning_rate, self._updates, self._batch = learning_rate, updates, batch
        self._failed: deque[list[PromptRow]] = deque(maxlen=window)
        self._random = random.Random(seed)
        self._optimizer: torch.optim.Optimizer | None = None
        self._applied: int | None = None  # the step of the last application

    def check(self, training: Training) -> None:
        if training.expert is None:
            raise ValueError(
                "intervention erroneous: got no expert, expected a callable from dataset rows to TokenRows"
            )
        if getattr(training.trainer, "is_deepspeed_enabled", False):  # its backward already steps the engine
            raise ValueError("intervention erroneous: got DeepSpeed, expected plain, DDP or FSDP training")
        # What an earlier training left is of other parameters and other steps: a warm-up from a step that lies
        # ahead would turn the learning rate negative.
        self._failed.clear()
        self._optimizer = self._applied = None

    def observe(self, step: int, failed: Sequence[PromptRow], training: Training) -> None:
        self._failed.append(list(failed))
        self._warm_up(training.trainer, step)

    def apply(self, step: int, training: Training) -> dict[str, Any]:
        assert training.expert is not None  # check() has seen to it
        prompts = [row for failed in self._failed for row in failed]
        if not prompts:
            raise NotApplicable("no prompt failed within the window")
        self._random.shuffle(prompts)  # every rank holds the same list and draws the same order
        rows = list(training.expert(prompts[: self._updates * self._batch * training.ranks]))
        if not rows:
            raise NotApplicable(f"the expert solved none of {len(prompts)} failed prompts")
        trainer = training.trainer
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        if self._optimizer is None:
            parameters = [p for p in trainer.model.parameters() if p.requires_grad]
            self._optimizer = torch.optim.AdamW(parameters, lr=self._learning_rate)
        losses = []
        for update in range(self._updates):
            first = (update * training.ranks + training.rank) * self._batch
            batch = [rows[(first + i) % len(rows)] for i in range(min(self._batch, len(rows)))]
            losses.append(
                sft_update(
                    trainer.model_wrapped,
                    self._optimizer,
                    batch,
                    tokenizer.pad_token_id,
                    trainer.accelerator.backward,
                    trainer.args.max_grad_norm,
                )
            )
        trainer.optimizer.optimizer.state.clear()
        self._applied = step
        self._warm_up(trainer, step)
        return {
            "prompts": len(prompts),
            "dialogues": len(rows),
            "updates": self._updates,
            "loss_before": losses[0],
            "loss_after": losses[-1],
        }

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
