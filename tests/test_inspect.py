"""Inspection of checkpoints: sampling, repaired decoding, the verdict; and a format that was broken on purpose."""

from __future__ import annotations

import copy
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from collapsewatch.formats import format_named, writer_named
from collapsewatch.interventions.sft import TokenRow, sft_update
from collapsewatch.records import Structure
from collapsewatch.trainer.dialogues import Renderer
from collapsewatch.trainer.environments.chain import Chain
from collapsewatch.trainer.inspected import judge, print_views
from collapsewatch.trainer.inspection import TASK_SEED, Inspector, View
from collapsewatch.trainer.models import ModelError, tiny_model, tiny_tokenizer
from collapsewatch.trainer.sampling import OnlyLegal, Repaired, Sampler, opener

CHAIN = Chain()
TASKS = 6


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer(CHAIN)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "<tool_call>\n"),
        ("qwen3_coder", "<tool_call>\n"),
        ("react", "Action:"),
        ("bracket", ""),
        ("gemma", ""),
    ],
)
def test_what_opens_a_call(name: str, text: str) -> None:
    assert opener(format_named(name)) == text


def greedy(model: Any, prompt: list[int], end: int, most: int) -> list[int]:
    """The likeliest turn, one token at a time, without batch, padding or cache."""
    ids = list(prompt)
    for _ in range(most):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == end:
            break
    return ids[len(prompt) :]


def test_each_prompt_of_a_batch_is_continued_as_if_it_were_alone(tokenizer: Any) -> None:
    model = tiny_model(tokenizer, 5).eval()
    model.model.norm.weight.data *= 1e4  # so sure that sampling takes the likeliest
    renderer = Renderer(tokenizer, CHAIN)
    prompts = [renderer.prompt(task.prompt) for task in CHAIN.tasks(5, 2)]
    sampled, logprobs = Sampler(model, renderer, 9)(prompts)
    assert len({len(prompt) for prompt in prompts}) > 1 and logprobs is None
    assert sampled == [greedy(model, prompt, renderer.end_id, 9) for prompt in prompts]
    # One that ends: the end token is kept, nothing after it.
    ending = [*prompts[0], *sampled[0][:3]]
    stops = copy.copy(renderer)
    stops.end_id = sampled[0][3]
    assert Sampler(model, stops, 9)([ending]) == ([[sampled[0][3]]], None)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_only_what_may_follow_can_be_drawn(tokenizer: Any, data: st.DataObject) -> None:
    bound = format_named("hermes").bind(tokenizer)
    plain = tokenizer('{"name": 1}\n', add_special_tokens=False)["input_ids"]
    own = data.draw(st.lists(st.sampled_from([*bound.ids.tolist(), *plain]), max_size=6))
    prompt = data.draw(st.lists(st.sampled_from(plain), min_size=1, max_size=3))
    scores = OnlyLegal(bound, len(prompt))(torch.tensor([prompt + own]), torch.zeros(1, len(tokenizer)))[0]
    before = bound.slots([[*own, plain[0]]], [[True] * (len(own) + 1)])
    for token in bound.ids.tolist():
        # The oracle: nothing behind an illegal token is alive.
        arrays = bound.slots([[*own, token, plain[0]]], [[True] * (len(own) + 2)])
        fits = arrays.alive[0, -1] or not before.alive[0, -1] or arrays.turn[0, -1] > arrays.turn[0, len(own)]
        if scores[token] == 0:
            assert fits or not before.alive[0, -1]
    assert torch.isneginf(scores).sum() + (scores == 0).sum() == len(scores)
    assert (scores[plain] == 0).all()  # nothing but control tokens is banned


@pytest.mark.parametrize(
    ("said", "may"),
    [
        ("", {"<tool_call>"}),
        ("<tool_call>\n", set()),
        ('<tool_call>\n{"name"', {"</tool_call>"}),
        ("<tool_call>\n{}\n</tool_call>", {"<tool_call>", "<|im_end|>", "<|endoftext|>"}),
        ("The sum", {"<|im_end|>", "<|endoftext|>"}),
    ],
)
def test_what_may_follow_in_hermes(tokenizer: Any, said: str, may: set[str]) -> None:
    bound = format_named("hermes").bind(tokenizer)
    ids = tokenizer("?" + said, add_special_tokens=False)["input_ids"]
    first = len(tokenizer("?", add_special_tokens=False)["input_ids"])
    scores = OnlyLegal(bound, first)(torch.tensor([ids]), torch.zeros(1, len(tokenizer)))[0]
    found = {token for token, index in zip(bound.tokens, bound.ids, strict=True) if scores[index] == 0}
    assert found - {"<think>", "</think>"} == may


