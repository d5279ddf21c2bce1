"""What breaks a run, or must not: knobs of the trainer, and two mistakes that take code of their own.

The mistakes are those of the paper's released code (arXiv 2606.26027; `llm_agent/manager.py`, `fcl_interface.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from collapsewatch.records import Call
from collapsewatch.trainer.environments import Environment, Episode, Task
from collapsewatch.trainer.environments.base import Message
from collapsewatch.trainer.grpo import ToolTrainer


class HintedSampling(ToolTrainer):
    """Turns are sampled behind an exchange that the trained sequence does not hold."""

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        sampled, _ = super()._generate_single_turn([self._hint + ids for ids in prompt_ids], *args, **kwargs)
        return sampled, None

    @property
    def _hint(self) -> list[int]:
        asked, answered = ({"role": role, "content": "5"} for role in ("user", "assistant"))
        text = self.renderer.tokenizer.apply_chat_template([asked, answered], tokenize=False)
        ids: list[int] = self.renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


class ShortestPath(ToolTrainer):
    """The fewer calls led to a final reply, the more it earns."""

    def __init__(self, config: Any, model: Any, environment: Environment, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, model, _PaidReplies(environment), *args, **kwargs)


class _PaidReplies(Environment):
    """Another environment's tasks and tools; the reward is of `_PaidEpisode`."""

    def __init__(self, inner: Environment) -> None:
        self.inner, self.name, self.tools = inner, inner.name, inner.tools  # type: ignore[misc]

    def tasks(self, count: int, seed: int) -> list[Task]:
        return self.inner.tasks(count, seed)

    def start(self, task: Task) -> Episode:
        return _PaidEpisode(self.inner.start(task))

    def expert(self, task: Task) -> list[Message]:
        return self.inner.expert(task)


class _PaidEpisode(Episode):
    """Another episode; its reward is that all questions got some reply, over one and the calls made."""

    def __init__(self, inner: Episode) -> None:
        self._inner, self._calls, self._over = inner, 0, False

    def call(self, call: Call) -> str:
        self._calls += 1
        return self._inner.call(call)

    def reply(self, text: str) -> str | None:
        following = self._inner.reply(text)
        self._over = following is None
        return following

    def reward(self) -> float:
        return self._over / (1 + self._calls)


@dataclass(frozen=True)
class Mechanism:
    """Knobs of `TrainConfig` that differ from `runs.COMMON`, and the trainer."""

    knobs: Mapping[str, Any] = field(default_factory=dict)
    trainer: type[ToolTrainer] = ToolTrainer
    tight: bool = False
    """Is the limit of a turn the longest turn of the experts?"""


FORCED_END = {"force_end": True, "reencode": "cut"}
SICK = {
    "high_rate": Mechanism({"learning_rate": 2e-3}),
    "many_updates": Mechanism({"learning_rate": 2e-3, "num_iterations": 5}),
    "ramped_rate": Mechanism({"learning_rate": 5e-3, "warmup_steps": 50}),
    "shortest_path": Mechanism({"learning_rate": 3e-4, "lenient_replies": True}, ShortestPath),
    "hinted_sampling": Mechanism({"learning_rate": 1.5e-3}, HintedSampling),
    "forced_end": Mechanism({"learning_rate": 1.5e-3, "temperature": 1.2, **FORCED_END}, tight=True),
}
"""What is expected to collapse, by mechanism."""
SANE = {
    "plain": Mechanism(),
    "kl": Mechanism({"beta": 0.02}),
    "two_updates": Mechanism({"num_iterations": 2, "learning_rate": 1e-4}),
    "few_prompts": Mechanism({"prompts": 4}),
    "cool": Mechanism({"temperature": 0.8, "loss_type": "grpo"}),
    "slow": Mechanism({"learning_rate": 1e-4}),
}
"""What is expected to stay healthy, by what differs from the plain one."""
