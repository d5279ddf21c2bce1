"""A model of real size in place of the tiny one: from one supervised start, RL alone and triggered supervision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from grid import Cell

from collapsewatch.trainer.dialogues import Renderer
from collapsewatch.trainer.environments import load_environment
from collapsewatch.trainer.models import load_model, warm_start

RATES = (2e-5, 5e-5)
"""Of RL. At 1.5e-4 and 3e-4 SmolLM2-135M was broken by the sixth to ninth step (docs/measurements.md)."""
SFT_RATE = 1e-4
BATCHES = 400
"""Supervised batches of the start, each of 16 dialogues of its own tasks."""
SIZES: Mapping[str, dict[str, Any]] = {
    "chain": {"prompts": 8, "rollouts": 8, "micro_batches": 2, "max_turns": 8, "max_turn_tokens": 48},
    "bfcl_base": {"prompts": 4, "rollouts": 8, "micro_batches": 8, "max_turns": 20, "max_turn_tokens": 192},
}
"""By environment: what a step is made of."""


def start(model: Path, environment: str, logdir: Path, bf16: bool, batches: int = BATCHES) -> Path:
    """The model folder that every run starts from: taught the format of `environment` unless it stands."""
    folder = logdir / f"start-{environment}"
    if not folder.exists():
        played = load_environment(environment)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        learner, tokenizer = load_model(str(model), played, 0, 0)
        cast = torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext()
        with cast:
            warm_start(learner.to(device), [Renderer(tokenizer, played)], 0, batches, rate=SFT_RATE)
        partial = folder.with_name(f"{folder.name}.partial")
        learner.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
    return folder


def cells(model: Path, environment: str, steps: int, bf16: bool) -> Iterator[Cell]:
    """RL alone and triggered supervision at each rate."""
    changes = {
        "model": str(model),
        "environment": environment,
        "steps": steps,
        "bf16": bf16,
        "warmup_steps": 10,
        "alternate_format": "",
        "content_ood": "",
        "probe_every": 0,
        "eval_every": steps,
        "save_every": 0,
        "sft_learning_rate": SFT_RATE,
        **SIZES[environment],
    }
    for rate in RATES:
        for arm, schedule in (("none", ""), ("erroneous", "triggered")):
            yield Cell(arm, schedule, rate, changes)
