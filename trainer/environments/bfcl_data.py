"""What the package `bfcl-eval` holds of the BFCL multi-turn tasks, as our tasks.

It is installed without its dependencies (`pip install --no-deps bfcl-eval`), which are those of a leaderboard of
hosted models; data, executors and checker need only `mpmath`. Source: arXiv 2606.26027, section 4.1, BFCL v3.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from collapsewatch.plugins import UnknownPlugin

from .base import Task

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
CLASSES = (
    "GorillaFileSystem", "MathAPI", "MessageAPI", "TwitterAPI", "TicketAPI", "TradingBot", "TravelAPI",
    "VehicleControlAPI",
)  # fmt: skip
"""The executors of these categories; the package has others."""
Calls = tuple[tuple[str, dict[str, Any]], ...]
"""Names and arguments."""
Turns = tuple[Calls, ...]
"""Of each user turn, the calls of the ground truth."""
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
"""BFCL's words for types that JSON schema calls otherwise."""


class NotInstalled(UnknownPlugin):
    """The package that holds the tasks is absent."""


def part(name: str) -> Any:
    """A module of `bfcl_eval`.

    Raises:
        NotInstalled: it cannot be imported.
    """
    try:
        return import_module(f"bfcl_eval.{name}")
    except ImportError as error:
        raise NotInstalled(
            f"environment bfcl: got no bfcl-eval ({error}), expected it installed by "
            "`pip install mpmath && pip install --no-deps bfcl-eval`"
        ) from error


def executor(name: str) -> Any:
    """The class of that name that executes calls."""
    path: str = part("constants.executable_backend_config").CLASS_FILE_PATH_MAPPING[name]
    return getattr(part(path.removeprefix("bfcl_eval.")), name)


@cache
def tools(name: str) -> tuple[dict[str, Any], ...]:
    """The functions of an executor, as OpenAI-style schemas."""
    file: str = part("constants.executable_backend_config").MULTI_TURN_FUNC_DOC_FILE_MAPPING[name]
    return tuple(
        {
            "type": "function",
            "function": {
                "name": doc["name"],
                "description": doc["description"],
                "parameters": _json_schema(doc["parameters"]),
            },
        }
        for doc in _rows(f"multi_turn_func_doc/{file}")
    )


def _json_schema(node: Any) -> Any:
    """A part of a function's description, with types as JSON schema names them."""
    if isinstance(node, list):
        return [_json_schema(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _TYPES.get(value, value) if key == "type" and isinstance(value, str) else _json_schema(value)
        for key, value in node.items()
    }


@cache
def category(name: str) -> tuple[Task, ...]:
    """The 200 tasks of a category, in their own order: task `i` of any category is a variant of task `i` of `base`."""
    truths = {row["id"]: row["ground_truth"] for row in _rows(f"possible_answer/BFCL_v4_multi_turn_{name}.json")}
    return tuple(_task(row, truths[row["id"]]) for row in _rows(f"BFCL_v4_multi_turn_{name}.json"))


def _rows(file: str) -> Iterator[Any]:
    spec = find_spec(part("constants").__package__)
    assert spec is not None and spec.origin is not None
    with (Path(spec.origin).parents[1] / "data" / file).open() as lines:
        yield from map(json.loads, lines)


def _task(row: dict[str, Any], truth: list[list[str]]) -> Task:
    """A task whose user turns are in `data`; the functions that are given later are told in the turn they come with."""
    known = [tool for name in row["involved_classes"] for tool in tools(name)]
    later: dict[str, list[str]] = row.get("missed_function", {})
    hidden = {name for names in later.values() for name in names}
    news: str = part("constants.default_prompts").DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC
    turns = []
    for i, messages in enumerate(row["question"]):
        given = [tool for tool in known if tool["function"]["name"] in later.get(str(i), ())]
        text = "\n".join(message["content"] for message in messages)
        turns.append("\n".join([*map(json.dumps, given), news]) if given else text)
    data = {
        "id": row["id"],
        "classes": tuple(row["involved_classes"]),
        "config": row["initial_config"],
        "turns": tuple(turns),
        "truth": _calls(truth, row["involved_classes"]),
    }
    offered = tuple(tool for tool in known if tool["function"]["name"] not in hidden)
    return Task(({"role": "user", "content": turns[0]},), data, offered)


def _calls(truth: list[list[str]], classes: list[str]) -> Turns:
    return tuple(tuple(_call(text, classes) for text in turn) for turn in truth)


def _call(text: str, classes: list[str]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a call in Python's syntax; nothing is executed.

    A position is named after the method's own parameter, as models name every argument.
    """
    node = ast.parse(text.strip(), mode="eval").body
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(f"ground truth: got {text!r}, expected a call of a function")
    name = node.func.id
    method = next(getattr(executor(of), name) for of in reversed(classes) if hasattr(executor(of), name))
    positions = [parameter for parameter in inspect.signature(method).parameters if parameter != "self"]
    arguments = {positions[i]: ast.literal_eval(value) for i, value in enumerate(node.args)}
    return name, arguments | {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
