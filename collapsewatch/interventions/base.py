"""The hooks of an intervention, and what of the training it may touch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .sft import TokenRow

PromptRow = Mapping[str, Any]
"""One row of the training dataset: its `prompt` and whatever columns stand beside it."""
Expert = Callable[[Sequence[PromptRow]], Sequence[TokenRow]]
"""Rows of the dataset -> expert dialogues that solve them, as token ids."""


@dataclass(frozen=True, slots=True)
class Training:
    """A live training as an intervention sees it; `trainer` is a `transformers.Trainer`, `rank` one of `ranks`."""

    trainer: Any
    expert: Expert | None
    rank: int = 0
    ranks: int = 1


class NotApplicable(Exception):
    """The intervention cannot act now; the reason is logged as `skipped`."""


class Intervention(ABC):
    """One supervisory or scalar action. Every rank calls every hook with the same arguments."""

    name: ClassVar[str]

    def check(self, training: Training) -> None:  # noqa: B027 (a hook: doing nothing is right for most)
        """Called as a training begins: fail if it cannot be helped this way (raise ValueError)."""

    def observe(self, step: int, failed: Sequence[PromptRow], training: Training) -> None:  # noqa: B027 (as above)
        """Called at the end of every step with the prompts that at least one rollout failed."""

    @abstractmethod
    def apply(self, step: int, training: Training) -> dict[str, Any]:
        """Act once; returns what was done, for the log.

        Raises:
            NotApplicable: nothing can be done now.
        """
