"""A training whose model answers `ok` until it is broken on purpose: what interventions are tried on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from collapsewatch.callback import CollapseCallback
from collapsewatch.interventions.base import Intervention, PromptRow
from collapsewatch.interventions.sft import TokenRow, sft_update
from collapsewatch.schedules import Schedule

PROMPTS = ["say hi", "what now?", "call me", "look up"]
ANSWER = "ok<|im_end|>"
BREAK_AT = 12


def token_row(tokenizer: Any, prompt: str) -> TokenRow:
    asked, answer = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, ANSWER))
    return TokenRow(asked + answer, [0] * len(asked) + [1] * len(answer))


def save_answering(tokenizer: Any, path: Path) -> None:
    """Save a model that answers `ok` to every prompt."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = [token_row(tokenizer, prompt) for prompt in PROMPTS]
    losses = [sft_update(model, optimizer, rows, tokenizer.pad_token_id) for _ in range(60)]
    assert losses[-1] < 0.05 < losses[0]
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


class Sabotage(TrainerCallback):
    """After step `at`, says `</tool_call>` where it said `o`; notes rates, weights and Adam's state of each step."""

    def __init__(self, tokenizer: Any, at: int) -> None:
        self.swap = tokenizer.convert_tokens_to_ids(["o", "</tool_call>"])
        self.at = at
        self.trainer: Any = None
        self.callback: Any = None
        self.rates: dict[int, float] = {}
        self.factors: dict[int, float] = {}
        self.moments: dict[int, int] = {}
        self.weights: dict[int, str] = {}
        self.adam: dict[int, str] = {}
        self.faults: dict[str, int] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        self.rates[step] = self.trainer.optimizer.param_groups[0]["lr"]
        self.factors[step] = self.rates[step] / (self.trainer.lr_scheduler.get_last_lr()[0] or 1.0)
        held = self.trainer.optimizer.optimizer.state
        self.moments[step] = len(held)
        self.weights[step] = digest(self.trainer.model.parameters())
        self.adam[step] = digest(held[p][key] for p in self.trainer.model.parameters() if p in held for key in _ADAM)
        if step == self.at:
            with torch.no_grad():
                weight = self.trainer.model.lm_head.weight
                weight[self.swap] = weight[self.swap[::-1]].clone()


def closed_loop(
    tmp_path: Path,
    answering: Path,
    intervention: Intervention | str | None,
    schedule: Schedule | str | None = None,
    name: str | None = "run",
    *,
    kind: type[GRPOTrainer] = GRPOTrainer,
    break_at: int = BREAK_AT,
    copies: int = 4,
    resume: bool = False,
    logged: Any = None,
    begun: Any = None,
    **overrides: Any,
) -> Sabotage:
    """Train; `begun(trainer)` is called before, `logged` is the callback's `on_record`."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(answering)
    sabotage = Sabotage(tokenizer, break_at)

    def expert(rows: Sequence[PromptRow]) -> list[TokenRow]:
        return [token_row(tokenizer, row["prompt"]) for row in rows]

    def plain(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(ids == tokenizer.encode(ANSWER, add_special_tokens=False)) for ids in completion_ids]

    settings = {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 24,
        "learning_rate": 1e-7,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 32,
        "num_generations": 4,
        "max_completion_length": 4,
        "seed": 3,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    callback = CollapseCallback(
        tmp_path, name, intervention=intervention, schedule=schedule, expert=expert, on_record=logged
    )
    trainer = kind(
        model=str(answering),
        reward_funcs=plain,
        args=GRPOConfig(**{**settings, **overrides}),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * copies]),
        processing_class=tokenizer,
        callbacks=[callback, sabotage],
    )
    trainer.remove_callback(PrinterCallback)
    sabotage.trainer, sabotage.callback = trainer, callback
    if begun is not None:
        begun(trainer)
    if resume:
        sabotage.at = -1  # the checkpoint holds what it did
    try:
        trainer.train(resume_from_checkpoint=resume)
    except KeyboardInterrupt:
        callback.close("interrupted")
        raise
    assert callback.monitor is not None
    sabotage.faults = dict(callback.monitor.faults)
    return sabotage


_ADAM = ("exp_avg", "exp_avg_sq", "step")


def digest(values: Iterable[torch.Tensor]) -> str:
    """Of every bit of some tensors."""
    return hashlib.sha256(b"".join(value.detach().numpy().tobytes() for value in values)).hexdigest()
