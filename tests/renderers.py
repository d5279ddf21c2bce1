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
    template: str = ""  # of TRL's shipped chat templates, where there is one

    @property
    def calls(self) -> Strategy:
        return st.lists(st.builds(Call, self.names, self.arguments), min_size=1, max_size=3 if self.parallel else 1)


def free_text(name: str, **limits: Any) -> st.SearchStrategy[str]:
    """Text without the format's markers: as text, a marker is a marker wherever it stands."""
    markers = [marker.text for marker in format_named(name).markers]
    return st.text(**limits).filter(lambda text: not any(marker in text for marker in markers))


def json_arguments(name: str) -> Strategy:
    """Arguments of any JSON value."""
    texts = free_text(name)
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=6,
    )
    return st.dictionaries(texts, values, max_size=4)


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


FAMILIES: dict[str, Family] = {
    "hermes": Family(hermes, free_text("hermes", min_size=1), json_arguments("hermes"), template="qwen3.jinja"),
}
