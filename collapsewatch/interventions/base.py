"""The hooks of an intervention, and what of the training it may touch.

Two kinds, told apart by `standing`: one acts, once and perhaps again (`apply`); the other stands, switched on and off
(`begin`, `end`), and guides rollouts, changes advantages or adds to the loss for as long as it is on. When, is the
schedule's business.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from .sft import TokenRow

PromptRow = Mapping[str, Any]
"""One row of the training dataset: its `prompt` and whatever columns stand beside it."""
Expert = Callable[[Sequence[PromptRow]], Sequence[TokenRow]]
"""Rows of the dataset -> expert dialogues that solve them, as token ids."""
ROLLOUT = "collapsewatch_rollout"
"""Key of a failed prompt's row under which one failed rollout stands, where `wants_text`: its `Piece`s."""
Piece = tuple[bool, str]
"""A stretch of a rollout: whether the model wrote it, and its text."""


class Detector(Protocol):
    """The part of a monitor that an intervention may ask: detection's state, taken and given back."""

    def snapshot(self) -> dict[str, Any]: ...

    def go_on(self, step: int, state: Mapping[str, Any] | None = None) -> Any: ...


@dataclass(frozen=True, slots=True)
class Training:
    """A live training as an intervention sees it; `trainer` is a `transformers.Trainer`, `rank` one of `ranks`.

    `schedule` names the schedule that decides; `onset` is the step at which the standing alarm began, None without
    one; `monitor` holds detection's state.
    """

    trainer: Any
    expert: Expert | None
    rank: int = 0
    ranks: int = 1
    schedule: str = "triggered"
    onset: int | None = None
    monitor: Detector | None = None

    @property
    def tokenizer(self) -> Any:
        """The trainer's tokenizer, also where its processing class holds one."""
        return getattr(self.trainer.processing_class, "tokenizer", self.trainer.processing_class)

    @property
    def sharded(self) -> str:
        """What shards the weights over the ranks, `FSDP` or `DeepSpeed`; empty where each rank holds them whole."""
        for name, told in (("DeepSpeed", "is_deepspeed_enabled"), ("FSDP", "is_fsdp_enabled")):
            if getattr(self.trainer, told, False):
                return name
        return ""


@dataclass(frozen=True, slots=True)
class Guide:
    """How a rollout is to be sampled: shown the task's `hint`, or forced to take the `expert`'s actions."""

    hint: bool = False
    expert: bool = False


FREE = Guide()


@dataclass(frozen=True, slots=True)
class Generation:
    """What one rank has just generated and scored: B rollouts, whole groups of `generations` across all ranks.

    `advantages` (B,) or (B, C) may be changed in place; `malformed` (B,) is the share of a rollout's turns that are
    polluted or collapsed.
    """

    advantages: torch.Tensor
    malformed: torch.Tensor
    generations: int


@dataclass(frozen=True, slots=True)
class Forward:
    """One micro-batch of B rollouts and C completion positions after its forward, before its backward.

    `inputs` as the loss got them; `mask` (B, C) the model's own tokens, n in all, in `turns` turns; `logp` (B, C)
    their log-probs, with gradient. `control()` (n, K) the log-probs of the control tokens at the own positions in
    order, with gradient; `legal()` (n, K) whether the chat format allows each there.
    """

    inputs: Mapping[str, Any]
    mask: torch.Tensor
    logp: torch.Tensor
    control: Callable[[], torch.Tensor]
    legal: Callable[[], torch.Tensor]
    turns: Callable[[], int]


class NotApplicable(Exception):
    """The intervention cannot act now; the reason is logged as `skipped`."""


class Intervention(ABC):
    """One supervisory or scalar action. Every rank calls every hook at the same step.

    `schedules`: those it makes sense under, the usual one first. `standing`: switched on and off, rather than acting.
    `guides_rollouts`: needs a trainer whose rollouts can be guided (`serves_guides`). `wants_text`: failed prompts
    come with the text of a failed rollout. `problems`: what went wrong on the side, each a row of its own: its status
    and detail.
    """

    name: ClassVar[str]
    schedules: ClassVar[tuple[str, ...]] = ("triggered", "interleaved", "synchronous")
    standing: ClassVar[bool] = False
    guides_rollouts: ClassVar[bool] = False
    wants_text: ClassVar[bool] = False
    problems: list[tuple[str, dict[str, Any]]]

    def __new__(cls, *args: Any, **knobs: Any) -> Intervention:
        made = super().__new__(cls)
        made.problems = []
        return made

    def check(self, training: Training) -> None:  # noqa: B027 (a hook: doing nothing is right for most)
        """Called as a training begins: forget an earlier one; fail if it cannot be helped this way (ValueError)."""

    def observe(self, step: int, failed: Sequence[PromptRow], training: Training) -> None:  # noqa: B027 (as above)
        """Called at the end of every step with the prompts that at least one rollout failed."""

    def healthy(self, step: int, training: Training) -> None:  # noqa: B027
        """Called at the end of every step at which no alarm stands, after `observe`; at step 0, before the first."""

    def apply(self, step: int, training: Training) -> dict[str, Any]:
        """Act once; returns what was done, for the log. `updates` in it counts supervised optimizer steps.

        Raises:
            NotApplicable: nothing can be done now.
        """
        raise NotImplementedError(f"intervention {self.name} acts through no `apply`")

    def begin(self, step: int, training: Training) -> dict[str, Any]:
        """Switched on, from the next step on; returns what was done, for the log. May raise NotApplicable."""
        return {}

    def end(self, step: int, training: Training) -> dict[str, Any]:
        """Switched off again: give back what `begin` took; returns what was done, for the log."""
        return {}

    def guide(self, row: PromptRow, member: int) -> Guide:
        """While on: how rollout number `member` of the group of a dataset `row` is to be sampled."""
        return FREE

    def advantages(self, batch: Generation, training: Training) -> None:  # noqa: B027
        """While on: change the advantages of what was just generated, in place."""

    def loss(self, batch: Forward, training: Training) -> torch.Tensor | None:
        """While on: a term for the loss of this micro-batch, as a mean over it, with gradient."""
        return None

    def metrics(self) -> dict[str, float]:
        """Numbers to keep at every step, beside the supervisor's own."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs to go on bit for bit: plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], training: Training) -> None:  # noqa: B027
        """Continue where `state_dict` was taken; called after `check`."""
