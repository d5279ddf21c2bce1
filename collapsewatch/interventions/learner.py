"""Supervised updates on expert dialogues, with an optimizer of their own: what the supervised signals share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .base import NotApplicable, PromptRow, Training
from .reference import has_reference, reset_reference
from .sft import TokenRow, sft_update


class Learner:
    """Makes `updates` optimizer steps on `batch` dialogues a rank each, `at_once` of them in one forward.

    `reset_reference`: after them, the reference of RL's KL term becomes the policy as it then is.
    """

    def __init__(
        self,
        name: str,
        learning_rate: float,
        updates: int,
        batch: int,
        at_once: int = 16,
        reset_reference: bool = False,
    ) -> None:
        for knob, value in (("updates", updates), ("batch", batch), ("at_once", at_once)):
            if value < 1:
                raise ValueError(f"intervention {name}: {knob}: got {value}, expected at least 1")
        self._name, self._rate, self._updates, self._batch, self._at_once = name, learning_rate, updates, batch, at_once
        self._reset = reset_reference
        self._optimizer: torch.optim.Optimizer | None = None

    def check(self, training: Training) -> None:
        """Refuse what it cannot teach (ValueError); forget an earlier training."""
        if training.expert is None:
            raise ValueError(
                f"intervention {self._name}: got no expert, expected a callable from dataset rows to TokenRows"
            )
        if training.sharded == "DeepSpeed":  # its backward already steps the engine
            raise ValueError(f"intervention {self._name}: got DeepSpeed, expected plain, DDP or FSDP training")
        if self._reset and not has_reference(training):
            raise ValueError(
                f"intervention {self._name}: got reset_reference where there is no KL reference to reset, "
                "expected beta > 0 and a reference model that each rank holds whole"
            )
        self._optimizer = None

    def wanted(self, ranks: int) -> int:
        """How many dialogues there is use for."""
        return self._updates * self._batch * ranks

    def expert(self, prompts: Sequence[PromptRow], training: Training) -> list[TokenRow]:
        """Expert dialogues of as many prompts as there is use for.

        Raises:
            NotApplicable: the expert solved none.
        """
        assert training.expert is not None  # check() has seen to it
        rows = list(training.expert(prompts[: self.wanted(training.ranks)]))
        if not rows:
            raise NotApplicable(f"the expert solved none of {len(prompts)} prompts")
        return rows

    def learn(self, rows: Sequence[TokenRow], training: Training) -> dict[str, Any]:
        """Learn the dialogues, the ranks taking turns; returns what was done."""
        trainer = training.trainer
        optimizer = self._optimizer or self._built(trainer)
        # The fused head's loss is at RL's temperature. A CPU keeps the plain one, which the figures were measured with.
        fused = trainer.temperature == 1.0 and next(trainer.model.parameters()).is_cuda
        losses = []
        for update in range(self._updates):
            first = (update * training.ranks + training.rank) * self._batch
            batch = [rows[(first + i) % len(rows)] for i in range(min(self._batch, len(rows)))]
            losses.append(
                sft_update(
                    trainer.model_wrapped,
                    optimizer,
                    batch,
                    training.tokenizer.pad_token_id,
                    trainer.accelerator.backward,
                    trainer.args.max_grad_norm,
                    self._at_once,
                    fused,
                )
            )
        if self._reset:
            reset_reference(trainer)
        return {
            "dialogues": len(rows),
            "updates": self._updates,
            "loss_before": losses[0],
            "loss_after": losses[-1],
            "reset_reference": self._reset,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": None if self._optimizer is None else self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], training: Training) -> None:
        if state["optimizer"] is not None:
            self._built(training.trainer).load_state_dict(state["optimizer"])

    def _built(self, trainer: Any) -> torch.optim.Optimizer:
        parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(parameters, lr=self._rate)
        return self._optimizer
