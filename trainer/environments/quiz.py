"""`quiz`: two questions one after the other, each answered by one call of the right tool: two user turns a task."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from collapsewatch.records import Call

from .base import Environment, Episode, Message, Task, assistant_call, tool
from .chain import KEYS

COLOURS = "red blue green grey pink teal".split()  # noqa: SIM905
QUESTIONS = 2


class QuizEpisode(Episode):
    """The facts of one task, and how many questions were answered right."""

    def __init__(self, task: Task) -> None:
        self._facts: dict[str, tuple[str, str]] = task.data["facts"]
        self._asked: list[tuple[str, str]] = task.data["asked"]
        self._answered = self._right = 0

    def call(self, call: Call) -> str:
        known = self._facts.get(str(call.arguments.get("key")))
        if known is None or call.name not in ("number", "colour"):
            return "error"
        return known[call.name == "colour"]

    def reply(self, text: str) -> str | None:
        what, key = self._asked[self._answered]
        words = re.findall(r"\w+", text)
        self._right += bool(words) and words[-1] == self._facts[key][what == "colour"]
        self._answered += 1
        return question(*self._asked[self._answered]) if self._answered < len(self._asked) else None

    def reward(self) -> float:
        return self._right / len(self._asked)


class Quiz(Environment):
    """Numbers and colours of words (see the module)."""

    name: ClassVar[str] = "quiz"
    tools: ClassVar[Sequence[dict[str, Any]]] = (
        tool("number", "number of a word", key="string"),
        tool("colour", "colour of a word", key="string"),
    )

    def tasks(self, count: int, seed: int) -> list[Task]:
        rng = random.Random(f"quiz-{seed}")
        return [self._task(rng) for _ in range(count)]

    def _task(self, rng: random.Random) -> Task:
        keys = rng.sample(KEYS, QUESTIONS)
        facts = {key: (str(rng.randint(10, 99)), rng.choice(COLOURS)) for key in keys}
        asked = [(rng.choice(("number", "colour")), key) for key in keys]
        return Task(({"role": "user", "content": question(*asked[0])},), {"facts": facts, "asked": asked})

    def start(self, task: Task) -> QuizEpisode:
        return QuizEpisode(task)

    def expert(self, task: Task) -> list[Message]:
        messages: list[Message] = []
        for i, (what, key) in enumerate(task.data["asked"]):
            fact = task.data["facts"][key][what == "colour"]
            if i:
                messages.append({"role": "user", "content": question(what, key)})
            messages += [assistant_call(what, key=key), {"role": "tool", "content": fact}]
            messages.append({"role": "assistant", "content": f"{key} is {fact}"})
        return messages


def question(what: str, key: str) -> str:
    return f"{what} of {key} ?"
