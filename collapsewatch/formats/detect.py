"""The chat format of a tokenizer, found by what its own chat template writes."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate, product
from typing import Any

from ..records import Call, Structure
from ..structure import judge
from . import FORMATS, format_named
from .base import BoundFormat, ChatFormat

AUTO = "auto"
"""The name that stands for the format the tokenizer's own chat template writes."""

# Words that no template, and no tokenizer's vocabulary, holds by chance.
_CALL = Call("cw_lookup", {"cw_key": "cw_value"})
_ASK, _TOLD = {"role": "user", "content": "cw_question"}, "cw_result"
_TOOL = {
    "type": "function",
    "function": {
        "name": _CALL.name,
        "description": "Look it up.",
        "parameters": {"type": "object", "properties": {"cw_key": {"type": "string", "description": "The key."}}},
    },
}
# Templates differ in what they take: arguments as an object or as JSON; ids of nine letters (Mistral), or such as
# name the call (Kimi).
_ARGUMENTS: tuple[Any, ...] = (_CALL.arguments, json.dumps(_CALL.arguments))
_IDS = ("cwcall001", f"functions.{_CALL.name}:0")


def format_for(tokenizer: Any, **template: Any) -> BoundFormat:
    """The chat format that a Hugging Face tokenizer's, or processor's, own chat template writes calls in.

    A dialogue of sentinels is rendered, and the format that reads the call back is taken; of several, the one
    with most markers in the vocabulary. Without a template, or with one that leaves tool calls out, the
    vocabulary decides, first among the formats that end a reply as the template does. What could not be found
    is said in `missing` (markers that are no single tokens) and `notes`. `template`: options of the chat
    template, such as `enable_thinking`.

    Raises:
        ValueError: no listed format reads what the template writes, or the vocabulary has no format's tokens.
    """
    vocab = getattr(tokenizer, "tokenizer", tokenizer).get_vocab()
    said = _render(tokenizer, [_ASK, {"role": "assistant", "content": _TOLD}], template).rpartition(_TOLD)[2]

    def known(chat_format: ChatFormat) -> tuple[int, bool, int]:
        """Does it end a reply as the template does: 2, by its first end marker, 1, by another; are its calls', and
        how many of its markers, in the vocabulary?"""
        ends = [text for text, role in chat_format.role.items() if role == "end"]
        ended = chat_format.split(said)[1:2]
        opens = any(text in vocab for text, role in chat_format.role.items() if role in ("open", "prefix"))
        found = sum(text in vocab for text in chat_format.role)
        return sum(ended == [end] for end in (*ends[:1], *ends)), opens, found if opens else min(found, 1)

    formats = sorted((f for f in map(format_named, FORMATS) if known(f)[-1]), key=known, reverse=True)
    shown = ""
    for text, begin in _rendered_calls(tokenizer, template):
        for chat_format in formats:
            if _reads(chat_format, text, begin):
                return _bound(chat_format, tokenizer, template, ())
        shown = shown or text[begin:]
    if shown:
        raise ValueError(
            f"format_for: got a chat template that writes a call as {shown[:200]!r}, expected one of the formats "
            f"{', '.join(FORMATS)}; name an own one as pkg.mod:Class"
        )
    if not formats:
        choices = ", ".join(FORMATS)
        raise ValueError(f"format_for: got a tokenizer with no control token of any format, expected {choices}")
    why = "writes no tool calls" if getattr(tokenizer, "chat_template", None) else "is absent"
    note = f"the chat template {why}: {formats[0].name} was chosen by its control tokens alone"
    return _bound(formats[0], tokenizer, template, (note,))


def check_name(name: str) -> None:
    """Refuse a name that `bind` would refuse whatever the tokenizer.

    Raises:
        UnknownPlugin: no such format; the message lists the choices.
    """
    if name != AUTO:
        format_named(name)


def bind(name: str, tokenizer: Any, **template: Any) -> BoundFormat:
    """The format of that name, or the one found if it is `auto`, in the ids of a tokenizer or processor.

    Whether the prompt opens the reasoning block is read off the chat template in either case.

    Raises:
        UnknownPlugin: no such format; the message lists the choices.
        ValueError: as `format_for`; or the tokenizer has none of the named format's control tokens.
    """
    if name == AUTO:
        return format_for(tokenizer, **template)
    return _bound(format_named(name), tokenizer, template, ())


def _bound(chat_format: ChatFormat, tokenizer: Any, template: Mapping[str, Any], notes: tuple[str, ...]) -> BoundFormat:
    prompt = _render(tokenizer, [_ASK], template, add_generation_prompt=True)
    behind = prompt.rpartition(_ASK["content"])[2]
    markers = [piece for piece in chat_format.split(behind)[1::2] if chat_format.role[piece].startswith("think")]
    thinking = bool(markers) and chat_format.role[markers[-1]] == "think_open"
    bound = chat_format.bind(getattr(tokenizer, "tokenizer", tokenizer), thinking)
    bound.notes = notes
    return bound


def _rendered_calls(tokenizer: Any, template: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """A dialogue with a call, and where it leaves the prompt, in every way of stating the call that is taken."""
    for arguments, name in product(_ARGUMENTS, _IDS):
        call = {"id": name, "type": "function", "function": {"name": _CALL.name, "arguments": arguments}}
        said = {"role": "assistant", "content": "", "tool_calls": [call]}
        told = {"role": "tool", "name": _CALL.name, "tool_call_id": name, "content": _TOLD}
        prompt = _render(tokenizer, [_ASK], template, tools=[_TOOL], add_generation_prompt=True)
        whole = _render(tokenizer, [_ASK, said, told], template, tools=[_TOOL])
        begin = _shared(prompt, whole)
        if _CALL.name in whole[begin:]:
            yield whole, begin


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _render(tokenizer: Any, messages: list[Any], template: Mapping[str, Any], **more: Any) -> str:
    """What the chat template writes, or nothing: templates refuse in as many ways as there are authors."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **more, **template))
    except Exception:
        return ""


def _reads(chat_format: ChatFormat, text: str, begin: int) -> bool:
    """Does the turn at `text[begin:]` parse as the sentinel call, and nothing else?"""
    pieces = chat_format.split(text)
    ends = list(accumulate(map(len, pieces)))
    first = bisect_right(ends, begin)
    if first % 2 == 0:  # a marker that begins like one of the prompt's is in the turn as a whole
        pieces[first] = pieces[first][begin - ends[first] + len(pieces[first]) :]
    else:
        pieces.insert(first, "")
    before = [chat_format.role[piece] for piece in pieces[1:first:2]]
    turn = pieces[first:]
    stops = [i for i in range(1, len(turn), 2) if chat_format.role[turn[i]] == "end"]
    # History may hold but the end of the block that the prompt opens (DeepSeek-V3.1, GLM-4.7).
    closes = not turn[0].strip() and [chat_format.role[piece] for piece in turn[1:2]] == ["think_close"]
    opened = closes or before[-1:] == ["think_open"]
    parsed = chat_format.parse([*turn[: stops[0] + 1], ""] if stops else turn, opened)
    judged = judge(parsed, "unknown")
    return judged.structure is Structure.TOOL_CALL and judged.calls == (_CALL,)
