"""Dialogues as OpenAI's API has them: `{"messages": [{"role": "assistant", "content": ..., "tool_calls": ...}]}`.

Where `tool_calls` are structured, a serving parser has read them: what it could not read stands in `content`, and
what it repaired nobody sees any more. So such a turn is judged by its arguments and by what is left in its text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, NamedTuple, TypeGuard

from ..records import Call, Classified, Stop, Structure
from ..structure import Reason, classify
from .base import Imported, Importer, ImportFailed, run_name
from .columns import number, whole
from .json_rows import document
from .source import JSON_LINES, Source, parse
from .turns import Place, Turns, stop_of

_DIALOGUES = ("messages", "conversation", "trajectory")
_REWARDS = ("reward", "score")


class Messages(Importer):
    """Judges every assistant message; each `model` in the file is a run, each line or item a rollout."""

    source: ClassVar[str] = "messages"

    def sniff(self, source: Source) -> bool:
        if source.suffix not in JSON_LINES:
            return False
        head = source.head
        by_line = any(_dialogue(row) for row in source.head_rows)
        return by_line or (source.suffix == ".json" and '"role"' in head and '"assistant"' in head)

    def read(self, source: Source) -> list[Imported]:
        rows, faults = (_lines(source), tuple[str, ...]()) if _by_line(source) else _document(source)
        runs: dict[str, Turns] = {}
        read = lost = first = 0
        for line, row in rows:
            read += 1
            dialogue = row if _are_messages(row) else _dialogue(row)
            if not dialogue:
                lost, first = lost + 1, first or line
                continue
            told = row if isinstance(row, dict) else {}
            turns = runs.setdefault(str(told.get("model") or run_name(source)), Turns(self.options.format))
            asked = next((text_of(m) for m in dialogue if m.get("role") == "user"), "")
            reward = next((number(told[name]) for name in _REWARDS if name in told), float("nan"))
            place = Place(line, whole(told.get("step")), group=asked)
            take(turns, dialogue, place, {"reward": reward}, told.get("finish_reason"))
        if not runs:
            raise ImportFailed(f"{source.name}: got no dialogue, expected objects with `messages`")
        if lost:
            faults += (f"{lost} of {read} rows left out, the first {source.name}:{first}: no assistant speaks",)
        faults += tuple(source.faults)
        return [turns.imported(name, self.source, source.path, faults=faults) for name, turns in runs.items()]


def _by_line(source: Source) -> bool:
    return source.suffix != ".json" or any(_dialogue(row) for row in source.head_rows)


def _lines(source: Source) -> Iterator[tuple[int, Any]]:
    """Number and value of each line, also of those of a list that has one item per line."""
    stripped = ((number, line.strip().rstrip(",")) for number, line in enumerate(source.lines(), 1))
    return ((number, parse(line)) for number, line in stripped if line not in ("", "[", "]"))


def _document(source: Source) -> tuple[Iterable[tuple[int, Any]], tuple[str, ...]]:
    """Number and value of each dialogue in a file that is one JSON value, and what is wrong with it."""
    try:
        value, faults = document(source)
    except ValueError as error:
        raise ImportFailed(f"{source.name}: got broken JSON ({error}), expected messages") from error
    return enumerate(value if isinstance(value, list) and not _are_messages(value) else [value], 1), faults


class Judged(NamedTuple):
    """An assistant's message: what it is, and the text to show of it."""

    turn: Classified
    text: str


def take(
    turns: Turns, dialogue: Sequence[Mapping[str, Any]], place: Place, told: Mapping[str, float], ended: Any = None
) -> None:
    """Count the assistant's messages of one rollout, with its metrics and why its last message ended."""
    spoken = [m for m in dialogue if m.get("role") == "assistant"]
    attempted = 0
    for i, message in enumerate(spoken):
        reason = message.get("finish_reason") or (ended if message is spoken[-1] else None)
        stop = stop_of(reason)
        judged = judge(message, turns.format, stop)
        attempted += judged.turn.attempted
        turns.take(judged.turn, judged.text, place._replace(turn=i), stop)
    turns.rollout(place.step, attempted, told)


def judge(message: Mapping[str, Any], format: str, stop: Stop = "unknown") -> Judged:
    """Judge one assistant message, with or without structured calls."""
    content = text_of(message)
    calls = message.get("tool_calls") or ([{"function": f}] if (f := message.get("function_call")) else [])
    if not isinstance(calls, list) or not calls:
        return Judged(classify(content, format, stop), content)
    shown = content + "".join(f"\n{json.dumps(call, ensure_ascii=False, default=str)}" for call in islice(calls, 8))
    found = [_call(call) for call in calls]
    sound = tuple(call for call in found if isinstance(call, Call))
    wrong = next((reason for reason in found if isinstance(reason, Reason)), None)
    left = classify(content, format, stop) if content.strip() else Classified(Structure.RESPONSE, Reason.OK)
    attempted, recovered = len(calls) + left.attempted, left.recovered + len(left.calls)
    if not left.structure.healthy and left.reason != Reason.NO_ANSWER:  # the calls came after the thoughts
        return Judged(Classified(left.structure, left.reason, sound, attempted, recovered), shown)
    if left.attempted:  # the parser has left a call in the text beside those it found
        wrong = wrong or Reason.STRAY_OPEN
    structure = Structure.POLLUTED if wrong else Structure.TOOL_CALL
    return Judged(Classified(structure, wrong or Reason.OK, sound, attempted, recovered), shown)


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content may come in parts; thoughts that were split off are no part of it."""
    content = message.get("content")
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) else part for part in content)
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _call(call: Any) -> Call | Reason:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return Reason.CALL_NOT_OBJECT
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        return Reason.MISSING_NAME
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return Reason.INVALID_JSON
    return Call(name, arguments) if isinstance(arguments, dict) else Reason.ARGUMENTS_NOT_OBJECT


def _dialogue(row: Any) -> list[dict[str, Any]]:
    """The messages of a row, if an assistant speaks among them."""
    found = next((row[name] for name in _DIALOGUES if name in row), None) if isinstance(row, dict) else None
    return found if _are_messages(found) else []


def _are_messages(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return (
        isinstance(value, list)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value)
        and any(m["role"] == "assistant" for m in value)
    )
