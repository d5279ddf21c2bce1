"""GRPO on TRL's trainer: our rollouts in, everything else TRL's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from collapsewatch.formats.base import BoundFormat
from collapsewatch.interventions.base import FREE, Guide, PromptRow

from .amplifiers import Amplifiers
from .config import TrainConfig
from .dialogues import Renderer
from .environments.base import Environment, Task
from .rollout import rollout

KEPT = 3
"""Checkpoints kept: the last, and two that a rollback may go to."""


def episode_reward(completions: Sequence[Any], episode: Sequence[float | None], **_: Any) -> list[float | None]:
    """The environment's reward, computed during the rollout; None where the environment itself failed."""
    return list(episode)


class ToolTrainer(GRPOTrainer):
    """`GRPOTrainer` whose rollouts play our environments turn by turn, in token ids.

    Sampling goes through TRL's own single-turn generation, so transformers and vLLM both work and weights stay in
    sync. The rows of a batch name their task by index, since TRL hands a rollout function the prompts alone.

    `guide`: rows of a generation batch and rollouts per group -> how each is to be sampled; set by a supervisor.
    """

    serves_guides = True
    guide: Callable[[Sequence[PromptRow], int], Sequence[Guide]] | None = None

    def __init__(
        self,
        config: TrainConfig,
        model: Any,
        environment: Environment,
        renderer: Renderer,
        chat_format: BoundFormat,
        tasks: Sequence[Task],
        args: GRPOConfig,
        **kwargs: Any,
    ) -> None:
        self.environment, self.renderer, self.chat_format = environment, renderer, chat_format
        self.tasks, self._max_turns = tasks, config.max_turns
        self.amplifiers = amplifiers(config)
        self.batch: list[dict[str, Any]] = []
        rows = [{"prompt": list(task.prompt), "task": index} for index, task in enumerate(tasks)]
        super().__init__(
            model=model,
            reward_funcs=episode_reward,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=renderer.tokenizer,
            rollout_func=ToolTrainer.play,
            **kwargs,
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.batch = inputs
        return super()._generate_and_score_completions(inputs)

    @staticmethod
    def play(prompts: Sequence[Any], trainer: ToolTrainer) -> dict[str, Any]:
        """TRL's `rollout_func`: one episode per row of the batch."""

        def generate(ids: list[list[int]]) -> tuple[list[list[int]], list[list[float]] | None]:
            return trainer._generate_single_turn(ids, None, {}, 1)

        guides: Sequence[Guide] = ()
        if trainer.guide is not None and trainer.model.training:
            guides = trainer.guide(trainer.batch, trainer.num_generations)
        played = rollout(
            [trainer.tasks[row["task"]] for row in trainer.batch],
            trainer.environment,
            trainer.renderer,
            trainer.chat_format,
            generate,
            trainer._max_turns,
            guides,
            trainer.amplifiers,
        )
        logprobs = [trajectory.logprobs for trajectory in played]
        return {
            "prompt_ids": [trajectory.prompt_ids for trajectory in played],
            "completion_ids": [trajectory.ids for trajectory in played],
            "logprobs": None if any(row is None for row in logprobs) else logprobs,
            "env_mask": [trajectory.mask for trajectory in played],
            "episode": [trajectory.reward for trajectory in played],
            "env_errors": [trajectory.env_errors for trajectory in played],
            "forced": [trajectory.forced is not None for trajectory in played],
            "guided": [guide != FREE for guide in guides] or [False] * len(played),
        }


def amplifiers(config: TrainConfig) -> Amplifiers:
    """The mistakes that a config asks for."""
    return Amplifiers(config.force_end, config.reencode, config.lenient_replies, config.sampling_only)


def grpo_args(config: TrainConfig, output_dir: str, use_cpu: bool) -> GRPOConfig:
    """TRL's arguments for a config: one generation and one optimizer step per batch of rollouts."""
    return GRPOConfig(
        output_dir=output_dir,
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=config.warmup_steps,
        per_device_train_batch_size=config.prompts * config.rollouts // config.micro_batches,
        gradient_accumulation_steps=config.micro_batches,
        num_generations=config.rollouts,
        num_iterations=config.num_iterations,
        max_completion_length=config.max_turn_tokens,
        temperature=config.temperature,
        chat_template_kwargs=config.template_knobs or None,
        beta=config.beta,
        loss_type=config.loss_type,
        seed=config.seed,
        bf16=config.bf16,
        gradient_checkpointing=False,
        use_cpu=use_cpu,
        use_vllm=config.vllm,
        vllm_mode="colocate",
        logging_steps=1,
        # What a sampler says of rollouts that it did not draw as they are trained would correct for the mistake.
        vllm_importance_sampling_correction=config.intervention not in ("hint", "off_policy")
        and amplifiers(config) == Amplifiers(),
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or config.steps,
        save_total_limit=KEPT,
        report_to=[],
        disable_tqdm=True,
        log_completions=False,
        remove_unused_columns=False,
    )
