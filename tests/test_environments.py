"""Contract of every environment in the table: seeded tasks, an expert that solves them, episodes that share nothing."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from collapsewatch.plugins import UnknownPlugin
from collapsewatch.records import Call
from collapsewatch.trainer.environments import ENVIRONMENTS, Environment, Task, load_environment
from collapsewatch.trainer.environments.chain import Chain

without_bfcl = pytest.mark.skipif(find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")
every_environment = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=without_bfcl if name.startswith("bfcl") else ()) for name in ENVIRONMENTS]
)
seeds = st.integers(0, 2**31)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def calls_of(message: dict[str, Any]) -> list[Call]:
    """The calls of an assistant message, through JSON as a model would write them."""
    functions = (call["function"] for call in message.get("tool_calls", ()))
    return [Call(f["name"], json.loads(json.dumps(f["arguments"]))) for f in functions]


def play(environment: Environment, task: Task) -> float:
    """The expert's dialogue played against a fresh episode, which must answer as the dialogue says."""
    episode = environment.start(task)
    pending: list[str] = []
    asked: str | None = task.prompt[-1]["content"]
    for message in environment.expert(task):
        if message["role"] == "tool":
            assert message["content"] == pending.pop(0)
        elif message["role"] == "user":
            assert message["content"] == asked
        elif message.get("tool_calls"):
            assert not pending
            pending = [episode.call(call) for call in calls_of(message)]
        else:
            assert message["role"] == "assistant" and not pending
            asked = episode.reply(message["content"])
    assert asked is None
    return episode.reward()


@every_environment
@given(seed=seeds)
@settings(deadline=None, max_examples=20)
def test_the_expert_earns_reward_1_on_every_task(name: str, seed: int) -> None:
    environment = load_environment(name)
    for task in [*environment.tasks(5, seed), *environment.held_out(5, seed)]:
        assert play(environment, task) == 1.0


@every_environment
@given(seed=seeds)
@settings(deadline=None, max_examples=20)
def test_the_same_seed_gives_the_same_tasks_and_a_longer_list_begins_with_them(name: str, seed: int) -> None:
    environment = load_environment(name)
    tasks = environment.tasks(20, seed)
    assert tasks == load_environment(name).tasks(20, seed) == environment.tasks(30, seed)[:20]
    assert tasks != environment.tasks(20, seed + 1)


@every_environment
def test_the_expert_calls_tools_as_their_schemas_say(name: str) -> None:
    environment = load_environment(name)
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in environment.tools}
    used = set()
    for task in environment.tasks(200, 0):
        for message in environment.expert(task):
            for call in calls_of(message):
                used.add(call.name)
                assert set(call.arguments) <= set(schemas[call.name]["properties"]), call
                assert set(call.arguments) >= set(schemas[call.name]["required"]), call
        assert task.tools is None or {tool["function"]["name"] for tool in task.tools} <= set(schemas)
    assert used == set(schemas) or name.startswith("bfcl")  # which has tools that no task needs


@every_environment
def test_episodes_of_one_task_share_nothing(name: str) -> None:
    environment = load_environment(name)
    task = environment.tasks(1, 0)[0]
    first, second = environment.start(task), environment.start(task)
    for message in environment.expert(task):
        if message["role"] == "assistant":
            for call in calls_of(message):
                first.call(call)
            if not message.get("tool_calls"):
                first.reply(message["content"])
    assert (first.reward(), second.reward()) == (1.0, 0.0)


@every_environment
@given(
    tool=st.text(max_size=8) | st.sampled_from(["lookup", "add"]),
    arguments=st.dictionaries(st.text(max_size=4) | st.sampled_from(["key", "a", "b"]), json_values, max_size=3),
)
@example(tool="add", arguments={"a": 10**4299, "b": 9 * 10**4299})  # the sum has more digits than Python prints
@example(tool="add", arguments={"a": True, "b": 1})
@settings(deadline=None, max_examples=200)
def test_a_wrong_call_gives_text_not_an_exception(name: str, tool: str, arguments: dict[str, Any]) -> None:
    environment = load_environment(name)
    assert environment.start(environment.tasks(1, 0)[0]).call(Call(tool, arguments))


@every_environment
def test_a_hint_names_the_calls_in_their_order_and_is_short(name: str) -> None:
    environment = load_environment(name)
    for task in environment.tasks(30, 0):
        hint, at = environment.hint(task), 0
        assert len(hint.split()) <= 300
        for call in [call for message in environment.expert(task) for call in calls_of(message)][:3]:
            at = hint.index(call.name, at) + 1


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (Call("lookup", {}), "error: unknown key"),
        (Call("lookup", {"key": ["ash"]}), "error: unknown key"),
        (Call("add", {"a": 1}), "error: a and b must be integers"),
        (Call("add", {"a": True, "b": 2}), "error: a and b must be integers"),
        (Call("add", {"a": "1", "b": 2}), "error: a and b must be integers"),
        (Call("divide", {"a": 1, "b": 0}), "error: unknown tool"),
        (Call("add", {"a": -3, "b": 5}), "2"),
    ],
)
def test_chain_says_what_is_wrong_with_a_call(call: Call, told: str) -> None:
    chain = Chain()
    assert chain.start(chain.tasks(1, 0)[0]).call(call) == told


@given(seed=seeds)
@settings(deadline=None, max_examples=20)
def test_chain_asks_for_the_sum_it_rewards(seed: int) -> None:
    for task in Chain().tasks(10, seed):
        terms = task.prompt[-1]["content"].removesuffix(" ?").split(" + ")
        total = sum(int(term) if term.isdigit() else task.data["table"][term] for term in terms)
        calls = sum(len(calls_of(message)) for message in Chain().expert(task))
        assert task.data["answer"] == total and 1 <= calls <= 5


@pytest.mark.parametrize("answer", ["", "no number", "9" * 5000, "{wrong}", "The sum is {right}. No, {wrong}."])
def test_chain_rewards_only_the_last_number(answer: str) -> None:
    chain = Chain()
    task = chain.tasks(1, 0)[0]
    right = task.data["answer"]
    episode = chain.start(task)
    episode.reply(answer.format(right=right, wrong=right + 1))
    assert episode.reward() == 0.0
    episode.reply(f"first {right + 1}, then {right}")
    assert episode.reward() == 1.0


def test_an_unknown_environment_names_the_choices() -> None:
    with pytest.raises(
        UnknownPlugin, match=r"environment: got 'chian', expected one of bfcl, .*chain, quiz, or 'pkg.mod:Attr'"
    ):
        load_environment("chian")
