"""The chat format of a tokenizer, found by rendering sentinels through its own chat template."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from collapsewatch import format_for
from collapsewatch.formats import FORMATS, format_named
from collapsewatch.formats.detect import bind
from collapsewatch.plugins import UnknownPlugin
from tests.renderers import byte_tokenizer

EVERY = sorted({marker.text for name in FORMATS for marker in format_named(name).markers})

# Chat templates that TRL ships, and whether their prompt opens the reasoning block.
SHIPPED = [
    ("qwen2_5", "hermes", False),
    ("qwen3", "hermes", False),
    ("qwen3_instruct_2507", "hermes", False),
    ("qwen3_vl", "hermes", False),
    ("qwen3_5_nothink", "qwen3_coder", False),
    ("qwen3_5_think", "qwen3_coder", True),
    ("qwen3_6", "qwen3_coder", True),
    ("qwen3_8", "qwen3_coder", True),
    ("nemotron_3_nano", "qwen3_coder", True),
    ("nemotron_3_ultra", "qwen3_coder", True),
    ("deepseekv3", "deepseek_v3", True),
    ("glm4moe", "glm4", False),
    ("gptoss", "gpt_oss", False),
    ("llama3_1", "llama3", False),
    ("llama3_2", "llama3", False),
    ("gemma4", "gemma", False),
    ("lfm2_v2", "lfm2", False),
    ("lfm2_2_5", "lfm2", False),
]


def with_template(template: str, markers: list[str] | None = None) -> Any:
    tokenizer = byte_tokenizer(EVERY if markers is None else markers)
    tokenizer.chat_template = template
    return tokenizer


def shipped(name: str) -> str:
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("trl, which ships the templates, is not installed")
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text()


@pytest.mark.parametrize(("template", "name", "thinking"), SHIPPED)
def test_the_format_a_template_writes_is_found(template: str, name: str, thinking: bool) -> None:
    found = format_for(with_template(shipped(template)))
    assert (found.name, found.thinking, found.notes) == (name, thinking, ())


def test_what_is_no_token_is_said() -> None:
    found = format_for(with_template(shipped("qwen3"), ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]))
    assert found.name == "hermes" and {"<tool_call>", "</tool_call>"} <= set(found.missing)
    assert found.ids.tolist() and "<|im_end|>" in found.tokens


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def dialogue(header: str, call: str, end: str, prompt: str = "") -> str:
    """A chat template in miniature, as these families write it."""
    called = f"{{% set f = m.tool_calls[0].function %}}{call}"
    told = f"{{% if m.tool_calls %}}{called}{{% else %}}{{{{ m.content }}}}{{% endif %}}"
    asked = f"{{% if add_generation_prompt %}}{header.replace('m.role', repr('assistant'))}{prompt}{{% endif %}}"
    return f"{{% for m in messages %}}{header}{told}{end}{{% endfor %}}{asked}"


STATED = "{{ {'name': f.name, 'parameters': f.arguments} | tojson }}"
LISTED = "[{{ {'name': f.name, 'arguments': f.arguments} | tojson }}]"
V31 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ f.name }}<｜tool▁sep｜>{{ f.arguments | tojson }}<｜tool▁call▁end｜>"
)
LLAMA4 = dialogue(
    "<|header_start|>{{ m.role }}<|header_end|>\n\n", f"<|python_start|><|python_end|>{STATED}", "<|eot|>"
)
GRANITE = dialogue("<|start_of_role|>{{ m.role }}<|end_of_role|>", f"<|tool_call|>{LISTED}", "<|end_of_text|>\n")
THINKS = dialogue(
    "<｜Assistant｜>", f"</think>{V31}<｜tool▁calls▁end｜>", "<｜end▁of▁sentence｜>", prompt="<think>"
)  # history holds but the end of the block that the prompt opens


@pytest.mark.parametrize(
    ("template", "name", "thinking"),
    [(LLAMA4, "llama4", False), (GRANITE, "granite", False), (THINKS, "deepseek_v31", True)],
)
def test_templates_with_a_turn_of_their_own_are_read(template: str, name: str, thinking: bool) -> None:
    found = format_for(with_template(template))
    assert (found.name, found.thinking, found.notes) == (name, thinking, ())


def test_another_familys_vocabulary_does_not_outweigh_the_template() -> None:
    llama3 = [marker.text for marker in format_named("llama3").markers]
    assert format_for(with_template(CHATML, [*llama3, "<|im_end|>"])).name == "hermes"


@pytest.mark.parametrize(("template", "said"), [(CHATML, "writes no tool calls"), (None, "is absent")])
def test_without_calls_in_the_template_the_vocabulary_decides_and_it_is_said(template: Any, said: str) -> None:
    tokenizer = with_template(template, ["<tool_call>", "</tool_call>", "<|im_start|>", "<|im_end|>"])
    found = format_for(tokenizer)
    assert found.name == "hermes" and len(found.notes) == 1 and said in found.notes[0]
    with pytest.raises(ValueError, match="no control token of any format"):
        format_for(with_template(template, ["<other>"]))


@pytest.mark.parametrize(("template", "name"), [("phi3", "phi4_mini"), ("gemma3", "gemma")])
def test_without_calls_in_the_template_the_end_of_a_reply_counts(template: str, name: str) -> None:
    found = format_for(with_template(shipped(template)))  # all markers of all formats are in the vocabulary
    assert found.name == name and "writes no tool calls" in found.notes[0]


def test_a_call_that_no_format_reads_is_refused_with_what_it_looks_like() -> None:
    calls = "{% for c in m.tool_calls %}CALL {{ c.function.name }} WITH {{ c.function.arguments }}{% endfor %}"
    with pytest.raises(ValueError, match=r"writes a call as .*CALL cw_lookup WITH .*expected one of .*hermes"):
        format_for(with_template(CHATML.replace("{{ m.content }}", "{{ m.content }}" + calls)))


def test_options_of_the_template_count() -> None:
    opened = "{% if add_generation_prompt %}<|im_start|>assistant\n{% if thinks %}<think>\n{% endif %}{% endif %}"
    tokenizer = with_template(CHATML + opened)
    assert not bind("hermes", tokenizer).thinking
    bound = bind("hermes", tokenizer, thinks=True)
    assert bound.thinking
    turn = tokenizer.encode("Easy.\n</think>\n\nIt is noon.<|im_end|>", add_special_tokens=False)
    assert bound.classify_ids(turn).reason == "ok"
    assert bind("hermes", tokenizer).classify_ids(turn).reason == "stray_close"
    slots = bound.slots([turn], [[True] * len(turn)])
    assert slots.alive.all() and slots.slot[0, 0] == slots.slot[0, 5]  # inside the reasoning from the first token


def test_a_processor_lends_its_tokenizer() -> None:
    class Processor:
        def __init__(self, tokenizer: Any) -> None:
            self.tokenizer, self.chat_template = tokenizer, tokenizer.chat_template
            self.apply_chat_template = tokenizer.apply_chat_template

    assert format_for(Processor(with_template(shipped("qwen3")))).name == "hermes"


def test_a_name_that_is_no_format_lists_the_choices() -> None:
    with pytest.raises(UnknownPlugin, match="hermes"):
        bind("nonesuch", with_template(CHATML))
