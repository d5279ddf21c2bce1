"""Models to train: `tiny` (built and warm-started here), a Hugging Face path, or a GGUF file."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from collapsewatch.database import first_line
from collapsewatch.formats.base import ChatFormat
from collapsewatch.interventions.sft import TokenRow, sft_update

from .dialogues import Renderer, in_format
from .environments.base import Environment

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
TEMPLATE = Path(__file__).with_name("hermes.jinja")
LAYERS, HIDDEN, VOCABULARY = 2, 96, 448
WARM_START_SEED = 20_260_000


class ModelError(ValueError):
    """A model that cannot be loaded: what, got, expected."""


def tiny_tokenizer(*environments: Environment) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer trained on the environments' own dialogues; digits stand alone, as in Qwen's."""
    texts = ["system user assistant"] * 500
    for environment in environments:
        texts += [json.dumps(tool["function"]) for tool in environment.tools] * 50
        for task in environment.tasks(500, WARM_START_SEED):
            for message in [*task.prompt, *environment.expert(task)]:
                texts.append(message["content"])
                texts += [json.dumps(call["function"]) for call in message.get("tool_calls", ())]
    tokenizer = Tokenizer(models.BPE())
    pattern = Regex(r"\d| ?\p{L}+|\n|[^\p{L}\d\n]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE.read_text(),
    )


def tiny_model(tokenizer: Any, seed: int) -> Qwen2ForCausalLM:
    """A Qwen2 of about 0.26 M parameters with random weights."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=HIDDEN**-0.5,  # the usual 0.02 leaves so narrow a model no better than chance for long
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def _fingerprint(
    environment: Environment,
    seed: int,
    batches: int,
    alternate: ChatFormat | None = None,
    other: Environment | None = None,
) -> str:
    """Changes whenever anything the warm start depends on changes."""
    here = Path(__file__).parent
    sources = [path.read_bytes() for path in sorted(here.rglob("*.py")) if path.name in _WARM_START_SOURCES]
    key = repr((environment.name, seed, batches, torch.__version__)).encode()
    if alternate is not None:
        (task,) = environment.tasks(1, WARM_START_SEED)
        key += repr(in_format([*task.prompt, *environment.expert(task)], environment.tools, alternate)).encode()
    if other is not None:
        key += repr((other.name, other.tasks(1, WARM_START_SEED))).encode()
    return hashlib.sha256(b"".join([key, TEMPLATE.read_bytes(), *sources])).hexdigest()[:16]


_WARM_START_SOURCES = {"models.py", "dialogues.py", "chain.py", "base.py"}


def cache_folder() -> Path:
    """Where warm-started models are kept: `$COLLAPSEWATCH_CACHE`, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("COLLAPSEWATCH_CACHE") or Path(base) / "collapsewatch")


