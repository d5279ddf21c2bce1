"""Chat formats: the control tokens, slots and parser of each model family.

To add one: write `formats/<name>.py` with a subclass of `formats.base.ChatFormat` that sets `name`, `markers`
and `follow` and defines `calls` (what stands between the markers of a call, to `Found` or a `Reason`), and where
dialogues are to be written in it, `write`. Then add its line to `FORMATS`, and to `FAMILIES` in
`tests/renderers.py` how its family writes a turn: the contract tests run over both. A format outside this package
needs no line: name it `pkg.mod:Class`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ..plugins import resolve

if TYPE_CHECKING:
    from .base import ChatFormat

FORMATS: dict[str, str] = {
    "hermes": "collapsewatch.formats.hermes:Hermes",
    "qwen3_coder": "collapsewatch.formats.qwen3_coder:Qwen3Coder",
    "gemma": "collapsewatch.formats.gemma:Gemma",
    "react": "collapsewatch.formats.react:React",
    "deepseek_v3": "collapsewatch.formats.deepseek:DeepSeekV3",
    "deepseek_v31": "collapsewatch.formats.deepseek:DeepSeekV31",
    "deepseek_v32": "collapsewatch.formats.deepseek:DeepSeekV32",
    "kimi_k2": "collapsewatch.formats.kimi_k2:KimiK2",
    "glm4": "collapsewatch.formats.glm4:Glm4",
    "gpt_oss": "collapsewatch.formats.gpt_oss:GptOss",
    "llama3": "collapsewatch.formats.llama3:Llama3",
    "llama4": "collapsewatch.formats.llama4:Llama4",
    "olmo3": "collapsewatch.formats.olmo3:Olmo3",
    "lfm2": "collapsewatch.formats.lfm2:Lfm2",
    "bracket": "collapsewatch.formats.bracket:Bracket",
    "mistral": "collapsewatch.formats.mistral:Mistral",
    "granite": "collapsewatch.formats.granite:Granite",
    "phi4_mini": "collapsewatch.formats.phi4_mini:Phi4Mini",
}


@cache
def format_named(name: str) -> ChatFormat:
    """The chat format of that name, or of that outside `pkg.mod:Class`; one instance per name.

    Raises:
        UnknownPlugin: nothing of that name can be loaded; the message lists the choices.
    """
    found: ChatFormat = resolve(FORMATS, name, "chat format")()
    return found


class CannotWrite(ValueError):
    """Calls that a format has no way to write, or none of ours: what, got, expected."""


def writers() -> tuple[str, ...]:
    """The listed formats that can write calls."""
    return tuple(name for name in FORMATS if format_named(name).writes)


def writer_named(name: str) -> ChatFormat:
    """As `format_named`, of a format that calls can be written in.

    Raises:
        UnknownPlugin: nothing of that name can be loaded.
        CannotWrite: it only reads; the message lists those that write.
    """
    found = format_named(name)
    if not found.writes:
        raise CannotWrite(f"chat format: got {name!r}, which only reads, expected one of {', '.join(writers())}")
    return found