def test_repaired_turns_are_legal_and_open_calls_where_they_are_due(tokenizer: Any) -> None:
    model, renderer = tiny_model(tokenizer, 6).eval(), Renderer(tokenizer, CHAIN)
    model.get_input_embeddings().weight.data[renderer.end_id] *= 20  # an end wherever it is let
    bound = format_named("hermes").bind(tokenizer)
    head = tokenizer("<tool_call>\n", add_special_tokens=False)["input_ids"]
    generate = Repaired(Sampler(model, renderer, 12), bound, head, [True, False])
    prompts = [renderer.prompt(task.prompt) for task in CHAIN.tasks(4, 2)]
    torch.manual_seed(0)
    call, answer, beyond = (generate(prompts)[0] for _ in range(3))
    assert all(ids[: len(head)] == head and len(ids) > len(head) for ids in call)
    assert any(ids[: len(head)] != head for ids in answer) and any(ids[: len(head)] != head for ids in beyond)
    for ids in [*call, *answer, *beyond]:
        assert bound.slots([ids], [[True] * len(ids)]).alive.all()


def view(name: str, reward: float, healthy: float) -> View:
    shares = dict.fromkeys(Structure, 0.0) | {Structure.TOOL_CALL: healthy, Structure.POLLUTED: 1 - healthy}
    return View(name, "bracket" if name == "alternate" else "hermes", 32, reward, shares, {}, None, {}, ())


def views(trained: tuple[float, float], alternate: float, repaired: float) -> list[View]:
    return [view("trained", *trained), view("alternate", alternate, 1.0), view("repaired", repaired, 1.0)]


SOUND = views((0.8, 0.95), 0.6, 0.8)


@pytest.mark.parametrize(
    ("own", "reference", "expected"),
    [
        (SOUND, SOUND, ("held", "intact")),
        (views((0.0, 0.1), 0.59, 0.1), SOUND, ("lost", "intact")),
        (views((0.0, 0.1), 0.0, 0.75), SOUND, ("lost", "intact")),
        (views((0.0, 0.1), 0.0, 0.1), SOUND, ("lost", "lost")),
        (views((0.0, 0.1), 0.35, 0.1), SOUND, ("lost", "unknown")),
        (views((0.1, 0.95), 0.1, 0.1), SOUND, ("held", "lost")),
        (views((0.0, 0.1), 0.6, 0.1), None, ("lost", "intact")),
        (views((0.0, 0.1), 0.1, 0.1), None, ("lost", "unknown")),
        (SOUND, None, ("held", "intact")),
    ],
)
def test_the_verdict(own: list[View], reference: list[View] | None, expected: tuple[str, str]) -> None:
    judged = judge(own, reference)
    assert (judged.format, judged.capability) == expected
    word = "worn" if expected[1] == "unknown" and reference else expected[1]
    assert judged.sentence.startswith(f"capability {word}, format {expected[0]}: ")
    assert ("--reference" in judged.sentence) == (reference is None and expected[1] == "unknown")


