"""BFCL: every expert earns 1, the official checker agrees on what goes wrong, and episodes share nothing."""

from __future__ import annotations

import decimal
import json
import os
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from collapsewatch.formats import writer_named, writers
from collapsewatch.interventions.base import Guide
from collapsewatch.records import Call
from collapsewatch.structure import classify
from collapsewatch.trainer.dialogues import Renderer, in_format
from collapsewatch.trainer.environments import Task, load_environment
from collapsewatch.trainer.environments.bfcl import Bfcl
from collapsewatch.trainer.environments.bfcl_data import CATEGORIES, category
from collapsewatch.trainer.models import tiny_tokenizer
from collapsewatch.trainer.rollout import rollout

bfcl_eval = pytest.importorskip("bfcl_eval", reason="bfcl-eval is not installed: pip install --no-deps bfcl-eval")
mpmath = pytest.importorskip("mpmath", reason="mpmath is not installed")

TRIALS = int(os.environ.get("COLLAPSEWATCH_BFCL_TRIALS", "80"))
"""Wrong trajectories of each category that the official checker judges as well."""
EARLY = {("multi_turn_miss_func_49", "tail")}
"""A function that the ground truth calls before it comes: a fault of the data."""
Turns = list[list[Call]]
BFCL = Bfcl()


def truth(task: Task) -> Turns:
    """The calls of the ground truth, through JSON as a model would write them."""
    return [[Call(name, json.loads(json.dumps(said))) for name, said in turn] for turn in task.data["truth"]]


def reward(task: Task, turns: Turns) -> float:
    episode = BFCL.start(task)
    for i, calls in enumerate(turns):
        for call in calls:
            episode.call(call)
        going = episode.reply("Done.")
        assert going == (task.data["turns"][i + 1] if i + 1 < len(task.data["turns"]) else None)
    return episode.reward()


@pytest.mark.parametrize("name", CATEGORIES)
def test_every_expert_earns_1_and_is_answered_as_it_says(name: str) -> None:
    assert len(category(name)) == 200
    for task in category(name):
        episode, pending, asked = BFCL.start(task), "", task.prompt[0]["content"]
        for message in BFCL.expert(task):
            if message["role"] == "assistant" and message.get("tool_calls"):
                (call,) = message["tool_calls"]
                function = call["function"]
                pending = episode.call(Call(function["name"], json.loads(json.dumps(function["arguments"]))))
            elif message["role"] == "assistant":
                asked = episode.reply(message["content"])
            else:
                assert message["content"] == (pending if message["role"] == "tool" else asked)
        assert (asked, episode.reward()) == (None, 1.0), task.data["id"]


@cache
def official(name: str) -> dict[str, tuple[dict[str, Any], list[list[str]]]]:
    """The package's own rows and ground truth, as it reads them."""
    folder = Path(bfcl_eval.__file__).parent / "data"
    files = (folder / f"BFCL_v4_multi_turn_{name}.json", folder / "possible_answer" / f"BFCL_v4_multi_turn_{name}.json")
    rows, answers = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    return {row["id"]: (row, answer["ground_truth"]) for row, answer in zip(rows, answers, strict=True)}


