"""`bfcl`: the multi-turn tasks of the Berkeley Function Calling Leaderboard, their executors and their checker.

A user asks in several turns; each lasts until the model answers without a call. Reward 1 if, at the end of every
turn, the state of the world is that of the ground truth and its results are among those seen so far; else 0. The
official checker is `bfcl_eval`'s `multi_turn_checker`, which executes text by `eval` in instances that it keeps by
name; here calls go to bound methods of instances that no other episode has. The comparisons are the package's own.

`bfcl` trains on half of the tasks of three categories and is tested on the other half of all four, as arXiv
2606.26027, section 4.1; the categories are environments, too.
"""

from __future__ import annotations

import decimal
import inspect
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from typing import Any, ClassVar

from collapsewatch.records import Call

from .base import Environment, Episode, Message, Task, assistant_call
from .bfcl_data import CATEGORIES, CLASSES, Calls, Turns, category, executor, part, tools

SPLIT_SEED, TRAINING = 42, 100
"""Of the 200 tasks of each category, 100 are trained on, the same of each. Source: as above; the draw is ours."""
MOST_DIGITS = 4300
"""Longer numbers Python does not print: a call that asks for one is refused before it takes forever."""
STATELESS = ("MathAPI",)
"""Executors that have no state to load."""


class World:
    """The executors of one task, in its opening state.

    A call's own failure is its result, in the words of the official executor.
    """

    def __init__(self, task: Task) -> None:
        self.instances: dict[str, Any] = {}
        self._methods: dict[str, Callable[..., Any]] = {}
        for name in task.data["classes"]:
            instance = self.instances[name] = executor(name)()
            if name not in STATELESS:
                config = deepcopy(task.data["config"].get(name, {}))
                instance._load_scenario(config, long_context="long_context" in task.data["id"])
            methods = inspect.getmembers(instance, inspect.ismethod)
            self._methods |= {name: method for name, method in methods if not name.startswith("_")}

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Execute one call; what it returns, or what is wrong with it, as text."""
        method = self._methods.get(name)
        if method is None:
            return f"Error during execution: name '{name}' is not defined"
        if _endless(name, arguments):
            return f"Error during execution: a number of more than {MOST_DIGITS} digits"
        mpmath = import_module("mpmath")
        try:
            # A tool may set the precision of numbers for the whole process: here it lasts for its call.
            with decimal.localcontext(), mpmath.workdps(mpmath.mp.dps):
                return _text(method(**deepcopy(dict(arguments))))
        except (MemoryError, RecursionError):
            raise  # the machine's failure, not the call's
        except Exception as error:
            return f"Error during execution: {error}"


class BfclEpisode(Episode):
    """The model's world beside the ground truth's, compared whenever the model ends a user's turn."""

    def __init__(self, task: Task) -> None:
        self._turns: tuple[str, ...] = task.data["turns"]
        self._truth: Turns = task.data["truth"]
        self._world, self._wanted = World(task), World(task)
        self._ended = self._calls = 0
        self._told: list[str] = []
        self._right = True

    def call(self, call: Call) -> str:
        self._calls += 1
        self._told.append(self._world.call(call.name, call.arguments))
        return self._told[-1]

    def reply(self, text: str) -> str | None:
        if self._right and self._ended < len(self._turns):
            self._right = self._agrees(self._truth[self._ended])
        self._ended, self._calls = self._ended + 1, 0
        return self._turns[self._ended] if self._ended < len(self._turns) else None

    def _agrees(self, truth: Calls) -> bool:
        """Whether what the model did until the end of this turn is what it should have done."""
        if not truth:  # then there is nothing it could do, and nothing is checked until the next turn
            return True
        checker = part("eval_checker.multi_turn_eval.multi_turn_checker")
        wanted = [self._wanted.call(name, arguments) for name, arguments in truth]
        return (
            self._calls > 0
            and checker.state_checker(self._world.instances, self._wanted.instances)["valid"]
            and checker.response_checker(self._told, wanted, self._ended)["valid"]
        )

    def reward(self) -> float:
        return float(self._right and self._ended == len(self._turns))


class Bfcl(Environment):
    """The tasks as the paper splits them (see the module)."""

    name: ClassVar[str] = "bfcl"
    trained: ClassVar[Sequence[str]] = CATEGORIES[:3]
    tested: ClassVar[Sequence[str]] = CATEGORIES

    def __init__(self) -> None:
        self.tools = [tool for name in CLASSES for tool in tools(name)]

    def tasks(self, count: int, seed: int) -> list[Task]:
        """`count` of the training half, all of them before any comes again."""
        return _drawn([category(name)[i] for name in self.trained for i in _halves()[0]], count, seed)

    def held_out(self, count: int, seed: int) -> list[Task]:
        """`count` of the test half, all of them before any comes again."""
        return _drawn([category(name)[i] for name in self.tested for i in _halves()[1]], count, seed)

    def start(self, task: Task) -> BfclEpisode:
        return BfclEpisode(task)

    def expert(self, task: Task) -> list[Message]:
        """The calls of the ground truth one by one, with what they return, and a sentence to end each turn."""
        world, messages = World(task), list[Message]()
        for i, (text, truth) in enumerate(zip(task.data["turns"], task.data["truth"], strict=True)):
            if i:
                messages.append({"role": "user", "content": text})
            for name, arguments in truth:
                messages.append(assistant_call(name, **arguments))
                messages.append({"role": "tool", "content": world.call(name, arguments)})
            messages.append({"role": "assistant", "content": _ending([name for name, _ in truth])})
        return messages


class BfclBase(Bfcl):
    """All that is asked for can be done at once."""

    name = "bfcl_base"
    trained = tested = ("base",)


class BfclMissFunc(Bfcl):
    """In one turn a function is missing, which comes with the next."""

    name = "bfcl_miss_func"
    trained = tested = ("miss_func",)


class BfclMissParam(Bfcl):
    """In one turn an argument is missing, which the user tells in the next."""

    name = "bfcl_miss_param"
    trained = tested = ("miss_param",)


class BfclLongContext(Bfcl):
    """Tools answer with much that does not matter. The paper only tests on it."""

    name = "bfcl_long_context"
    trained = tested = ("long_context",)


def _halves() -> tuple[list[int], list[int]]:
    """Indices of the tasks that are trained on, and of those that are not."""
    trained = sorted(random.Random(SPLIT_SEED).sample(range(2 * TRAINING), TRAINING))
    return trained, sorted(set(range(2 * TRAINING)) - set(trained))


def _drawn(pool: Sequence[Task], count: int, seed: int) -> list[Task]:
    rng = random.Random(f"bfcl-{seed}")
    rounds = -(-count // len(pool))
    return [task for _ in range(rounds) for task in rng.sample(pool, len(pool))][:count]


def _ending(called: Sequence[str]) -> str:
    if not called:
        return "I cannot do that with the functions and the information that I have."
    return f"Done, by {', '.join(dict.fromkeys(called))}."


def _text(result: Any) -> str:
    """A result as the official executor writes it."""
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except (TypeError, ValueError):
            return str(result)
    return str(result)


def _endless(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a call would compute with numbers of more than `MOST_DIGITS` digits, for hours at worst."""
    precision = arguments.get("precision")
    if isinstance(precision, int) and precision > MOST_DIGITS:
        return True
    base, exponent = arguments.get("base"), arguments.get("exponent")
    if name != "power" or not isinstance(base, int) or not isinstance(exponent, int):
        return False
    return max(abs(base).bit_length() - 1, 0) * max(exponent, 0) > MOST_DIGITS * math.log2(10)
