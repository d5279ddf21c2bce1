"""How held-out tasks go while a run trains: as trained, in another call format, and with other tools.

Damage by RL is local to the trained format, damage by supervision is not: the three tell which one a run has.
Source: arXiv 2606.26027, section 5, Table 2. Evaluation leaves training as it was, to the bit: random states and the
model's mode are put back.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from collapsewatch.callback import CollapseCallback
from collapsewatch.formats.base import BoundFormat
from collapsewatch.records import Structure

from .dialogues import Renderer
from .environments.base import Task
from .grpo import ToolTrainer
from .outcomes import outcome
from .rollout import Generate, Trajectory, rollout

SEED = 0
"""Of the draws: every evaluation, of every run, has the same."""


@dataclass(frozen=True)
class Held:
    """Tasks that are not trained on, and how they are posed; metrics are logged below `name`."""

    name: str
    tasks: Sequence[Task]
    renderer: Renderer
    bound: BoundFormat


class Evaluation(TrainerCallback):  # type: ignore[misc]  # transformers carries no types
    """Plays held-out tasks before the first step, every `every` steps and at the end, always by the same draws.

    It belongs after the `watch` callback, in whose run it logs, and samples as the trainer does. On several ranks
    each plays all of the tasks, so that no rank waits for another's; the first one's outcome is kept.
    """

    def __init__(
        self, trainer: ToolTrainer, watch: CollapseCallback, held: Sequence[Held], every: int, max_turns: int
    ) -> None:
        self._trainer, self._watch, self._held = trainer, watch, held
        self._every, self._max_turns = every, max_turns

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The policy that training starts from, unless it goes on from a checkpoint."""
        if state.global_step == 0:
            self._evaluate(0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The policy after a step that is due, or after the last."""
        step = state.global_step
        if step % self._every == 0 or step == state.max_steps or control.should_training_stop:
            self._evaluate(step)

    def _evaluate(self, step: int) -> None:
        monitor = self._watch.monitor
        assert monitor is not None  # `watch` stands before this one and has attached
        with monitor.guard("evaluation"), undisturbed(self._trainer.model):
            for held in self._held:
                monitor.log_metrics(step, self._played(held))

    def _played(self, held: Held) -> dict[str, float]:
        torch.manual_seed(SEED)
        at_once = self._trainer.args.per_device_train_batch_size * self._trainer.args.steps_per_generation
        played: list[Trajectory] = []
        for start in range(0, len(held.tasks), at_once):
            tasks = held.tasks[start : start + at_once]
            environment, generate = held.renderer.environment, _sampling(self._trainer)
            played += rollout(tasks, environment, held.renderer, held.bound, generate, self._max_turns)
        found = outcome(played, held.bound)
        healthy = found.structures[Structure.TOOL_CALL] + found.structures[Structure.RESPONSE]
        values = {"reward": found.reward, "healthy": healthy, "env_errors": float(found.env_errors)}
        if found.parse_rate is not None:
            values["parse_rate"] = found.parse_rate
        return {f"{held.name}/{key}": value for key, value in values.items()}


def _sampling(trainer: ToolTrainer) -> Generate:
    """The trainer's own sampler, without those who watch what it samples to train on."""

    def generate(ids: list[list[int]]) -> tuple[list[list[int]], list[list[float]] | None]:
        sampled: tuple[list[list[int]], list[list[float]] | None]
        sampled = type(trainer)._generate_single_turn(trainer, ids, None, {}, 1)
        return sampled

    return generate


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Afterwards, random states and the model's mode are what they were; within, the model does not train."""
    before, numbers, mode = random.getstate(), np.random.get_state(), model.training
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        model.train(mode)
        random.setstate(before)
        np.random.set_state(numbers)
