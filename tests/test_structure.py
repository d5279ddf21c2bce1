"""Structure and reason of a turn: written cases, properties, and real turns where they are at hand."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsewatch import classify
from collapsewatch.formats import FORMATS, format_named
from collapsewatch.plugins import UnknownPlugin
from collapsewatch.records import Call, Structure
from collapsewatch.structure import Reason
from tests.renderers import hermes

DATA = Path(__file__).parents[2] / "shared" / "data"
CALL = '<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call>'
MARKERS = [marker.text for marker in format_named("hermes").markers]


@pytest.mark.parametrize(
    ("text", "structure", "reason"),
    [
        (CALL, "tool_call", "ok"),
        (f"<think>\n\n</think>\n\n{CALL}\n{CALL}<|im_end|>\n", "tool_call", "ok"),
        ("<think>\nEasy.\n</think>\n\nIt is noon.<|im_end|>", "response", "ok"),
        ("42", "response", "ok"),
        ("The `user` role and user input are fine, <b>really</b>.", "response", "ok"),
        ("", "collapsed", "empty"),
        ("<|im_end|>", "collapsed", "empty"),
        ("<think>\n\n</think>\n\n<|im_end|>", "collapsed", "empty"),
        ("<tool_call><|im_end|>", "collapsed", "control_tokens_only"),
        ("user\n<tool_response>\n[]\n</tool_response>", "collapsed", "control_tokens_only"),
        ("user\nassistant\nUSER", "collapsed", "control_tokens_only"),
        ("!\n!\n!", "collapsed", "symbols_only"),
        ("I will look it up. " * 50, "collapsed", "repetition"),
        ("<think>" + "wait, " * 400, "collapsed", "repetition"),
        ("A long and varied answer of some twenty words. " + "no " * 600, "collapsed", "repetition"),
        ("\n".join([CALL] * 40), "collapsed", "repetition"),
        (f"<tool_call>\n{CALL}", "polluted", "nested_open"),
        (CALL + "</tool_call>", "polluted", "stray_close"),
        ('{"name": "now", "arguments": {}}\n</tool_call>', "polluted", "stray_close"),
        ("<think>a</think>b</think>c", "polluted", "stray_close"),
        ('<tool_response>{"x": 1}</tool_response>', "polluted", "hallucinated_response"),
        (f"{CALL}\nExecution result: 'ok'", "polluted", "hallucinated_response"),
        ("user\nI need a flight.", "polluted", "role_echo"),
        ("Done.<|im_start|>user\nThanks.", "polluted", "role_echo"),
        ('<tool_call>\n{"name": "now"', "polluted", "unclosed_call"),
        ("<think>hm<|im_end|>", "polluted", "unclosed_think"),
        ("Well. <think>hm</think> Noon.", "polluted", "misplaced_think"),
        ("<think></think><think>hm</think>Noon.", "polluted", "misplaced_think"),
        (f"{CALL}<|im_end|>{CALL}", "polluted", "after_end"),
        ("Let me call <tool_call now", "polluted", "broken_marker"),
        ("Let me call tool_call> now", "polluted", "broken_marker"),
        ("<tool_call>now()</tool_call>", "polluted", "invalid_json"),
        ('<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>', "polluted", "invalid_json"),
        ('<tool_call>[{"name": "f", "arguments": {}}]</tool_call>', "polluted", "call_not_object"),
        ('<tool_call>{"arguments": {"x": 1}}</tool_call>', "polluted", "missing_name"),
        ('<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "polluted", "arguments_not_object"),
        ('Calling {"name": "now", "arguments": {"zone": "UTC"}}', "polluted", "bare_call"),
        (f"Let me look.\n{CALL}", "polluted", "text_around_call"),
        (f"{CALL}.", "polluted", "text_around_call"),
        ("<think>I should call now.</think>\n\n<|im_end|>", "polluted", "no_answer"),
    ],
)
def test_every_reason_has_its_turn(text: str, structure: str, reason: str) -> None:
    judged = classify(text)
    assert (judged.structure, judged.reason) == (structure, reason)


@pytest.mark.parametrize(
    ("text", "stop", "reason"),
    [
        ("It is no", "length", "truncated"),
        ("It is no", "unknown", "ok"),
        ("It is noon.<|im_end|>", "length", "ok"),
        (CALL, "length", "truncated"),
        (CALL, "eos", "ok"),
        ('<tool_call>{"name": "no', "length", "truncated"),
        ('<tool_call>{"name": "no', "eos", "unclosed_call"),
        ("<think>Let me see", "length", "truncated"),
        (f"<tool_call>{CALL}", "length", "nested_open"),
    ],
)
def test_the_stop_reason_counts(text: str, stop: str, reason: str) -> None:
    assert classify(text, stop=stop).reason == reason  # type: ignore[arg-type]


TOOL = {
    "type": "function",
    "function": {
        "name": "book",
        "parameters": {
            "type": "object",
            "properties": {
                "seats": {"type": "integer"},
                "class": {"enum": ["economy", "business"]},
                "names": {"type": "array", "items": {"type": ["string", "null"]}},
                "pay": {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"card": {}}}]},
            },
            "required": ["seats"],
        },
    },
}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"seats": 2}, "ok"),
        ({"seats": 2, "class": "economy", "names": ["Ada", None], "pay": {"card": 1}}, "ok"),
        ({}, "wrong_argument"),
        ({"seats": 2.0}, "ok"),
        ({"seats": 2.5}, "wrong_argument"),
        ({"seats": "2"}, "wrong_argument"),
        ({"seats": True}, "wrong_argument"),
        ({"seats": 2, "class": "first"}, "wrong_argument"),
        ({"seats": 2, "names": [1]}, "wrong_argument"),
        ({"seats": 2, "pay": 3}, "wrong_argument"),
        ({"seats": 2, "pay": {"cash": 1}}, "wrong_argument"),
        ({"seats": 2, "window": True}, "wrong_argument"),
    ],
)
def test_arguments_are_held_against_the_schema(arguments: dict[str, object], reason: str) -> None:
    call = Call("book", arguments)
    judged = classify("".join(hermes([call], "", None)), tools=[TOOL])
    assert judged.reason == reason
    assert judged.calls == (call,)  # it parses strictly, whatever the tools say
    assert judged.structure.healthy == (reason == "ok")


@pytest.mark.parametrize(("seats", "reason"), [("2", "ok"), ("two", "wrong_argument"), ('"2"', "wrong_argument")])
def test_a_value_without_a_type_may_be_meant_as_text(seats: str, reason: str) -> None:
    # `class` is declared by its choices, `pay` as a string or an object: 12 is neither, its text is.
    given = f"<parameter=seats>{seats}</parameter><parameter=pay>12</parameter>"
    call = f"<tool_call><function=book>{given}</function></tool_call>"
    assert classify(call, "qwen3_coder", tools=[TOOL]).reason == reason
    assert classify(call.replace("pay", "class"), "qwen3_coder", tools=[TOOL]).reason == "wrong_argument"


def test_unknown_tools_are_named_by_a_list_of_names() -> None:
    assert classify(CALL, tools=["book", "now"]).reason == "ok"
    assert classify(CALL, tools=["book"]).reason == "unknown_tool"
    assert classify(CALL, tools=[TOOL["function"]]).reason == "unknown_tool"  # type: ignore[list-item]


def test_attempts_count_opened_calls() -> None:
    judged = classify(f'{CALL}\n<tool_call>{{"name": 3}}</tool_call>\n<tool_call>{{"name"')
    assert (len(judged.calls), judged.attempted) == (1, 3)
    assert classify("It is noon.").attempted == 0


def test_reasons_are_split_in_two_families_beside_ok() -> None:
    families = Counter(reason.family for reason in Reason)
    assert set(families) == {"structural", "content", "ok"} and families["ok"] == 1
    assert Reason.INVALID_JSON.family == "content" and Reason.NESTED_OPEN.family == "structural"


def test_unknown_format_lists_the_choices() -> None:
    with pytest.raises(UnknownPlugin, match="hermes"):
        classify("hello", format="hermess")


soup = st.lists(st.sampled_from([*MARKERS, CALL, "user\n", "{", '"', "\n", "x"]) | st.text(max_size=4)).map("".join)


@settings(max_examples=300)
@given(st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")) | soup)
def test_any_text_is_judged(text: str) -> None:
    for stop in ("eos", "length", "unknown"):
        judged = classify(text, stop=stop)  # type: ignore[arg-type]
        assert judged.structure.healthy == (judged.reason == "ok")
        assert len(judged.calls) <= judged.attempted
        assert (judged.structure is Structure.TOOL_CALL) <= (0 < len(judged.calls) == judged.attempted)


@pytest.mark.parametrize("unit", ["<tool_call>", "!\n", "no ", "<tool_call>[", '{"a":', "\n<think></think>\n"])
def test_ten_megabytes_of_one_token_are_no_trouble(unit: str) -> None:
    # Anything quadratic would not come back from this within the life of the test run.
    assert classify(unit * (10_000_000 // len(unit))).structure == "collapsed"


def test_nesting_beyond_the_interpreter_is_invalid_json() -> None:
    body = "".join(f'{{"{key * 7919 % 100_003}":' for key in range(20_000))
    assert classify(f"<tool_call>{body}</tool_call>").reason == "invalid_json"


def test_structure_agrees_with_the_labels_of_real_turns() -> None:
    path = DATA / "transcripts" / "ace_dialogues_dev.jsonl"
    if not path.exists():
        pytest.skip(f"no labelled turns at {path}")
    wanted = {"healthy_call": "tool_call", "healthy_response": "response"}
    turns, agreed = Counter[str](), Counter[str]()
    for line in path.read_text().splitlines():
        row = json.loads(line)
        turns[row["model"]] += 1
        agreed[row["model"]] += classify(row["text"]).structure == wanted.get(row["label"], row["label"])
    assert turns.total() > 3000
    assert all(agreed[model] >= 0.97 * turns[model] for model in turns), agreed


FORMAT_OF = {
    "deepseek_v3": "deepseek_v3",
    "deepseekv3": "deepseek_v3",
    "deepseekv31": "deepseek_v31",
    "deepseekv32": "deepseek_v32",
    "deepseekv4": "deepseek_v32",
    "functiongemma": "gemma",
    "gemma4": "gemma",
    "glm4_moe": "glm4",
    "granite": "granite",
    "granite-20b-fc": "granite",
    "hermes": "hermes",
    "kimi_k2": "kimi_k2",
    "lfm2": "lfm2",
    "llama3_json": "llama3",
    "llama4_pythonic": "llama4",
    "mistral": "mistral",
    "olmo3": "olmo3",
    "phi4_mini_json": "phi4_mini",
    "pythonic": "llama4",
    "qwen3coder": "qwen3_coder",
    "step3p5": "qwen3_coder",
}
# What the vectors' kinds say of them; `bare`, `fallback`, `missing` and `invalid` are failures that the engine mends.
BROKEN = re.compile("malformed|invalid|missing|bare_|fallback|three_mixed|filtered")
NO_CALL = re.compile("no_tool|no_json|just_forward|plain_text")


def test_parser_vectors_of_a_serving_engine() -> None:
    path = DATA / "tool_calls" / "vectors_dev.jsonl"
    if not path.exists():
        pytest.skip(f"no tool-call vectors at {path}")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    judged = [(row, classify(row["text"], FORMAT_OF[row["parser"]])) for row in rows if row["parser"] in FORMAT_OF]
    assert len(judged) >= 75
    for row, turn in judged:
        if BROKEN.search(row["kind"]):
            assert not turn.structure.healthy, row
        elif NO_CALL.search(row["kind"]):
            assert (turn.structure, turn.calls) == ("response", ()), row
        else:
            assert turn.calls and len(turn.calls) == turn.attempted, row
            assert turn.reason in ("ok", "text_around_call"), row
    for row in rows:  # whatever the format, nothing raises
        for name in FORMATS:
            classify(row["text"], name)


def test_calls_in_vectors_of_json_are_the_json() -> None:
    path = DATA / "tool_calls" / "vectors_dev.jsonl"
    if not path.exists():
        pytest.skip(f"no tool-call vectors at {path}")
    texts = [row["text"] for row in map(json.loads, path.read_text().splitlines()) if row["parser"] == "hermes"]
    assert len(texts) >= 6
    for text in texts:
        bodies = re.findall(r"<tool_call>\s*(.*?)\s*</tool_call>", text, re.DOTALL)
        judged = classify(text)
        assert [{"name": c.name, "arguments": c.arguments} for c in judged.calls] == [json.loads(b) for b in bodies]
        outside = re.sub(r"<tool_call>.*?</tool_call>", "", text, flags=re.DOTALL)
        assert judged.structure.healthy == ("<tool_call>" not in outside and not (bodies and outside.strip()))
