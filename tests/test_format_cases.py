"""Turns that were once read wrongly, or that their families' documents show: what each is, and why."""

from __future__ import annotations

from typing import Any

import pytest

from collapsewatch import classify

DS_BEGIN, DS_CALL, DS_SEP = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
DS_END = "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
KIMI = "<|tool_calls_section_begin|><|tool_call_begin|>{}<|tool_call_argument_begin|>{{}}<|tool_call_end|>{}".format
DSML = '<｜DSML｜{}>\n<｜DSML｜invoke name="f">\n</｜DSML｜invoke>\n</｜DSML｜{}>'
KIMI_END = "<|tool_calls_section_end|>"


@pytest.mark.parametrize(
    ("name", "text", "calls"),
    [
        # The model card's own example goes on behind its call.
        ("lfm2", "<|tool_call_start|>[now()]<|tool_call_end|>Checking the time.<|im_end|>", [("now", {})]),
        ("lfm2", '<|tool_call_start|>[{"name": "f", "arguments": {"a": 1}}]<|tool_call_end|>', [("f", {"a": 1})]),
        # Nothing but the content of a turn with calls, be it none, is between the markers in the released template.
        ("llama4", '<|python_start|><|python_end|>{"name": "f", "parameters": {"a": 1}}<|eot|>', [("f", {"a": 1})]),
        ("llama4", '{"name": "f", "parameters": {}}<|eot|>', [("f", {})]),
        ("llama4", "[f(a=(1, 2), b=(3), c=())]<|eot|>", [("f", {"a": [1, 2], "b": 3, "c": []})]),
        (
            "qwen3_coder",
            "<tool_call><function=f><parameter=a>\nTrue\n</parameter></function></tool_call>",
            [("f", {"a": True})],
        ),
        ("react", "Action: search\nAction Input: tides in Brest", [("search", {"input": "tides in Brest"})]),
        ("kimi_k2", KIMI("functions.f:0", KIMI_END), [("f", {})]),
    ],
)
def test_a_call_of_the_family_is_one(name: str, text: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    turn = classify(text, name)
    assert (turn.structure, turn.reason) == ("tool_call", "ok")
    assert [(call.name, call.arguments) for call in turn.calls] == calls


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        # Prose is no name.
        ("glm4", "<tool_call>I need to check the weather first.</tool_call>", "invalid_syntax"),
        ("qwen3_coder", "<tool_call><function=look it up></function></tool_call>", "invalid_syntax"),
        ("kimi_k2", KIMI("functions.look it up:0", KIMI_END), "invalid_syntax"),
        ("deepseek_v31", f"{DS_BEGIN}{DS_CALL}look it up{DS_SEP}{{}}{DS_END}", "invalid_syntax"),
        # A call in the JSON that every family falls back to, its keys in any order.
        ("hermes", '{"arguments": {"a": 1}, "name": "f"}', "bare_call"),
        ("hermes", '{"type": "function", "name": "f", "arguments": {}}', "bare_call"),
        ("kimi_k2", '{"name": "f", "arguments": {}}', "bare_call"),
        ("deepseek_v3", '{"name": "f", "arguments": {}}', "bare_call"),
        ("qwen3_coder", '{"name": "f", "arguments": {}}', "bare_call"),
        ("lfm2", "[f(a=1)]", "bare_call"),
        ("llama4", "f(a=1)", "bare_call"),
        # Two spellings of one family, mixed up.
        ("phi4_mini", '<|tool_call|>functools[{"name": "f", "arguments": {}}]<|/tool_call|>', "nested_open"),
        ("deepseek_v32", DSML.format("function_calls", "tool_calls"), "stray_close"),
        ("llama3", '{"name": "f", "parameters": {}}<|eom_id|>', "stray_close"),
        # No character has this number.
        ("llama4", r'[f(a="\UFFFFFFFF")]', "invalid_syntax"),
    ],
)
def test_what_its_family_would_not_write_is_polluted(name: str, text: str, reason: str) -> None:
    turn = classify(text, name)
    assert (turn.structure, turn.reason) == ("polluted", reason)


@pytest.mark.parametrize("text", ["The value of f(x=1) is 3.", "See f(x): it is defined.", "[Note] Done."])
def test_prose_about_functions_is_prose(text: str) -> None:
    assert classify(text, "bracket").reason == "ok"
