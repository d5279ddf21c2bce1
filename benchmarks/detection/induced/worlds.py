"""Where runs are trained: an architecture, a chat format and an environment, and a model warm-started in them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from collapsewatch.formats import format_named
from collapsewatch.trainer import models
from collapsewatch.trainer.dialogues import Renderer
from collapsewatch.trainer.environments import Environment, load_environment

HERE = Path(__file__).parent
WARM_START = 420
"""Supervised batches, as many as the demo's model gets."""


@dataclass(frozen=True)
class World:
    """One tiny model's surroundings."""

    architecture: str
    chat_format: str
    environment: str

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.chat_format}-{self.environment}"


WORLDS = (
    World("qwen2", "hermes", "chain"),
    World("llama", "lfm2", "quiz"),
    World("qwen2", "lfm2", "chain"),
    World("llama", "hermes", "quiz"),
)


def build(world: World, seed: int, batches: int = WARM_START) -> tuple[Any, Any, Environment]:
    """Model, tokenizer and environment of a world, after a warm start that is cached per seed."""
    environment = load_environment(world.environment)
    tokenizer = models.tiny_tokenizer(environment)
    if world.chat_format == "lfm2":
        texts = [m.text for m in format_named("lfm2").markers if m.text.startswith("<|tool_")]
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in texts])
        tokenizer.chat_template = (HERE / "lfm2.jinja").read_text()
    folder = models.cache_folder() / f"induced-{world.name}-{seed}-{_fingerprint(batches)}"
    if (folder / "config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer, environment
    model = models.tiny_model(tokenizer, seed) if world.architecture == "qwen2" else _llama(tokenizer, seed)
    models.warm_start(model, [Renderer(tokenizer, environment)], seed, batches)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    model.save_pretrained(partial)
    partial.rename(folder)
    return model, tokenizer, environment


def _llama(tokenizer: Any, seed: int) -> LlamaForCausalLM:
    """A Llama narrower and deeper than the tiny Qwen2, with a head of its own and grouped queries."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=80,
        intermediate_size=200,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        initializer_range=80**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _fingerprint(batches: int) -> str:
    """Changes whenever anything the warm start depends on changes."""
    trainer = Path(models.__file__).parent
    names = (*sorted(HERE.glob("*.jinja")), HERE / "worlds.py", trainer / "models.py", trainer / "dialogues.py")
    names += (*(trainer / "environments" / f"{name}.py" for name in ("chain", "quiz")), trainer / "hermes.jinja")
    key = repr((batches, torch.__version__)).encode()
    return hashlib.sha256(b"".join([key, *(path.read_bytes() for path in names)])).hexdigest()[:16]
