"""Gemma's own call syntax, in the spellings of Gemma 4 and of FunctionGemma."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..records import Call
from ..structure import Parsed, Reason
from .base import BoundFormat, ChatFormat, Found, Marker, Tokenizer
from .body import json_value

_GEMMA_4 = (
    Marker("<|tool_call>", "open"),
    Marker("<tool_call|>", "close"),
    Marker('<|"|>', "divide"),
    Marker("<|channel>", "think_open"),
    Marker("<channel|>", "think_close"),
    Marker("<turn|>", "end"),
    Marker("<|tool_response>", "end"),
    Marker("<tool_response|>", "response_close"),
    Marker("<|turn>", "header"),
    Marker("<|tool>", "header"),
    Marker("<tool|>", "header"),
)
_FUNCTION_GEMMA = (
    Marker("<start_function_call>", "open"),
    Marker("<end_function_call>", "close"),
    Marker("<escape>", "divide"),
    Marker("<end_of_turn>", "end"),
    Marker("<start_function_response>", "end"),
    Marker("<end_function_response>", "response_close"),
    Marker("<start_of_turn>", "header"),
    Marker("<start_function_declaration>", "header"),
    Marker("<end_function_declaration>", "header"),
)
_EOS = (Marker("<eos>", "end"),)
_RESPONSE = ("<|tool_response>", "<start_function_response>")
_SPELLING = {marker.text: n for n, own in enumerate((_GEMMA_4, _FUNCTION_GEMMA)) for marker in own}

_NAME = re.compile(r"\s*call:([^\s{}]*)(?=\{)")
_KEY = re.compile(r'([{,]\s*+)([^\s{}\[\],:"][^{}\[\],:"]*+):')
_NONE = re.compile(r"(?<=[:\[,])None(?=[,}\]])")
_PARTS = re.compile(r"<\|tool_call>|<tool_call\|>|<start_function_call>|<end_function_call>")
_LOOSE = re.compile(r":([\w.-]{1,256})(?=\{)")


class Gemma(ChatFormat):
    """`<|tool_call>call:NAME{key:<|"|>text<|"|>,n:1}<tool_call|>`: JSON with bare keys and quotes of its own.

    A call hands over to the environment by the marker that opens a tool response, which is a stop token of
    these families, so it ends a turn; one without a call may not end so. Calls stand side by side.
    """

    name: ClassVar[str] = "gemma"
    markers: ClassVar[tuple[Marker, ...]] = (*_GEMMA_4, *_FUNCTION_GEMMA, *_EOS)
    # A model turn may go on after a reply, so a call opened after prose is legal for the probe.
    follow: ClassVar[Mapping[str, tuple[str, str]]] = {
        "start": ("open think_open", "open end"),
        "think_open": ("think_close", "think_close"),
        "think_close": ("open", "open end"),
        "open": ("", "divide close"),
        "divide": ("divide", "divide close"),
        "close": ("open end", "open end"),
    }
    bare: ClassVar[re.Pattern[str]] = re.compile(r"\bcall:[\w.-]{1,256}\{")

    def calls(self, body: Sequence[str]) -> Found | Reason:
        name = _NAME.match(body[0])
        if name is None or any('"' in text for text in body[::4]) or len(set(body[1::2])) > 1:
            return Reason.INVALID_SYNTAX
        if not name[1]:
            return Reason.MISSING_NAME
        arguments = _value([body[0][name.end() :], *body[1:]])
        if arguments is None or arguments[1].strip():
            return Reason.INVALID_SYNTAX
        return Found((Call(name[1], arguments[0]),))

    def parse(self, pieces: Sequence[str], thinking: bool = False) -> Parsed:
        parsed = super().parse(pieces, thinking)
        if parsed.ended in _RESPONSE and (not parsed.attempted or Reason.AFTER_END in parsed.defects):
            parsed.defects.add(Reason.HALLUCINATED_RESPONSE)
        if len({_SPELLING[marker] for marker in pieces[1::2] if marker in _SPELLING}) > 1:
            parsed.defects.add(Reason.INVALID_SYNTAX)
        if parsed.wreck or Reason.BARE_CALL in parsed.defects:
            # Quotes outside a call are markers gone astray, which its text alone no longer holds.
            parsed.recovered = max(0, len(self.salvage("".join(pieces))) - len(parsed.calls))
        return parsed

    def salvage(self, text: str) -> list[Call]:
        found: list[Call] = []
        for part in _PARTS.split(text[:65_536]):
            if name := _LOOSE.search(part):
                value = _value(re.split(r'(<escape>|<\|"\|>)', part[name.end() :]))
                found += [Call(name[1], value[0])] if value and isinstance(value[0], dict) else []
        return found

    def bind(self, tokenizer: Tokenizer, thinking: bool = False) -> BoundFormat:
        vocab = tokenizer.get_vocab()
        spoken = [spelling for spelling in (_Gemma4, _FunctionGemma) if spelling.markers[0].text in vocab]
        return BoundFormat(spoken[0]() if len(spoken) == 1 else self, tokenizer, thinking)


class _Gemma4(Gemma):
    """The spelling of Gemma 4 alone, for its own vocabulary, in which the other's markers are but text."""

    markers: ClassVar[tuple[Marker, ...]] = (*_GEMMA_4, *_EOS)


class _FunctionGemma(Gemma):
    """The spelling of FunctionGemma alone."""

    markers: ClassVar[tuple[Marker, ...]] = (*_FUNCTION_GEMMA, *_EOS)


def _value(pieces: Sequence[str]) -> tuple[Any, str] | None:
    """The value that pieces (text, quote, string, quote, text, ...) begin with, and the rest, as JSON; None if none."""
    texts = [json.dumps(piece) if index % 2 else _quoted(piece) for index, piece in enumerate(pieces[::2])]
    return json_value("".join(texts))


def _quoted(text: str) -> str:
    """Text outside strings, with its keys in quotes and Python's None as null."""
    text = _KEY.sub(lambda key: f"{key[1]}{json.dumps(key[2].rstrip())}:", text)
    return _NONE.sub("null", text)
