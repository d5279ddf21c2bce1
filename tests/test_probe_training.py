"""The probe in real TRL trainings, against log_softmax over full logits of the same weights in the same step."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, Gemma2Config, Gemma2ForCausalLM, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig

from tests.probed import FAST, control_of, probed
from tests.trl_training import trainer_of

ROOT = Path(__file__).parents[1]
HELP = GRPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
LOSSES = re.findall(r"'(\w+)'", re.match(r".*?Supported values are (.*?)\.", HELP)[1])  # type: ignore[index]

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "bf16 autocast": {"bf16": True},
    "bf16 autocast, float32 head": {"bf16": True, "cast_lm_head_to_fp32": True, "model": "untied"},
    "bf16 weights": {"bf16": True, "model_init_kwargs": {"dtype": "bfloat16"}},
    "gradient accumulation": {"gradient_accumulation_steps": 2},
    "num_iterations=2": {"num_iterations": 2},
    "reference model": {"beta": 0.1},
    "LoRA": {"peft_config": LORA},
    "LoRA, reference, checkpointing": {"peft_config": LORA, "beta": 0.1, "gradient_checkpointing": True},
    "LoRA, bf16": {"peft_config": LORA, "bf16": True},
    "untied": {"model": "untied"},
    "soft cap": {"model": "soft_capped"},
    "soft cap, temperature": {"model": "soft_capped", "temperature": 0.7},
    "entropy bonus": {"entropy_coef": 0.01},
    "truncated masked": {"mask_truncated_completions": True, "max_completion_length": 64},
    **{f"loss {loss}": {"loss_type": loss} for loss in LOSSES},
    "loss luspo, sequences": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
}


@pytest.fixture(scope="module")
def models(model_path: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models by the kind of their head."""
    folder = tmp_path_factory.mktemp("models")
    shared = AutoConfig.from_pretrained(model_path).to_diff_dict()
    shared = {key: value for key, value in shared.items() if key not in ("architectures", "model_type", "dtype")}
    torch.manual_seed(0)
    capped = {"head_dim": 16, "sliding_window": 32, "final_logit_softcapping": 5.0}
    made: dict[str, Any] = {
        "untied": Qwen2ForCausalLM(Qwen2Config(**(shared | {"tie_word_embeddings": False}))),
        "soft_capped": Gemma2ForCausalLM(Gemma2Config(**(shared | capped))),
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {"tied": model_path, **{name: folder / name for name in made}}


def test_the_losses_are_those_of_trl() -> None:
    assert {"dapo", "grpo", "cispo"} <= set(LOSSES) and len(LOSSES) == len(set(LOSSES)) >= 8


@pytest.mark.parametrize("name", SETTINGS)
def test_probe_agrees_with_full_logits(tmp_path: Path, models: dict[str, Path], tokenizer: Any, name: str) -> None:
    settings = dict(SETTINGS[name])
    path, adapter = models[settings.pop("model", "tied")], settings.pop("peft_config", None)
    config = None if adapter is None else peft.LoraConfig(**adapter)
    trainer = trainer_of(tmp_path, path, tokenizer, peft_config=config, **{"learning_rate": FAST, **settings})
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    errors = probed(trainer, control_of(tokenizer))
    assert len(errors) == trainer.state.global_step * settings.get("gradient_accumulation_steps", 1) >= 2
    assert any(not torch.equal(value, before[key]) for key, value in trainer.model.state_dict().items())
    print(f"difference {max(errors):.1e}")  # pytest -rP shows it
    assert max(errors) <= (2e-3 if settings.get("bf16") else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "forwards"), [("ddp", 5), ("fsdp2", 12)])
def test_probe_agrees_on_two_ranks(tmp_path: Path, model_path: Path, how: str, forwards: int) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    script = (str(ROOT / "tests" / "probed.py"), str(model_path), str(tmp_path), how)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *launcher, *script], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told = re.findall(r"difference (\S+) of (\d+) forwards", done.stdout)
    assert [int(count) for _, count in told] == [forwards, forwards], done.stdout
    assert max(float(error) for error, _ in told) <= 1e-5
