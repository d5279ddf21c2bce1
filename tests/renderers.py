"""How each chat format's family writes a turn: the table that the contract tests of the formats run over.

A renderer takes (calls, prose, thought) to the parts of a turn, markers at the odd indices, as the family's own
template writes them: no calls is a reply in `prose`; prose beside calls is a preamble; `thought` None is no
reasoning block. What a format cannot carry is left out of its strategies, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from collapsewatch.formats import format_named
from collapsewatch.formats.literals import SPACED
from collapsewatch.records import Call

Parts = list[str]
Strategy = st.SearchStrategy[Any]


@dataclass(frozen=True)
class Family:
    """One row of the table."""

    render: Callable[[Sequence[Call], str, str | None], Parts]
    names: Strategy
    arguments: Strategy  # dicts
    thinks: bool = True  # has reasoning blocks
    parallel: bool = True
    templates: tuple[str, ...] = ()  # of those that TRL ships

    @property
    def calls(self) -> Strategy:
        return st.lists(st.builds(Call, self.names, self.arguments), min_size=1, max_size=3 if self.parallel else 1)


def free_text(name: str, **limits: Any) -> st.SearchStrategy[str]:
    """Text without the format's markers: as text, a marker is a marker wherever it stands."""
    markers = [marker.text for marker in format_named(name).markers]
    return st.text(**limits).filter(lambda text: not any(marker in text for marker in markers))


def json_arguments(name: str, keys: Strategy | None = None) -> Strategy:
    """Arguments of any JSON value."""
    texts = free_text(name)
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=6,
    )
    return st.dictionaries(texts if keys is None else keys, values, max_size=4)