def warm_start(
    model: Any,
    renderers: Sequence[Renderer],
    seed: int,
    batches: int,
    progress: Callable[[int, int], None] | None = None,
    rate: float = 2e-3,
) -> None:
    """Teach a model its formats: `batches` AdamW steps on 16 expert dialogues each, up to `rate` and down to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(batches, 1), pct_start=0.15)
    model.train()
    for batch, rows in enumerate(_expert_batches(renderers, seed, batches)):
        sft_update(model, optimizer, rows, renderers[0].pad_id)
        schedule.step()
        if progress is not None:
            progress(batch + 1, batches)


def _expert_batches(renderers: Sequence[Renderer], seed: int, batches: int, size: int = 16) -> Iterator[list[TokenRow]]:
    """Batches of expert dialogues of like length: sorted within 64, since padding would cost a third more.

    The renderers take turns, so that each has its share of the dialogues.
    """
    shuffle = random.Random(seed)
    pool: list[list[TokenRow]] = []
    for batch in range(batches):
        if not pool:
            task_seed = WARM_START_SEED + 1 + seed * 100_000 + batch
            drawn = [(of, of.environment.tasks(4 * size, task_seed)) for of in renderers]
            turns = ((*drawn[i % len(drawn)], i) for i in range(4 * size))
            rows = [of.expert_row(of.environment, tasks[i]) for of, tasks, i in turns]
            rows.sort(key=lambda row: len(row.ids))
            pool = [rows[start : start + size] for start in range(0, len(rows), size)]
            shuffle.shuffle(pool)
        yield pool.pop()


def load_tiny(
    environment: Environment,
    seed: int,
    batches: int,
    progress: Callable[[int, int], None] | None = None,
    alternate: ChatFormat | None = None,
    other: Environment | None = None,
) -> tuple[Any, Any]:
    """The tiny model after its warm start, from the cache when it has been built before.

    An `alternate` chat format and an `other` environment each have their equal share of the dialogues.
    """
    tokenizer = tiny_tokenizer(*filter(None, [environment, other]))
    model = tiny_model(tokenizer, seed)
    if batches > 0:
        folder = cache_folder() / f"tiny-{_fingerprint(environment, seed, batches, alternate, other)}"
        if (folder / "config.json").exists():
            model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
        else:
            writers = [None] if alternate is None else [None, alternate]
            renderers = [Renderer(tokenizer, environment, writer) for writer in writers]
            renderers += [] if other is None else [Renderer(tokenizer, other)]
            warm_start(model, renderers, seed, batches, progress)
            partial = folder.with_name(f"{folder.name}.{os.getpid()}")
            model.save_pretrained(partial)
            if not folder.exists():
                partial.rename(folder)
    return model, tokenizer


def load_model(
    name: str,
    environment: Environment,
    seed: int,
    warm_start_batches: int,
    progress: Callable[[int, int], None] | None = None,
    alternate: ChatFormat | None = None,
    other: Environment | None = None,
) -> tuple[Any, Any]:
    """Model and tokenizer of `tiny`, a local Hugging Face folder (or hub name), or a `.gguf` file.

    Only `tiny` is taught an `alternate` chat format and an `other` environment; other models can it, or not, as
    they are.

    Raises:
        ModelError: nothing can be loaded from `name`.
    """
    if name == "tiny":
        return load_tiny(environment, seed, warm_start_batches, progress, alternate, other)
    path = Path(name)
    try:
        if path.suffix == ".gguf":
            config = GgufConfig(gguf_file=path.name, dequantize=True)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, quantization_config=config
            )
        else:
            tokenizer = _tokenizer(name)
            model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    except Exception as error:  # broken files make the loaders raise anything
        raise ModelError(
            f"model: got {name!r} ({first_line(error)}), expected 'tiny', a model folder, a hub name or a .gguf file"
        ) from error
    if "<|im_end|>" not in tokenizer.get_vocab():
        raise ModelError(f"model: got {name!r}, whose tokenizer has no <|im_end|>, expected a ChatML model")
    tokenizer.eos_token = "<|im_end|>"  # base models end a document, not a turn
    if add_markers(tokenizer) and len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    if "tool_call" not in (tokenizer.chat_template or ""):
        tokenizer.chat_template = TEMPLATE.read_text()
    return model, tokenizer


def _tokenizer(name: str) -> Any:
    """The tokenizer as it was saved.

    For a family it knows, `AutoTokenizer` takes a saved vocabulary and splits text as that family does, also where
    the folder says that the tokenizer is of no family, as the tiny model's.
    """
    saved = Path(name) / "tokenizer_config.json"
    if saved.is_file() and json.loads(saved.read_text()).get("tokenizer_class") in _NO_FAMILY:
        return PreTrainedTokenizerFast.from_pretrained(name)
    return AutoTokenizer.from_pretrained(name)


_NO_FAMILY = ("TokenizersBackend", "PreTrainedTokenizerFast")


def add_markers(tokenizer: Any) -> int:
    """Give a ChatML tokenizer the Hermes markers it has no single token for; how many were added."""
    absent = [marker for marker in MARKERS if marker not in tokenizer.get_vocab()]
    return int(tokenizer.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in absent]))
