"""What the KL term of TRL's trainer is measured against."""

from __future__ import annotations

from typing import Any

import torch

from .base import Training


def has_reference(training: Training) -> bool:
    """Whether the trainer has a reference model, whole on each rank, that can be given other weights."""
    return getattr(training.trainer, "ref_model", None) is not None and not training.sharded


@torch.no_grad()
def reset_reference(trainer: Any) -> None:
    """The reference becomes the policy as it now is; what was scored against the old one is generated anew."""
    policy = dict(trainer.model.named_parameters())
    for name, parameter in trainer.ref_model.named_parameters():
        parameter.copy_(policy[name])
    drop_buffered(trainer)


def drop_buffered(trainer: Any) -> None:
    """Have the next step generate, rather than go on with rollouts of a model that is no more."""
    trainer._buffered_inputs = None
    if hasattr(trainer, "_last_loaded_step"):
        trainer._last_loaded_step = -1  # vLLM takes the weights anew