def official_verdict(name: str, task: Task, turns: Turns, trial: str) -> bool:
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

    row, answer = official(name)[task.data["id"]]
    written = [
        [[f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"] for call in calls]
        for calls in turns
    ]
    verdict = multi_turn_checker(written, answer, row, f"multi_turn_{name}", trial)  # instances are kept by this name
    return bool(verdict["valid"])


def drop(turns: Turns, i: int, j: int, rng: random.Random) -> None:
    del turns[i][j]


def repeat(turns: Turns, i: int, j: int, rng: random.Random) -> None:
    turns[i].insert(j, turns[i][j])


def swap(turns: Turns, i: int, j: int, rng: random.Random) -> None:
    rng.shuffle(turns[i])


def postpone(turns: Turns, i: int, j: int, rng: random.Random) -> None:
    turns[(i + 1) % len(turns)].insert(0, turns[i].pop(j))


def rename(turns: Turns, i: int, j: int, rng: random.Random) -> None:
    turns[i][j] = Call(rng.choice(["no_such_tool", "pwd", "get_user_id"]), turns[i][j].arguments)


def change(turns: Turns, i: int, j: int, rng: random.Random) -> None:
    said = dict(turns[i][j].arguments)
    key = rng.choice(sorted(said)) if said else "extra"
    value = said.get(key)
    said[key] = value + 1 if isinstance(value, int | float) else f"{value}x" if isinstance(value, str) else []
    turns[i][j] = Call(turns[i][j].name, said)


def forget(turns: Turns, i: int, j: int, rng: random.Random) -> None:
    said = dict(turns[i][j].arguments)
    said.pop(rng.choice(sorted(said)), None) if said else None
    turns[i][j] = Call(turns[i][j].name, said)


def silence(turns: Turns, i: int, j: int, rng: random.Random) -> None:
    turns[i] = []


WRONGS = (drop, repeat, swap, postpone, rename, change, forget, silence)


@pytest.mark.parametrize("name", CATEGORIES)
def test_the_official_checker_gives_wrong_trajectories_the_same_verdict(name: str) -> None:
    rng = random.Random(name)
    found = Counter[float]()
    for trial in range(TRIALS):
        task = category(name)[trial % 200] if TRIALS >= 200 else rng.choice(category(name))
        turns = truth(task)
        wrong = WRONGS[trial % len(WRONGS)]
        called = [(i, j) for i, calls in enumerate(turns) for j in range(len(calls))]
        wrong(turns, *rng.choice(called), rng)
        ours = reward(task, turns)
        assert ours == official_verdict(name, task, turns, f"trial_{name}_{trial}"), (task.data["id"], wrong.__name__)
        found[ours] += 1
    assert found[0.0] > TRIALS / 3 and found[1.0] > TRIALS / 20, found  # some changes do no harm


@pytest.mark.parametrize("ended", [-1, 1])
def test_a_dialogue_of_another_length_than_the_ground_truth_earns_nothing(ended: int) -> None:
    task = next(task for task in category("base") if len(task.data["turns"]) == 3)
    assert reward(task, truth(task)) == 1.0
    episode = BFCL.start(task)
    for calls in truth(task)[: 3 + min(ended, 0)]:
        for call in calls:
            episode.call(call)
        episode.reply("Done.")
    for _ in range(ended):
        assert episode.reply("And more.") is None
    assert episode.reward() == 0.0


def test_episodes_played_turn_about_earn_what_each_earns_alone() -> None:
    for task in (*category("base")[::40], *category("long_context")[::50]):
        right, wrong = truth(task), truth(task)
        wrong[-1] = []
        both = [BFCL.start(task), BFCL.start(task)]
        for turns in zip(right, wrong, strict=True):
            for episode, calls in zip(both, turns, strict=True):
                for call in calls:
                    episode.call(call)
            for episode in both:
                episode.reply("Done.")
        assert [episode.reward() for episode in both] == [1.0, reward(task, wrong)]
        assert reward(task, truth(task)) == 1.0


def test_a_tool_that_sets_the_precision_of_numbers_sets_it_for_itself() -> None:
    (task, *_) = (task for task in category("base") if "MathAPI" in task.data["classes"])
    before = (decimal.getcontext().prec, mpmath.mp.dps)
    episode = BFCL.start(task)
    assert "1.41" in episode.call(Call("square_root", {"number": 2, "precision": 3}))
    assert "1.58" in episode.call(Call("logarithm", {"value": 3, "base": 2, "precision": 3}))
    assert (decimal.getcontext().prec, mpmath.mp.dps) == before


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (Call("power", {"base": 9, "exponent": 10**12}), "more than 4300 digits"),
        (Call("logarithm", {"value": 2, "base": 3, "precision": 10**9}), "more than 4300 digits"),
        (Call("power", {"base": 2, "exponent": 10}), "1024"),
        (Call("power", {"base": 2.5, "exponent": 10**9}), "Error"),
        (Call("_load_scenario", {"scenario": {}}), "name '_load_scenario' is not defined"),
        (Call("__class__", {}), "is not defined"),
        (Call("open", {"file": "x"}), "is not defined"),
        (Call("add", {"a b": 1, "": 2}), "unexpected keyword argument"),
        (Call("mean", {"numbers": None}), "error"),
    ],
)
def test_a_call_that_no_tool_takes_gives_text(call: Call, told: str) -> None:
    (task, *_) = (task for task in category("base") if "MathAPI" in task.data["classes"])
    assert told in BFCL.start(task).call(call)


