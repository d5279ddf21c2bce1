"""`chain`: add up numbers that only tools know. One to five calls, then an answer.

Each task has its own table of words and numbers and asks for a sum of words and constants. `lookup(key)` reads
the table, `add(a, b)` adds two numbers. The model has only to call, copy and stop, so a fall of the reward is a
fall of the format, not of arithmetic.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from collapsewatch.records import Call

from .base import Environment, Episode, Message, Task, assistant_call, tool

KEYS = "ash bay cod dew elm fig gum hay ivy jay kelp lark moss newt oak pine reed sage tern yew".split()  # noqa: SIM905
SHAPES: tuple[tuple[int, int], ...] = ((1, 0), (1, 1), (2, 0), (2, 1), (3, 0))
"""(words, constants) of a sum; a sum of w words and c constants takes w lookups and w + c - 1 additions."""
DIGITS = 18
"""Numbers longer than this are wrong: a model that loops on digits must not fail Python's own limit on them."""


class ChainEpisode(Episode):
    """The table of one task, and the answer once it is given."""

    def __init__(self, task: Task) -> None:
        self._table: dict[str, int] = task.data["table"]
        self._expected: int = task.data["answer"]
        self._answer: str | None = None

    def call(self, call: Call) -> str:
        arguments = call.arguments
        if call.name == "lookup":
            found = self._table.get(str(arguments.get("key")))
            return "error: unknown key" if found is None else str(found)
        if call.name == "add":
            a, b = arguments.get("a"), arguments.get("b")
            if not _is_int(a) or not _is_int(b):
                return "error: a and b must be integers"
            return str(a + b)
        return "error: unknown tool"

    def reply(self, text: str) -> str | None:
        self._answer = text
        return None

    def reward(self) -> float:
        numbers = re.findall(r"-?\d+", self._answer or "")
        last = numbers[-1] if numbers else ""
        return float(0 < len(last) <= DIGITS and int(last) == self._expected)


class Chain(Environment):
    """Sums over a private table (see the module)."""

    name: ClassVar[str] = "chain"
    tools: ClassVar[Sequence[dict[str, Any]]] = (
        tool("lookup", "number of a word", key="string"),
        tool("add", "sum of two numbers", a="integer", b="integer"),
    )

    def tasks(self, count: int, seed: int) -> list[Task]:
        rng = random.Random(f"chain-{seed}")
        return [self._task(rng) for _ in range(count)]

    def _task(self, rng: random.Random) -> Task:
        words, constants = rng.choice(SHAPES)
        keys = rng.sample(KEYS, words)
        table = {key: rng.randint(1, 9) for key in keys}
        terms: list[str | int] = [*keys, *(rng.randint(1, 9) for _ in range(constants))]
        rng.shuffle(terms)
        answer = sum(table[term] if isinstance(term, str) else term for term in terms)
        question = " + ".join(map(str, terms)) + " ?"
        prompt = ({"role": "user", "content": question},)
        return Task(prompt, {"terms": terms, "table": table, "answer": answer})

    def start(self, task: Task) -> ChainEpisode:
        return ChainEpisode(task)

    def expert(self, task: Task) -> list[Message]:
        table = task.data["table"]
        messages: list[Message] = []
        total: int | None = None
        for term in task.data["terms"]:
            value = term
            if isinstance(term, str):
                value = table[term]
                messages += [assistant_call("lookup", key=term), {"role": "tool", "content": str(value)}]
            if total is not None:
                messages.append(assistant_call("add", a=total, b=value))
                value += total
                messages.append({"role": "tool", "content": str(value)})
            total = value
        return [*messages, {"role": "assistant", "content": f"The sum is {total}."}]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**DIGITS
