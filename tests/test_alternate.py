"""Dialogues in another chat format than the template's own: an expert still solves every task in them."""

from __future__ import annotations

from typing import Any

import pytest

from collapsewatch import classify
from collapsewatch.formats import format_named, writer_named, writers
from collapsewatch.trainer.dialogues import Renderer, TemplateError, how_to_call, in_format
from collapsewatch.trainer.environments.base import assistant_call
from collapsewatch.trainer.environments.chain import Chain
from collapsewatch.trainer.models import WARM_START_SEED, _expert_batches, _fingerprint, tiny_tokenizer
from collapsewatch.trainer.rollout import rollout
from tests.test_rollout import experts

CHAIN = Chain()
CHATML = [name for name in writers() if "<|im_end|>" in format_named(name).role]
in_chatml = pytest.mark.parametrize("name", CHATML)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer(CHAIN)


def test_the_formats_that_end_a_turn_as_chatml_does() -> None:
    assert set(CHATML) == {"hermes", "qwen3_coder", "react", "bracket"}


@in_chatml
def test_an_expert_earns_every_reward_in_another_format(tokenizer: Any, name: str) -> None:
    writer = writer_named(name)
    renderer, bound = Renderer(tokenizer, CHAIN, writer), writer.bind(tokenizer)
    tasks = CHAIN.tasks(12, 5)
    rows = [renderer.expert_row(CHAIN, task) for task in tasks]
    played = rollout(tasks, CHAIN, renderer, bound, experts(rows), max_turns=20)
    assert [t.reward for t in played] == [1.0] * 12
    for task, row, trajectory in zip(tasks, rows, played, strict=True):
        assert trajectory.prompt_ids + trajectory.ids == row.ids
        # The oracle: the whole dialogue as text at once; what the model's turns say, read by the format's parser.
        messages = in_format([*task.prompt, *CHAIN.expert(task)], CHAIN.tools, writer)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        assert tokenizer.decode(row.ids) + "\n" == whole
        own = [m["content"] for m in messages if m["role"] == "assistant"]
        calls = [call for text in own for call in classify(text, name, "eos").calls]
        expected = [c["function"] for m in CHAIN.expert(task) for c in m.get("tool_calls", ())]
        assert [(call.name, call.arguments) for call in calls] == [(f["name"], f["arguments"]) for f in expected]


def test_the_alternate_has_no_control_token_of_the_trained_format(tokenizer: Any) -> None:
    row = Renderer(tokenizer, CHAIN, writer_named("bracket")).expert_row(CHAIN, CHAIN.tasks(1, 0)[0])
    calls = {tokenizer.convert_tokens_to_ids(marker) for marker in ("<tool_call>", "</tool_call>", "<tool_response>")}
    assert not calls & set(row.ids)


def test_a_format_with_other_ends_is_refused(tokenizer: Any) -> None:
    with pytest.raises(TemplateError, match=r"got llama3, whose turns end by one of <\|eot_id\|> .*<\|im_end\|>"):
        Renderer(tokenizer, CHAIN, writer_named("llama3"))


def test_messages_in_another_format() -> None:
    call, other = (assistant_call("lookup", key=key)["tool_calls"][0] for key in ("ash", "bay"))
    dialogue = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ash + bay ?"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": [call, other]},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "7"},
    ]
    told = in_format(dialogue, CHAIN.tools, writer_named("bracket"))
    assert told == [
        {"role": "system", "content": "Be brief.\n" + how_to_call(CHAIN.tools, writer_named("bracket"))},
        {"role": "user", "content": "ash + bay ?"},
        {"role": "assistant", "content": "[lookup(key='ash'), lookup(key='bay')]"},
        {"role": "user", "content": "Result: 3\nResult: 4"},
        {"role": "assistant", "content": "7"},
    ]


@pytest.mark.parametrize("name", writers())
def test_the_system_text_tells_tools_and_syntax(name: str) -> None:
    text = how_to_call(CHAIN.tools, writer_named(name))
    assert "add(a: integer, b: integer): sum of two numbers" in text
    assert writer_named(name).write([format_call("lookup", key="...")]).strip() in text
    assert ("Final Answer:" in text) == (name == "react")


def format_call(name: str, **arguments: Any) -> Any:
    from collapsewatch.records import Call

    return Call(name, arguments)


def test_half_of_a_warm_start_is_in_the_alternate_format(tokenizer: Any) -> None:
    one, other = Renderer(tokenizer, CHAIN), Renderer(tokenizer, CHAIN, writer_named("bracket"))
    call = tokenizer.convert_tokens_to_ids("<tool_call>")
    rows = [row for batch in _expert_batches([one, other], 0, 4) for row in batch]
    assert sum(call in row.ids for row in rows) == len(rows) / 2 == 32
    # Without one nothing has changed: the same dialogues as ever, by their own seed.
    alone = [row for batch in _expert_batches([one], 0, 4) for row in batch]
    ever = [one.expert_row(CHAIN, task) for task in CHAIN.tasks(64, WARM_START_SEED + 1)]
    assert sorted(map(str, alone)) == sorted(map(str, ever))


def test_each_alternate_has_its_own_starting_model() -> None:
    kinds = [None, *map(writer_named, writers())]
    assert len({_fingerprint(CHAIN, 0, 420, kind) for kind in kinds}) == len(kinds)
