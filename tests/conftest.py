"""Shared by all tests: one thread, nothing from the network, a tiny tokenizer and a tiny random model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.one_path import assert_one_path

# Read when torch, transformers and trl are first imported. A second thread only gets in a tiny model's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


collect_ignore = ["verl_worker.py"]  # a process of its own, in an environment that has verl


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """One token per character and per Hermes marker; no `<`, so that text and ids determine each other."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from collapsewatch.formats import format_named

    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789", *'{}":,.?', "Ġ", "Ċ"]
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    markers = format_named("hermes").markers
    core.add_tokens([AddedToken(m.text, special=m.text.startswith("<|"), normalized=False) for m in markers])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def model_path(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Qwen2 of some 20,000 random weights, wide enough apart that its probabilities differ."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.25,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    path = tmp_path_factory.mktemp("model")
    Qwen2ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def answering(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that answers `ok` to every prompt."""
    from tests.closed_loop import save_answering

    path = tmp_path_factory.mktemp("answering")
    save_answering(tokenizer, path)
    return path


@pytest.fixture
def one_path(tmp_path: Path) -> Iterator[None]:
    """After the test, every run it made in its folder is replayed and must raise the alarms it raised live."""
    from collapsewatch.queries import find_runs

    yield
    for run_dir in find_runs(tmp_path):
        assert_one_path(run_dir)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A real browser, headless, that asks for nothing on the network by itself."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on PATH (Debian: apt-get install chromium)")
    quiet = ["background-networking", "component-update", "sync", "gpu", "dev-shm-usage"]
    flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{part}" for part in quiet)]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def renderer() -> Any:
    """Renders `chain` with the tiny model's tokenizer."""
    from collapsewatch.trainer.dialogues import Renderer
    from collapsewatch.trainer.environments.chain import Chain
    from collapsewatch.trainer.models import tiny_tokenizer

    return Renderer(tiny_tokenizer(Chain()), Chain())


@pytest.fixture(scope="session")
def hermes(renderer: Any) -> Any:
    """The tiny model's format in its own ids."""
    from collapsewatch.formats import format_named

    return format_named("hermes").bind(renderer.tokenizer)