def byte_tokenizer(markers: list[str]) -> Any:
    """A byte-level tokenizer in which each of `markers` is one token, after `<unk>` at id 0."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("{", '"'), ("Ġ", "Ġ")]
    words = ["<unk>", *alphabet, *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken(m, special=m.startswith("<|"), normalized=False) for m in markers])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


WORDS = ["weather", "in", "Zürich", "is", "21", "°C,", "晴れ", "맑음", "☀", "a", "<", ">", "|"]
PROSE = st.lists(st.sampled_from(WORDS), min_size=3, max_size=20).map(lambda words: "It is: " + " ".join(words))


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def hermes(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    parts = [""] if thought is None else ["", "<think>", f"\n{thought}\n", "</think>", "\n\n"]
    parts[-1] += prose
    for index, call in enumerate(calls):
        parts[-1] += "\n" if index or prose else ""
        parts += ["<tool_call>", f"\n{dumps({'name': call.name, 'arguments': call.arguments})}\n", "</tool_call>", ""]
    return [*parts, "<|im_end|>", ""]


def reads_as_json(text: str) -> bool:
    try:
        return not isinstance(json.loads(text, parse_constant=str), str)
    except ValueError:
        return False


# A tag of the syntax ends a value; a value without a type is a string only where it is no other JSON; and line
# breaks end a name.
TAGGED = free_text("qwen3_coder").filter(
    lambda text: not any(c in text for c in "<>") and not reads_as_json(text) and text not in ("True", "False", "None")
)
TAG_NAME = TAGGED.filter(lambda text: text.strip() and "\n" not in text)


def tagged_arguments(keys: Strategy = TAG_NAME, texts: Strategy = TAGGED) -> Strategy:
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: (
            st.lists(inner | texts, max_size=3) | st.dictionaries(texts.filter(bool), inner | texts, max_size=3)
        ),
        max_leaves=6,
    )
    return st.dictionaries(keys, values | texts, max_size=4)


def qwen3_coder(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    parts = [""] if thought is None else ["", "<think>", f"\n{thought}\n", "</think>", "\n\n"]
    parts[-1] += prose
    for index, call in enumerate(calls):
        parts[-1] += "\n" if index else "\n\n" if prose else ""
        given = {key: value if isinstance(value, str) else dumps(value) for key, value in call.arguments.items()}
        inside = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in given.items())
        parts += ["<tool_call>", f"\n<function={call.name}>\n{inside}</function>\n", "</tool_call>", ""]
    return [*parts, "<|im_end|>", ""]


# Keys and names stand without quotes.
GEMMA_KEY = free_text("gemma", min_size=1).filter(lambda key: key == key.strip() and not set(key) & set('{}[],:"'))
GEMMA_NAME = GEMMA_KEY.filter(lambda name: not any(c.isspace() for c in name))


def gemma_arguments() -> Strategy:
    values = st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | free_text("gemma"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(GEMMA_KEY, inner, max_size=3),
        max_leaves=6,
    )
    return st.dictionaries(GEMMA_KEY, values, max_size=4)


def gemma_body(value: Any, quote: str) -> Parts:
    """A value, quotes at the odd indices."""
    if isinstance(value, str):
        return ["", quote, value, quote, ""]
    if not isinstance(value, dict | list):
        return [dumps(value)]
    pairs = list(value.items()) if isinstance(value, dict) else [(None, item) for item in value]
    parts = ["{" if isinstance(value, dict) else "["]
    for index, (key, item) in enumerate(pairs):
        parts[-1] += ("," if index else "") + ("" if key is None else f"{key}:")
        first, *rest = gemma_body(item, quote)
        parts = [*parts[:-1], parts[-1] + first, *rest]
    parts[-1] += "}" if isinstance(value, dict) else "]"
    return parts


def gemma(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    parts = [prose] if thought is None else ["", "<|channel>", f"thought\n{thought}\n", "<channel|>", prose]
    for call in calls:
        first, *rest = gemma_body(call.arguments, '<|"|>')
        parts += ["<|tool_call>", f"call:{call.name}{first}", *rest, "<tool_call|>", ""]
    return [*parts, "<|tool_response>" if calls else "<turn|>", ""]


def function_gemma(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    parts = [prose]
    for call in calls:
        first, *rest = gemma_body(call.arguments, "<escape>")
        parts += ["<start_function_call>", f"call:{call.name}{first}", *rest, "<end_function_call>", ""]
    return [*parts, "<start_function_response>" if calls else "<end_of_turn>", ""]


REACT_NAME = free_text("react").filter(lambda name: name == name.strip() != "" and not set(name) & set('\n:{}[]()<>"'))


def react(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    parts = ["" if thought is None else f"Thought: {thought}\n"]
    if prose:
        parts = [parts[0] + prose + "\n"] if calls else [*parts, "Final Answer:", f" {prose}\n"]
    for call in calls:
        parts += ["Action:", f" {call.name}\n", "Action Input:", f" {dumps(call.arguments)}\n"]
    return [*parts, "<|im_end|>", ""]


def react_plain(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    parts = react(calls, prose, thought)
    for call in calls:
        (given,) = call.arguments.values()
        parts[parts.index("Action Input:") + 1] = f" {given}\n"
    return parts


PLAIN = free_text("react").filter(lambda text: text == text.strip() != "" and text[0] not in "{[")
QUERY = free_text("react").filter(lambda query: query == query.strip() != "").map(lambda query: {"query": query})


def search_r1(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    parts = [""] if thought is None else ["", "<think>", f" {thought} ", "</think>", "\n"]
    if prose:
        parts = [*parts[:-1], parts[-1] + prose] if calls else [*parts, "<answer>", f" {prose} ", "</answer>", ""]
    for call in calls:
        parts += ["<search>", f" {call.arguments['query']} ", "</search>", ""]
    return [*parts, "<|im_end|>", ""]


def name_text(name: str) -> Strategy:
    """Names that stand outside the JSON: nothing but their end is marked, so they are one word without brackets."""
    return free_text(name, min_size=1).filter(lambda text: text.split() == [text] and not set(text) & set('{}[]()<>"'))


def deepseek(fenced: bool) -> Callable[[Sequence[Call], str, str | None], Parts]:
    def render(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
        parts = [""] if thought is None else ["", "<think>", f"\n{thought}\n", "</think>", "\n\n"]
        parts[-1] += prose
        for index, call in enumerate(calls):
            parts += ["\n" if index and fenced else ""] if index else ["<｜tool▁calls▁begin｜>", ""]
            kind, body = ("function", "{}\n```json\n{}\n```") if fenced else ("{}", "{}")
            stated = [call.name, dumps(call.arguments)]
            parts += ["<｜tool▁call▁begin｜>", kind.format(*stated), "<｜tool▁sep｜>"]
            parts += [body.format(*stated[0 if fenced else 1 :]), "<｜tool▁call▁end｜>"]
        return [*parts, *(["", "<｜tool▁calls▁end｜>", ""] if calls else []), "<｜end▁of▁sentence｜>", ""]

    return render


def dsml(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    parts = [""] if thought is None else ["", "<think>", thought, "</think>", ""]
    parts[-1] += prose
    for index, call in enumerate(calls):
        parts = [*parts, ""] if index else [*parts[:-1], parts[-1] + "\n\n", "<｜DSML｜function_calls>", ""]
        parts = [*parts[:-1], "\n", '<｜DSML｜invoke name="', f'{call.name}">\n']
        for number, (key, value) in enumerate(call.arguments.items()):
            given = value if isinstance(value, str) else dumps(value)
            parts[-1] += "\n" if number else ""
            parts += ['<｜DSML｜parameter name="', f'{key}" string="{dumps(isinstance(value, str))}">{given}']
            parts += ["</｜DSML｜parameter>", ""]
        parts = [*parts[:-1], parts[-1] + "\n", "</｜DSML｜invoke>"]
    return [*parts, *(["\n", "</｜DSML｜function_calls>", ""] if calls else []), "<｜end▁of▁sentence｜>", ""]


def kimi_k2(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    parts = [prose] if thought is None else ["", "<think>", thought, "</think>", prose]
    parts += ["<|tool_calls_section_begin|>", ""] if calls else []
    for index, call in enumerate(calls):
        parts += ["<|tool_call_begin|>", f"functions.{call.name}:{index}", "<|tool_call_argument_begin|>"]
        parts += [dumps(call.arguments), "<|tool_call_end|>", ""]
    return [*parts, *(["<|tool_calls_section_end|>", ""] if calls else []), "<|im_end|>", ""]


def glm4(calls: Sequence[Call], prose: str, thought: str | None, line: str = "\n") -> Parts:
    parts = [""] if thought is None else [line, "<think>", thought, "</think>", line if prose else ""]
    parts[-1] += prose
    for call in calls:
        parts[-1] += line
        parts += ["<tool_call>", call.name + line]
        for key, value in call.arguments.items():
            given = value if isinstance(value, str) else dumps(value)
            parts += ["<arg_key>", key, "</arg_key>", line, "<arg_value>", given, "</arg_value>", line]
        parts += ["</tool_call>", ""]
    return [*parts, "<|observation|>" if calls else "<|user|>", ""]


def glm47(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    return glm4(calls, prose, thought, line="")


# A value without a type is a string only where it is no other JSON.
GLM_TEXT = free_text("glm4").filter(lambda text: not reads_as_json(text))
GLM_KEY = GLM_TEXT.filter(lambda key: key == key.strip() != "")


def messages(own: Sequence[tuple[Parts, str, str]]) -> Parts:
    """Harmony messages as parts: each has a header (parts), a content and an end."""
    parts = [""]
    for index, (header, content, end) in enumerate(own):
        parts += ["<|start|>", "assistant"] if index else []
        parts = [*parts[:-1], parts[-1] + header[0], *header[1:], "<|message|>", content, end, ""]
    return parts


def gpt_oss(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    own = [] if thought is None else [(["", "<|channel|>", "analysis"], thought, "<|end|>")]
    if prose:
        channel, end = ("commentary", "<|end|>") if calls else ("final", "<|return|>")
        own.append((["", "<|channel|>", channel], prose, end))
    for call in calls:
        header = ["", "<|channel|>", f"commentary to=functions.{call.name} ", "<|constrain|>", "json"]
        own.append((header, dumps(call.arguments), "<|call|>"))
    return messages(own)


# The template writes names without escapes.
UNESCAPED = free_text("llama3", min_size=1).filter(lambda name: dumps(name) == f'"{name}"')


def llama3(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    stated = [dumps({"name": call.name, "parameters": call.arguments}) for call in calls]
    return [prose + "; ".join(stated), "<|eot_id|>", ""]


def llama3_builtin(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    if not calls:
        return llama3(calls, prose, thought)
    stated = [python_call(Call(f"{call.name}.call", call.arguments)) for call in calls]
    return [prose, "<|python_tag|>", *stated, "<|eom_id|>", ""]


def python_call(call: Call) -> str:
    return f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"


IDENTIFIER = st.from_regex(r"[^\W\d]\w*", fullmatch=True)
DASHED = st.from_regex(r"[^\W\d][\w.-]*", fullmatch=True)


def llama4(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    return [prose + (f"[{', '.join(map(python_call, calls))}]" if calls else ""), "<|eot|>", ""]


def llama4_tokens(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    if not calls:
        return llama4(calls, prose, thought)
    return [prose, "<|python_start|>", f"[{', '.join(map(python_call, calls))}]", "<|python_end|>", "", "<|eom|>", ""]


def llama4_json(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    if not calls:
        return llama4(calls, prose, thought)
    stated = [dumps({"name": call.name, "parameters": call.arguments}) for call in calls]
    return [prose, "<|python_start|>", "", "<|python_end|>", "".join(stated), "<|eot|>", ""]


def lfm2(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    parts = [prose] if thought is None else ["", "<think>", thought, "</think>", prose]
    if calls:
        parts += ["<|tool_call_start|>", f"[{', '.join(map(python_call, calls))}]", "<|tool_call_end|>", ""]
    return [*parts, "<|im_end|>", ""]


def lfm2_json(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    parts = lfm2(calls, prose, thought)
    if calls:
        parts[parts.index("<|tool_call_start|>") + 1] = json_list(calls)
    return parts


def olmo3(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    parts = [""] if thought is None else ["", "<think>", thought, "</think>", "\n"]
    parts[-1] += prose
    if calls:
        body = "".join(f"\n{python_call(call)}" for call in calls)
        parts += ["<function_calls>", f"{body}\n", "</function_calls>", ""]
    return [*parts, "<|im_end|>", ""]


def bracket(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    parts = [""] if thought is None else ["", "<think>", f"\n{thought}\n", "</think>", "\n\n"]
    parts[-1] += prose + (f"[{', '.join(map(python_call, calls))}]" if calls else "")
    return [*parts, "<|im_end|>", ""]


# A name stands without quotes. Cut in two by `[CALL_ID]`, a longer one's tail would be an id.
MISTRAL_NAME = st.from_regex(r"[A-Za-z0-9_-]{1,9}", fullmatch=True)


def mistral(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    parts = [""] if thought is None else ["", "[THINK]", thought, "[/THINK]", ""]
    parts[-1] += prose
    for call in calls:
        parts += ["[TOOL_CALLS]", call.name, "[ARGS]", dumps(call.arguments)]
    return [*parts, "</s>", ""]


def mistral_list(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    stated = [{"name": call.name, "arguments": call.arguments, "id": "call00000"} for call in calls]
    return [prose, "[TOOL_CALLS]", f" {dumps(stated)}", "</s>", ""] if calls else [prose, "</s>", ""]


def json_list(calls: Sequence[Call]) -> str:
    return dumps([{"name": call.name, "arguments": call.arguments} for call in calls])


def granite(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    parts = [""] if thought is None else ["", "<think>", thought, "</think>", ""]
    parts[-1] += prose
    return [*parts, *(["<|tool_call|>", json_list(calls)] if calls else []), "<|end_of_text|>", "\n"]


def granite_20b(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    stated = [f"<function_call> {dumps({'name': call.name, 'arguments': call.arguments})}" for call in calls]
    return [prose + "\n".join(stated), "<|endoftext|>", ""]


def phi4_mini(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    return [prose, *(["<|tool_call|>", json_list(calls), "<|/tool_call|>", ""] if calls else []), "<|end|>", ""]


def phi4_mini_functools(calls: Sequence[Call], prose: str, thought: str | None) -> Parts:
    return [prose + (f"functools{json_list(calls)}" if calls else ""), "<|end|>", ""]


FAMILIES: dict[str, Family] = {
    "hermes": Family(hermes, free_text("hermes", min_size=1), json_arguments("hermes"), templates=("qwen2_5", "qwen3")),
    "qwen3_coder": Family(
        qwen3_coder,
        name_text("qwen3_coder"),
        tagged_arguments(),
        templates=("qwen3_6", "qwen3_5_nothink", "nemotron_3_nano"),
    ),
    "gemma": Family(gemma, GEMMA_NAME, gemma_arguments(), templates=("gemma4_v5",)),
    "gemma/function": Family(function_gemma, GEMMA_NAME, gemma_arguments(), thinks=False),
    "react": Family(react, REACT_NAME, json_arguments("react"), parallel=False),
    "react/plain": Family(react_plain, REACT_NAME, PLAIN.map(lambda text: {"input": text}), parallel=False),
    "react/tags": Family(search_r1, st.just("search"), QUERY, parallel=False),
    "deepseek_v3": Family(
        deepseek(fenced=True),
        name_text("deepseek_v3"),
        json_arguments("deepseek_v3"),
        templates=("deepseekv3_training",),
    ),
    "deepseek_v31": Family(deepseek(fenced=False), name_text("deepseek_v31"), json_arguments("deepseek_v31")),
    "deepseek_v32": Family(dsml, name_text("deepseek_v32"), json_arguments("deepseek_v32", name_text("deepseek_v32"))),
    "kimi_k2": Family(kimi_k2, name_text("kimi_k2"), json_arguments("kimi_k2")),
    "glm4": Family(glm4, name_text("glm4"), tagged_arguments(GLM_KEY, GLM_TEXT), templates=("glm4moe",)),
    "glm4/47": Family(glm47, name_text("glm4"), tagged_arguments(GLM_KEY, GLM_TEXT)),
    # One call in a turn: the token that ends it is a stop token.
    "gpt_oss": Family(gpt_oss, name_text("gpt_oss"), json_arguments("gpt_oss"), parallel=False, templates=("gptoss",)),
    "llama3": Family(
        llama3, UNESCAPED, json_arguments("llama3"), thinks=False, parallel=False, templates=("llama3_2",)
    ),
    "llama3/several": Family(llama3, UNESCAPED, json_arguments("llama3"), thinks=False),
    "llama3/builtin": Family(
        llama3_builtin, IDENTIFIER, json_arguments("llama3", IDENTIFIER), thinks=False, parallel=False
    ),
    "llama4": Family(llama4, DASHED, json_arguments("llama4", IDENTIFIER), thinks=False),
    "llama4/tokens": Family(llama4_tokens, DASHED, json_arguments("llama4", IDENTIFIER), thinks=False),
    "llama4/json": Family(llama4_json, UNESCAPED, json_arguments("llama4"), thinks=False),
    "olmo3": Family(olmo3, DASHED, json_arguments("olmo3", IDENTIFIER)),
    "lfm2": Family(lfm2, DASHED, json_arguments("lfm2", IDENTIFIER), templates=("lfm2_v2",)),
    "lfm2/json": Family(lfm2_json, free_text("lfm2", min_size=1), json_arguments("lfm2")),
    "bracket": Family(bracket, st.from_regex(SPACED, fullmatch=True), json_arguments("bracket", IDENTIFIER)),
    "mistral": Family(mistral, MISTRAL_NAME, json_arguments("mistral")),
    "mistral/list": Family(mistral_list, free_text("mistral", min_size=1), json_arguments("mistral"), thinks=False),
    "granite": Family(granite, free_text("granite", min_size=1), json_arguments("granite")),
    "granite/20b": Family(granite_20b, free_text("granite", min_size=1), json_arguments("granite"), thinks=False),
    "phi4_mini": Family(phi4_mini, free_text("phi4_mini", min_size=1), json_arguments("phi4_mini"), thinks=False),
    "phi4_mini/functools": Family(
        phi4_mini_functools, free_text("phi4_mini", min_size=1), json_arguments("phi4_mini"), thinks=False
    ),
}
