"""Mistakes that amplify a collapse, as switches that are off by default: what breaks runs can so be tried.

All are of the paper's released code (arXiv 2606.26027; `llm_agent/manager.py`, `fcl_interface.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from collapsewatch.records import Classified, Structure

from .dialogues import Renderer
from .environments.base import Environment, Message, Task

THINK = "<think>\n\n</think>\n\n"


class Reader(Protocol):
    """What judges a turn by its ids: a bound chat format is one."""

    def classify_ids(self, ids: Sequence[int]) -> Classified: ...


@dataclass(frozen=True)
class Amplifiers:
    """Which mistakes are made, as the knobs of the same names in `TrainConfig` say."""

    force_end: bool = False
    reencode: str = ""
    lenient_replies: bool = False
    sampling_only: str = ""

    @property
    def rewrites(self) -> bool:
        """Whether other ids are trained than were sampled."""
        return self.force_end or bool(self.reencode)

    def trained(self, ids: list[int], renderer: Renderer) -> list[int]:
        """The ids that are trained where `ids` were sampled in a turn."""
        whole = ids[-1:] == [renderer.end_id]
        if self.reencode == "all" or (self.reencode == "cut" and not whole):
            text = renderer.tokenizer.decode(ids, skip_special_tokens=True)
            ids = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
            return [*ids, renderer.end_id] if whole or self.force_end else ids
        return ids if whole or not self.force_end else [*ids, renderer.end_id]

    def reader(self, strict: Reader) -> Reader:
        """What judges turns in place of the chat format."""
        return Lenient(strict) if self.lenient_replies else strict

    def behind(self, renderer: Renderer) -> list[int]:
        """Ids that stand behind every assistant header while sampling, and never in what is trained."""
        if self.sampling_only != "think":
            return []
        ids: list[int] = renderer.tokenizer(THINK, add_special_tokens=False)["input_ids"]
        return ids


class Lenient:
    """A reader of turns to whom whatever holds no call is a reply."""

    def __init__(self, strict: Reader) -> None:
        self._strict = strict

    def classify_ids(self, ids: Sequence[int]) -> Classified:
        turn = self._strict.classify_ids(ids)
        return turn if turn.structure is Structure.TOOL_CALL else Classified(Structure.RESPONSE, "ok")


def hinted(environment: Environment, task: Task) -> list[Message]:
    """The opening messages of a task with its hint at the end of the system message, which is made if there is none."""
    first, *others = task.prompt
    hint = environment.hint(task)
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n{hint}"}, *others]
    return [{"role": "system", "content": hint}, first, *others]