def test_what_a_call_hands_over_stays_the_callers() -> None:
    task = next(task for task in category("base") if any(c.name == "post_tweet" for t in truth(task) for c in t))
    call = next(call for turn in truth(task) for call in turn if call.name == "post_tweet")
    before = json.dumps(call.arguments)
    episode = BFCL.start(task)
    episode.call(call)
    assert json.dumps(call.arguments) == before


def test_training_and_test_halves_are_disjoint_and_of_like_tasks() -> None:
    trained = {task.data["id"] for task in BFCL.tasks(300, 1)}
    tested = {task.data["id"] for task in BFCL.held_out(400, 1)}
    assert (len(trained), len(tested)) == (300, 400) and not trained & tested
    halves = [{name.rpartition("_")[2] for name in ids} for ids in (trained, tested)]
    assert [len(half) for half in halves] == [100, 100] and not halves[0] & halves[1]
    assert sorted(Counter(name.removeprefix("multi_turn_").rpartition("_")[0] for name in tested).items()) == [
        ("base", 100), ("long_context", 100), ("miss_func", 100), ("miss_param", 100)
    ]  # fmt: skip
    assert {task.data["id"] for task in BFCL.tasks(600, 1)[300:]} == trained  # every task before any comes again


@pytest.mark.parametrize("name", CATEGORIES)
def test_a_category_is_an_environment(name: str) -> None:
    environment = load_environment(f"bfcl_{name}")
    ids = {task.data["id"] for task in [*environment.tasks(100, 0), *environment.held_out(100, 0)]}
    assert ids == {task.data["id"] for task in category(name)}


def test_a_missing_function_is_offered_with_the_turn_that_brings_it() -> None:
    early = set()
    for task in category("miss_func"):
        assert task.tools is not None
        offered = {tool["function"]["name"] for tool in task.tools}
        for text, calls in zip(task.data["turns"], truth(task), strict=True):
            if text.endswith("What about now?"):
                offered |= {json.loads(line)["function"]["name"] for line in text.splitlines()[:-1]}
            early |= {(task.data["id"], call.name) for call in calls} - {(task.data["id"], name) for name in offered}
    assert early == EARLY


@pytest.mark.parametrize("name", writers())
def test_the_ground_truth_is_read_as_it_was_written_in_every_format(name: str) -> None:
    for task in category("base")[::4]:
        for call in (call for calls in truth(task) for call in calls):
            read = classify(writer_named(name).write([call]), format=name, stop="eos")
            (one,) = read.calls
            assert one.name == call.name
            if name == "qwen3_coder":  # it writes no types: the text "2.0" is read as a number
                assert {k: str(v) for k, v in one.arguments.items()} == {k: str(v) for k, v in call.arguments.items()}
            else:
                assert one.arguments == call.arguments


def test_a_dialogue_is_written_in_a_format_that_no_template_knows() -> None:
    task = category("miss_func")[0]
    told = in_format([*task.prompt, *BFCL.expert(task)], task.tools or (), writer_named("bracket"))
    assert told[0]["role"] == "system" and "[cd(" in "".join(message["content"] for message in told[1:])


@pytest.mark.parametrize("writer", [None, "bracket"])
def test_experts_earn_1_through_rollouts_in_token_ids(writer: str | None) -> None:
    """Their turns are taken as if they were sampled: written, read, executed, answered, in either format."""
    tokenizer = tiny_tokenizer(load_environment("chain"))
    written = None if writer is None else writer_named(writer)
    bound = (written or writer_named("hermes")).bind(tokenizer)
    tasks = [task for name in CATEGORIES for task in category(name)[::100]]

    def never(prompts: list[list[int]]) -> Any:
        raise AssertionError("every turn is the expert's")

    renderer = Renderer(tokenizer, BFCL, written)
    played = rollout(tasks, BFCL, renderer, bound, never, 40, [Guide(expert=True)] * len(tasks))
    assert [(trajectory.reward, trajectory.env_errors) for trajectory in played] == [(1.0, 0)] * len(tasks)
    for task, trajectory in zip(tasks, played, strict=True):
        row = renderer.expert_row(BFCL, task)
        assert trajectory.prompt_ids + trajectory.ids == row.ids
