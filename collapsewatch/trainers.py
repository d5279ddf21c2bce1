"""Trainers of transformers from the outside: which one is calling, and whether it can be watched."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from transformers import Trainer, TrainerCallback


def watchable(trainer: Any) -> bool:
    """Whether a trainer generates, rewards and trains as `GRPOTrainer` does, and can be told by that."""
    return hasattr(trainer, "_generate_and_score_completions") and hasattr(trainer, "_calculate_rewards")


def calling_trainer(callback: TrainerCallback) -> Any:
    """The trainer whose callback handler is calling `callback`: transformers passes every argument but it.

    Raises:
        RuntimeError: not called by a trainer; use `attach(trainer)`.
    """
    frame = sys._getframe()
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer) and callback in found.callback_handler.callbacks:
            return found
        frame = frame.f_back  # type: ignore[assignment]
    raise RuntimeError("CollapseCallback: got a call from outside a Trainer, expected attach(trainer) first")


def wrap(trainer: Any, method: str, call: Callable[..., Any]) -> Callable[[], None]:
    """Have `call(original, *args)` answer in place of a trainer's method; returns what takes it back."""
    original, before = getattr(trainer, method), vars(trainer).get(method)
    setattr(trainer, method, functools.wraps(original)(functools.partial(call, original)))

    def undo() -> None:
        if before is None:
            delattr(trainer, method)
        else:
            setattr(trainer, method, before)

    return undo
