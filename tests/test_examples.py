"""The recipes in `examples/`: all that can be known of them without their weights."""

from __future__ import annotations

from dataclasses import fields, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import trl

from collapsewatch.formats.detect import bind
from collapsewatch.interventions.base import Intervention
from collapsewatch.trainer.config import TrainConfig, load_config
from collapsewatch.trainer.dialogues import Renderer
from collapsewatch.trainer.environments import load_environment
from collapsewatch.trainer.grpo import grpo_args
from collapsewatch.trainer.models import TEMPLATE, tiny_tokenizer
from collapsewatch.trainer.supervision import supervision
from collapsewatch.trainer.train import check, held_out

ROOT = Path(__file__).parents[1]
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
FAMILIES = {"qwen2.5": TEMPLATES / "qwen2_5.jinja", "qwen3": TEMPLATES / "qwen3.jinja", "smollm2": TEMPLATE}
"""The chat template of each family's checkpoints; that of a SmolLM2 without tools is replaced by ours."""
RECIPES = sorted(path for path in (ROOT / "examples").glob("*.toml") if path.name != "train.toml")


def recipe(path: Path, tmp_path: Path) -> TrainConfig:
    config = load_config(path)
    if config.environment.startswith("bfcl") and find_spec("bfcl_eval") is None:
        pytest.skip("bfcl-eval is not installed: pip install --no-deps bfcl-eval")
    return replace(config, logdir=str(tmp_path), bf16=False)  # which this machine may lack


def tokenizer_of(path: Path) -> Any:
    """A small tokenizer that writes dialogues by the chat template of the recipe's model family."""
    tokenizer = tiny_tokenizer(load_environment("chain"))
    tokenizer.chat_template = FAMILIES[path.name.partition("-")[0]].read_text()
    return tokenizer


by_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def test_there_are_recipes_of_every_family() -> None:
    assert {path.name.partition("-")[0] for path in RECIPES} == set(FAMILIES)


@by_recipe
def test_a_recipe_is_taken_as_it_stands(path: Path, tmp_path: Path) -> None:
    config = recipe(path, tmp_path)
    check(config)
    assert config.name == path.stem and config.steps % config.eval_every == 0
    act, _ = supervision(config)
    assert isinstance(act, Intervention)
    args = grpo_args(config, str(tmp_path), use_cpu=True)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == config.prompts * config.rollouts
    assert (args.learning_rate, args.beta, args.max_steps) == (config.learning_rate, config.beta, config.steps)
    assert args.epsilon == 0.2 and args.delta is None


@by_recipe
def test_a_recipes_dialogues_are_sound_in_every_view_of_it(path: Path, tmp_path: Path) -> None:
    config, tokenizer = recipe(path, tmp_path), tokenizer_of(path)
    environment = load_environment(config.environment)
    renderer = Renderer(tokenizer, environment, template=config.template_knobs)
    views = held_out(config, environment, renderer, bind(config.chat_format, tokenizer, **config.template_knobs))
    assert [view.name for view in views] == ["eval", "eval/format_ood", "eval/content_ood"]
    for view in views:
        for task in view.tasks[:6]:
            of = view.renderer.environment
            row, turns = view.renderer.expert_row(of, task), [m for m in of.expert(task) if m["role"] == "assistant"]
            spans = view.bound.turns(row.mask, row.ids)
            read = [view.bound.classify_ids(row.ids[begin:end]) for begin, end in spans]
            assert [bool(turn.calls) for turn in read] == [bool(m.get("tool_calls")) for m in turns]
            assert all(turn.structure.healthy for turn in read)
            said = [call["function"] for m in turns for call in m.get("tool_calls") or ()]
            heard = list(chain.from_iterable(turn.calls for turn in read))
            assert [call.name for call in heard] == [function["name"] for function in said]
            assert len(turns) <= config.max_turns


@pytest.mark.parametrize("path", [p for p in RECIPES if not p.name.startswith("qwen3")], ids=lambda path: path.stem)
def test_a_dialogue_built_turn_by_turn_is_the_one_its_template_writes(path: Path, tmp_path: Path) -> None:
    config, tokenizer = recipe(path, tmp_path), tokenizer_of(path)
    environment = load_environment(config.environment)
    for task in environment.tasks(4, 0):
        row = Renderer(tokenizer, environment).expert_row(environment, task)
        tools = list(environment.tools if task.tools is None else task.tools)
        dialogue = [*task.prompt, *environment.expert(task)]
        whole = tokenizer.apply_chat_template(dialogue, tools=tools, tokenize=False)
        assert tokenizer.decode(row.ids) == whole.removesuffix("\n")


def test_qwen3_thinks_nothing_in_every_turn_and_the_same_whatever_follows(tmp_path: Path) -> None:
    """Its template leaves the empty block out of earlier turns; built turn by turn, a dialogue keeps it in each."""
    (path,) = (path for path in RECIPES if path.name.startswith("qwen3"))
    config, tokenizer = recipe(path, tmp_path), tokenizer_of(path)
    assert config.template_knobs == {"enable_thinking": False}
    environment = load_environment(config.environment)
    task = environment.tasks(1, 0)[0]
    row = Renderer(tokenizer, environment, template=config.template_knobs).expert_row(environment, task)
    text = tokenizer.decode(row.ids)
    assert text.count("<think>\n\n</think>\n\n") == text.count("<|im_start|>assistant\n")
    learned = tokenizer.decode([i for i, own in zip(row.ids, row.mask, strict=True) if own])
    assert "<think>" not in learned


def test_the_recipes_of_the_paper_have_its_hyper_parameters() -> None:
    """300 steps of 60 prompts in updates of 20, eight rollouts, and what else its section on training says."""
    for name in ("qwen2.5-1.5b-bfcl", "qwen3-1.7b-bfcl"):
        config = load_config(ROOT / "examples" / f"{name}.toml")
        assert config.prompts * config.steps == 300 * 60 and config.prompts == 20 and config.rollouts == 8
        assert (config.learning_rate, config.sft_learning_rate, config.beta) == (1e-6, 1e-5, 1e-4)
        assert (config.max_turns, config.max_turn_tokens, config.temperature) == (30, 2048, 1.0)
        assert (config.environment, config.warmup_steps, config.eval_every) == ("bfcl", 30, 15)
        assert {field.name for field in fields(config)} >= {"micro_batches"}