@pytest.fixture(scope="module")
def checkpoints(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model that knows the inspected tasks by heart in two formats; and the same, its calls ended once opened.

    The second is taught what the paper's collapsed model writes, `<tool_call><|im_end|>`, in the first format alone.
    """
    torch.set_num_threads(1)
    tasks = CHAIN.tasks(TASKS, TASK_SEED)
    renderers = [Renderer(tokenizer, CHAIN), Renderer(tokenizer, CHAIN, writer_named("bracket"))]
    rows = [renderer.expert_row(CHAIN, task) for renderer in renderers for task in tasks]
    model = tiny_model(tokenizer, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        sft_update(model, optimizer, rows, tokenizer.pad_token_id)
    folders = tuple(tmp_path_factory.mktemp("checkpoints") / name for name in ("sound", "broken"))
    opens, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<tool_call>", "<|im_end|>"))
    spoilt = [spoil(row, opens, end) for row in rows[:TASKS]]
    for folder, updates in zip(folders, (0, 12), strict=True):
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
        for _ in range(updates):
            sft_update(model, optimizer, spoilt, tokenizer.pad_token_id)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders  # type: ignore[return-value]


def spoil(row: TokenRow, opens: int, end: int) -> TokenRow:
    """The dialogue up to its first call, which ends as soon as it is opened."""
    at = list(row.ids).index(opens)
    return TokenRow([*row.ids[: at + 1], end], [0] * at + [1, 1])


@pytest.mark.slow
def test_a_format_that_was_broken_is_told_from_a_capability_that_was(checkpoints: tuple[Path, Path]) -> None:
    sound, broken = checkpoints
    inspector = Inspector("chain", "hermes", "bracket", TASKS, turn_tokens=32)
    reference, own = inspector.views(str(sound)), inspector.views(str(broken))
    assert [v.reward >= 0.8 for v in reference] == [True] * 3
    trained, alternate, repaired = own
    assert trained.reward <= 0.2 and trained.healthy <= 0.5 and trained.structures[Structure.COLLAPSED] >= 0.5
    assert alternate.reward >= 0.8 or repaired.reward >= 0.8
    for against in (reference, None):
        judged = judge(own, against)
        assert (judged.format, judged.capability) == ("lost", "intact"), judged.sentence
    assert judge(reference, reference)[:2] == ("held", "intact")
    # The probe sees the spike where the paper looks for it: right after an opened call.
    (spike,) = [row for row in trained.control if (row.token, row.slot) == ("<|im_end|>", "open")]
    assert not spike.legal and spike.mean > 0.3
    kept = trained.probes["fixed/content"] / reference[0].probes["fixed/content"]
    assert trained.probes["fixed/format"] < 0.5 < 0.8 < min(alternate.probes["alternate/format"], kept)
    assert repaired.control == () and repaired.probes == {}
    text = io.StringIO()
    print_views(own, reference, judge(own, reference), Console(file=text, width=200))
    said = " ".join(text.getvalue().split())
    assert "capability intact, format lost" in said and "with repaired calls" in said
    assert re.search(r"open <\|im_end\|> illegal 0\.0\d\d -> 0\.[3-9]", said)
    # The same draws for everybody: looking twice shows the same.
    again = inspector.views(str(broken))
    assert [replace(v, control=()) for v in again] == [replace(v, control=()) for v in own]


def inspect(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "collapsewatch", "inspect", *args], capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_prints_json(checkpoints: tuple[Path, Path]) -> None:
    sound, broken = map(str, checkpoints)
    done = inspect(broken, "--tasks", str(TASKS), "--reference", sound, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert list(told) == ["model", "environment", "format", "capability", "said", "views", "reference"]
    assert (told["format"], told["capability"]) == ("lost", "intact")
    assert [(v["name"], v["format"]) for v in told["views"]] == [
        ("trained", "hermes"), ("alternate", "bracket"), ("repaired", "hermes"),
    ]  # fmt: skip
    assert np.isclose(sum(told["views"][0]["structures"].values()), 1.0)
    assert told["reference"]["model"] == sound
    assert [v["name"] for v in told["reference"]["views"]] == ["trained", "alternate", "repaired"]


def test_a_wrong_input_is_one_line() -> None:
    done = inspect("tiny", "--alternate", "gemma")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: chat format: got 'gemma', which only reads, expected one of hermes, ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"alternate": "bracked"}, "chat format: got 'bracked'"),
        ({"chat_format": "hermess"}, "chat format: got 'hermess'"),
        ({"environment": "chian"}, "environment: got 'chian'"),
    ],
)
def test_a_name_that_nothing_has_is_refused(wrong: dict[str, str], error: str) -> None:
    given = {"environment": "chain", "chat_format": "auto", "alternate": "bracket", "tasks": 1} | wrong
    with pytest.raises(ValueError, match=error):
        Inspector(**given)  # type: ignore[arg-type]


def test_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="model: got 'nowhere'"):
        Inspector("chain", "auto", "bracket", 1).views("nowhere")
