"""A plain TRL script, watched: `CollapseCallback` in `callbacks` is the only line about collapsewatch.

    python examples/trl_script.py [MODEL]

MODEL is a ChatML model folder or hub name; without it a tiny model is built here, which takes no network and no GPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed
from trl import GRPOConfig, GRPOTrainer

from collapsewatch import CollapseCallback

WORDS = ["ash", "bay", "cod", "dew", "elm", "fig", "gum", "hay"]
SYSTEM = 'Call a tool: <tool_call>\n{"name": "lookup", "arguments": {"key": "..."}}\n</tool_call>'
TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def build_tiny(folder: Path) -> str:
    """Save a random byte-level Qwen2 of a few ten thousand weights; returns its folder."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(letters, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = [AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    core.add_tokens([*special, AddedToken("<tool_call>"), AddedToken("</tool_call>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )
    set_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def called_right(completions: list[Any], word: list[str], **_: Any) -> list[float]:
    """1 for a call that looks up the word; a tenth for opening one at all."""
    rewards = []
    for completion, wanted in zip(completions, word, strict=True):
        text = completion[0]["content"]
        call = json.dumps({"name": "lookup", "arguments": {"key": wanted}})
        rewards.append(1.0 if call in text else 0.1 * ("<tool_call>" in text))
    return rewards


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else build_tiny(Path("trl_script_model"))
    rows = [
        {"prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": w}], "word": w} for w in WORDS
    ]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=called_right,
        args=GRPOConfig(
            output_dir="trl_script",
            max_steps=6,
            learning_rate=1e-3,
            per_device_train_batch_size=16,
            num_generations=4,
            max_completion_length=32,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            bf16=False,
        ),
        train_dataset=Dataset.from_list(rows),
        callbacks=[CollapseCallback()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
