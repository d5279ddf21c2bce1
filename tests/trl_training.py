"""A short training by TRL's own `GRPOTrainer` on the tiny random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

PROMPTS = ["add 1 and 2", "add 3 and 4", "look up paris", "what now?", "call me", "say hi"]


def checksum(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that differs between nearly any two completions and can be computed again from the stored text."""
    return [sum(i * (1 + t) for t, i in enumerate(ids)) % 97 / 97 for ids in completion_ids]


def trainer_of(
    tmp_path: Path,
    model_path: Path,
    tokenizer: Any,
    *callbacks: Any,
    reward: Any = checksum,
    peft_config: Any = None,
    **overrides: Any,
) -> GRPOTrainer:
    """A trainer of the model at `model_path`; `overrides` over the settings of a small quick training."""
    settings = {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 16,
        "seed": 7,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    trainer = GRPOTrainer(
        model=str(model_path),
        reward_funcs=reward,
        args=GRPOConfig(**{**settings, **overrides}),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        eval_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS[:2]]),
        processing_class=tokenizer,
        callbacks=list(callbacks),
        peft_config=peft_config,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(*args: Any, resume: bool = False, **settings: Any) -> GRPOTrainer:
    """What `trainer_of` makes of these arguments, trained."""
    trainer = trainer_of(*args, **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer
