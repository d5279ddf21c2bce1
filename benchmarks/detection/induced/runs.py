"""The plan of all runs, and one run: a real training, seeded, whose folder stands only once it is finished."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import transformers
from mechanisms import SANE, SICK
from transformers.trainer_callback import PrinterCallback
from truth import broken_step, signs
from worlds import WARM_START, WORLDS, World, build

from collapsewatch.callback import CollapseCallback
from collapsewatch.formats.detect import bind
from collapsewatch.records import StepRecord
from collapsewatch.trainer.config import from_mapping
from collapsewatch.trainer.dialogues import Renderer
from collapsewatch.trainer.environments import Environment, Task
from collapsewatch.trainer.grpo import grpo_args
from collapsewatch.trainer.train import TASK_SEED

COMMON: dict[str, Any] = {"steps": 50, "learning_rate": 2e-4, "warmup_steps": 10, "prompts": 8, "rollouts": 3}
COMMON |= {"max_turns": 4, "max_turn_tokens": 24}
MODEL_SEED = 7
"""Seeds the first weights and the warm start of a world's model, from which all its runs start."""
SEEDS = (7, 8)
"""The first half may be looked at while detectors change, the second is held back for the end."""
STURDY = {"qwen2": 1.0, "llama": 1.5}
"""Factor of the learning rates that are to break it: at 2e-3 the Llama was worn, not broken, in 50 steps."""
AFTER = 10
"""Steps a run goes on once it broke; the rest would tell nothing new."""


@dataclass(frozen=True)
class Plan:
    """One run. Its seed seeds the tasks and the sampling."""

    mechanism: str
    world: World
    seed: int

    @property
    def name(self) -> str:
        return f"{self.mechanism}-{self.world.name}-{self.seed}"

    @property
    def sick(self) -> bool:
        return self.mechanism in SICK


def plans() -> Iterator[Plan]:
    """Every run, development half first; each kind of healthy run is made once a world."""
    for half, seed in enumerate(SEEDS):
        yield from (Plan(mechanism, world, seed) for mechanism in SICK for world in WORLDS)
        for i, mechanism in enumerate(SANE):
            yield from (Plan(mechanism, world, seed) for j, world in enumerate(WORLDS) if (i + j) % 2 == half)


def train(plan: Plan, logdir: Path, batches: int = WARM_START, **knobs: Any) -> Path:
    """Train one run into its folder, unless it stands there; `knobs` overrule the plan's."""
    folder, partial = logdir / plan.name, logdir / f"{plan.name}.partial"
    if folder.exists():
        return folder
    shutil.rmtree(partial, ignore_errors=True)
    quiet()
    mechanism = {**SICK, **SANE}[plan.mechanism]
    chosen = {"environment": plan.world.environment, "chat_format": plan.world.chat_format, "seed": plan.seed}
    chosen |= {"name": partial.name, "logdir": str(logdir)}
    config = from_mapping({**COMMON, **chosen, **mechanism.knobs, **knobs}, plan.name)
    if plan.sick:
        config = replace(config, learning_rate=config.learning_rate * STURDY[plan.world.architecture])
    model, tokenizer, environment = build(plan.world, MODEL_SEED, batches)
    renderer, bound = Renderer(tokenizer, environment), bind(config.chat_format, tokenizer)
    tasks = short_tasks(environment, config.prompts * config.steps, TASK_SEED + config.seed)
    if mechanism.tight:
        config = replace(config, max_turn_tokens=longest_turn(renderer, environment, tasks[:100]))
    told: list[Mapping[str, float]] = []

    def stop(record: StepRecord, *_: object) -> None:
        told.append(signs(record))
        broken = broken_step(told)
        trainer.control.should_training_stop |= broken is not None and len(told) > broken + AFTER

    callback = CollapseCallback(
        logdir,
        partial.name,
        chat_format=config.chat_format,
        config=replace(config, name=plan.name).to_toml(),
        on_record=stop,
    )
    args = grpo_args(config, str(partial / "checkpoints"), use_cpu=True)
    trainer = mechanism.trainer(config, model, environment, renderer, bound, tasks, args, callbacks=[callback])
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
    finally:
        callback.close("interrupted")  # nothing where training came to its end
    return partial.rename(folder)


def short_tasks(environment: Environment, count: int, seed: int) -> list[Task]:
    """Tasks of at most two parts: longer sums say nothing more about the format, and take three times as long."""
    drawn = environment.tasks(3 * count, seed)
    return [task for task in drawn if len(task.data.get("terms", ())) <= 2][:count]


def longest_turn(renderer: Renderer, environment: Environment, tasks: Sequence[Task]) -> int:
    """Tokens of the longest turn of the experts."""
    masks = ("".join(map(str, renderer.expert_row(environment, task).mask)) for task in tasks)
    return max(len(turn) for mask in masks for turn in mask.split("0"))


def quiet() -> None:
    """One thread, and no word from the libraries that is not an error."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # TRL 1.16 says `gradient_checkpointing`, which transformers 5.23 has renamed.
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing.*` is deprecated", FutureWarning)
