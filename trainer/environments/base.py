"""What a task environment offers: tasks, tools, episodes, and an expert that solves every task."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from collapsewatch.records import Call

Message = dict[str, Any]
HINT_WORDS = 300
"""Source: arXiv 2606.26027, as its code bounds the hints it has written."""


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt group's problem: the opening messages, and what only the environment knows.

    `tools`: what is offered in this task, where that is not what the environment offers in all.
    """

    prompt: tuple[Message, ...]
    data: dict[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] | None = None


class Episode(ABC):
    """One rollout's world. Built anew for every rollout, so that rollouts of a group share nothing."""

    @abstractmethod
    def call(self, call: Call) -> str:
        """Execute one tool call and return what the model is shown; a wrong call returns an error text."""

    @abstractmethod
    def reply(self, text: str) -> str | None:
        """Take an answer without calls; return the next user message, or None when the episode is over."""

    @abstractmethod
    def reward(self) -> float:
        """The reward in [0, 1], final once the episode is over."""


class Environment(ABC):
    """A family member: tools as OpenAI-style schemas, seeded tasks, episodes and expert dialogues."""

    name: ClassVar[str]
    tools: Sequence[dict[str, Any]]

    @abstractmethod
    def tasks(self, count: int, seed: int) -> list[Task]:
        """`count` tasks; the same seed gives the same tasks."""

    def held_out(self, count: int, seed: int) -> list[Task]:
        """`count` tasks to test on; environments whose tasks are few keep a part of them for it."""
        return self.tasks(count, seed)

    @abstractmethod
    def start(self, task: Task) -> Episode:
        """A fresh episode of `task`."""

    @abstractmethod
    def expert(self, task: Task) -> list[Message]:
        """The messages after the prompt of a dialogue that earns reward 1."""

    def hint(self, task: Task) -> str:
        """What a model is told that is to solve `task` with help: the calls that solve it, in at most 300 words."""
        calls = [call["function"] for m in self.expert(task) for call in m.get("tool_calls") or ()]
        told = [f"{call['name']} {json.dumps(call['arguments'], ensure_ascii=False)}" for call in calls]
        words = f"A note for you: the calls that solve this are {', then '.join(told)}.".split(" ")
        return " ".join(words[:HINT_WORDS])


def tool(name: str, description: str, **parameters: str) -> dict[str, Any]:
    """An OpenAI-style function schema; every parameter is required, `parameters` maps its name to its type."""
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def assistant_call(name: str, /, **arguments: Any) -> Message:
    """An assistant message that makes one tool call."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}
