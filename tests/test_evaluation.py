"""Evaluation on held-out tasks: what it finds is what a rollout finds, and training does not notice it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from collapsewatch.formats import writer_named
from collapsewatch.queries import open_run
from collapsewatch.trainer.config import TrainConfig, from_mapping
from collapsewatch.trainer.dialogues import Renderer
from collapsewatch.trainer.environments import load_environment
from collapsewatch.trainer.evaluation import undisturbed
from collapsewatch.trainer.models import load_tiny, tiny_model, tiny_tokenizer
from collapsewatch.trainer.outcomes import outcome
from collapsewatch.trainer.rollout import rollout
from collapsewatch.trainer.sampling import Sampler
from collapsewatch.trainer.train import held_out, train

CHAIN, QUIZ = load_environment("chain"), load_environment("quiz")
KNOBS: dict[str, Any] = {
    "warm_start": 40, "steps": 4, "prompts": 4, "rollouts": 4, "max_turns": 4, "max_turn_tokens": 24, "eval_tasks": 8,
    "probe_every": 0, "alternate_format": "bracket", "content_ood": "quiz",
}  # fmt: skip
VIEWS = ("eval", "eval/format_ood", "eval/content_ood")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, dict[str, dict[int, float]]]]:
    """Trains a run once per name: its folder, and each metric by step."""
    logdir = tmp_path_factory.mktemp("logs")

    def run(name: str, **changes: object) -> tuple[Path, dict[str, dict[int, float]]]:
        folder = logdir / name
        if not folder.exists():
            train(from_mapping({**KNOBS, "logdir": str(logdir), "name": name, "save_model": True, **changes}, "test"))
        metrics: dict[str, dict[int, float]] = {}
        with closing(open_run(folder)) as opened:
            for step, metric, value in opened.query("SELECT step, metric, value FROM metrics").rows:
                metrics.setdefault(metric, {})[step] = value
        return folder, metrics

    return run


def test_every_view_is_logged_before_training_as_it_goes_on_and_at_its_end(trained: Any) -> None:
    _, metrics = trained("evaluated", eval_every=3)
    for view in VIEWS:
        assert set(metrics[f"{view}/reward"]) == {0, 3, 4}
        assert all(0.0 <= value <= 1.0 for value in metrics[f"{view}/healthy"].values())
        assert set(metrics[f"{view}/env_errors"].values()) == {0.0}
    assert {name for name in metrics if name.startswith("eval/")} <= {
        f"{view}/{what}" for view in VIEWS for what in ("reward", "healthy", "env_errors", "parse_rate")
    }


def test_training_is_the_same_to_the_bit_with_and_without(trained: Any) -> None:
    (seen, evaluated), (unseen, plain) = trained("evaluated", eval_every=3), trained("plain")
    timed = {name for name in plain if "time" in name or "second" in name or name.startswith("monitor/")}
    measured = {name: by_step for name, by_step in evaluated.items() if not name.startswith("eval/")}
    assert set(measured) == set(plain) and len(set(plain) - timed) > 20
    for name in set(plain) - timed:
        assert repr(measured[name]) == repr(plain[name]), name
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (seen, unseen)]
    assert weights[0] == weights[1]


def test_the_first_evaluation_is_a_rollout_of_the_starting_policy(trained: Any) -> None:
    """Played again with the sampler that inspects checkpoints, which is not the trainer's."""
    _, metrics = trained("evaluated", eval_every=3)
    config = from_mapping(KNOBS, "test")
    writer = writer_named("bracket")
    model, tokenizer = load_tiny(CHAIN, config.seed, config.warm_start, alternate=writer, other=QUIZ)
    renderer = Renderer(tokenizer, CHAIN)
    model.eval()
    from collapsewatch.formats.detect import bind

    for held in held_out(config, CHAIN, renderer, bind("hermes", tokenizer)):
        torch.manual_seed(0)
        sampler = Sampler(model, held.renderer, config.max_turn_tokens)
        played = rollout(held.tasks, held.renderer.environment, held.renderer, held.bound, sampler, config.max_turns)
        found = outcome(played, held.bound)
        assert metrics[f"{held.name}/reward"][0] == pytest.approx(found.reward)
        assert metrics[f"{held.name}/parse_rate"].get(0) == found.parse_rate


def test_held_out_tasks_are_posed_three_ways_and_are_no_training_tasks() -> None:
    config = from_mapping(KNOBS | {"eval_tasks": 30}, "test")
    renderer = Renderer(tiny_tokenizer(CHAIN, QUIZ), CHAIN)
    views = held_out(config, CHAIN, renderer, writer_named("hermes").bind(renderer.tokenizer))
    assert [view.name for view in views] == list(VIEWS)
    assert [view.bound.name for view in views] == ["hermes", "bracket", "hermes"]
    assert [view.renderer.environment.name for view in views] == ["chain", "chain", "quiz"]
    assert views[0].tasks == views[1].tasks
    assert [view.name for view in held_out(TrainConfig(), CHAIN, renderer, views[0].bound)] == ["eval"]


def test_random_states_and_mode_are_put_back_whatever_happens() -> None:
    model = tiny_model(tiny_tokenizer(CHAIN), 0).train()
    draws = []
    for disturb in (False, True):
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        if disturb:
            with pytest.raises(KeyError), undisturbed(model):
                assert not model.training
                random.random(), np.random.rand(), torch.manual_seed(9), torch.rand(3)
                raise KeyError
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(1)), model.training))
    assert draws[0] == draws[1] and draws[0][-1]


def test_a_rollout_the_environment_failed_in_has_no_part_in_the_reward() -> None:
    bound = writer_named("hermes").bind(tiny_tokenizer(CHAIN))
    rows = [(1.0, 0), (None, 1), (0.0, 0)]
    played: Any = [SimpleNamespace(reward=reward, env_errors=n, mask=[1], ids=[5]) for reward, n in rows]
    found = outcome(played, bound)
    assert (found.reward, found.env_errors, found.parse_rate) == (0.5, 1, None)
    assert math.isnan(outcome(played[1:2], bound).reward)
