"""The turns of one run, judged as they come: what all importers of texts share.

Memory grows with the steps of the run and not with its turns.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from ..records import Classified, Observation, StepRecord, Stop, Structure
from ..shares import Attempts, Example, TurnCount, excerpt, tabulate
from ..structure import Reason, classify
from .base import Imported

_EXAMPLES, _EXCERPT = 2, 160  # of each reason; characters of each
_FEW = 0.1  # of the turns: so many may have lost their steps, in a log that is broken here and there
_MANY = 2**62  # no count of steps or turns
_STOPS: dict[str, Stop] = {
    **dict.fromkeys(("eos", "stop", "end_turn", "stop_sequence", "tool_calls", "tool_use", "function_call"), "eos"),
    **dict.fromkeys(("length", "max_tokens", "model_length"), "length"),
}
"""How serving engines and their APIs spell why a turn ended."""
_OUTCOMES = ("polluted", "collapsed", "empty", "repeated", "truncated")


class Place(NamedTuple):
    """Where a turn stands: its line in the file from 1, its step, its index in the dialogue, its prompt group.

    Of a log that names no groups, the dialogues are the groups.
    """

    line: int
    step: int | None = None
    turn: int | None = None
    group: str = ""


class Turns:
    """Counts of the turns of one run, of the given chat format, and the mean of what else is told of a step."""

    def __init__(self, format: str) -> None:
        self.format = format
        self._steps: dict[int | None, _Step] = defaultdict(_Step)
        self._counts = Counter[TurnCount]()
        self._attempts = Attempts()
        self._examples: dict[str, list[Example]] = defaultdict(list)

    def add(self, text: str, place: Place, stop: Stop = "unknown") -> Classified:
        """Judge one turn and count it."""
        judged = classify(text, self.format, stop)
        self.take(judged, text, place, stop)
        return judged

    def take(self, judged: Classified, text: str, place: Place, stop: Stop = "unknown") -> None:
        """Count one turn that is judged."""
        structure, reason = judged.structure, judged.reason
        place = place._replace(step=_counted(place.step), turn=_counted(place.turn))
        self._counts[TurnCount(place.step, place.turn, str(structure), str(reason))] += 1
        self._attempts.take(judged)
        self._steps[place.step].take(judged, place.group, stop)
        if structure.healthy:
            return
        own, shown = self._examples[reason], excerpt(text, _EXCERPT)
        if len(own) < _EXAMPLES and shown not in [example.text for example in own]:
            own.append(Example(place.line, shown))

    def rollout(self, step: int | None, calls: int, told: Mapping[str, float] | None = None) -> None:
        """A whole rollout: how many calls it attempted, and its metrics, which become means over the step."""
        self._steps[_counted(step)].rollout(calls, told or {})

    def imported(
        self, name: str, source: str, path: Path, unmapped: tuple[str, ...] = (), faults: tuple[str, ...] = ()
    ) -> Imported:
        """The run: a record per step; or one of step 0 over everything, if more than a few turns have none."""
        steps = {s: step for s, step in self._steps.items() if s is not None}
        turns = sum(step.turns for step in self._steps.values())
        missing = self._steps[None].turns if None in self._steps else 0
        dated = bool(steps) and missing <= _FEW * turns
        if dated and missing:
            faults = (*faults, f"{missing} of {turns} turns have no step and are left out of its course")
        steps = steps if dated else {0: _sum(self._steps.values())}
        calls = any(step.calls for step in steps.values())
        records = tuple(steps[s].record(s, calls) for s in sorted(steps))
        counts = [row._replace(step=row.step if dated else None, turns=n) for row, n in self._counts.items()]
        structure = tabulate(counts, self._attempts.parse_rates(), self._examples)
        return Imported(name, source, path, records, unmapped, dated, faults, structure)


@dataclass(slots=True)
class _Step:
    turns: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    attempted: int = 0
    parsed: int = 0
    groups: set[int] = field(default_factory=set)
    rollouts: int = 0
    calls: int = 0
    silent: int = 0  # rollouts without a call
    told: dict[str, tuple[float, int]] = field(default_factory=dict)

    def take(self, judged: Classified, group: str, stop: Stop) -> None:
        self.turns += 1
        self.attempted += judged.attempted
        self.parsed += len(judged.calls)
        self.groups.add(hash(group))
        self.hits["polluted"] += judged.structure is Structure.POLLUTED
        self.hits["collapsed"] += judged.structure is Structure.COLLAPSED
        self.hits["empty"] += judged.reason == Reason.EMPTY
        self.hits["repeated"] += judged.reason == Reason.REPETITION
        self.hits["truncated"] += stop == "length"

    def rollout(self, calls: int, told: Mapping[str, float]) -> None:
        self.rollouts += 1
        self.calls += calls
        self.silent += not calls
        for name, value in told.items():
            if isfinite(value):
                total, n = self.told.get(name, (0.0, 0))
                self.told[name] = (total + value, n + 1)

    def record(self, step: int, calling: bool) -> StepRecord:
        """Outcome rates over the turns; without any call in the run, a rollout without one says nothing."""
        metrics = {name: total / n for name, (total, n) in self.told.items()} | {"turns": float(self.turns)}
        groups = len(self.groups)
        found = [Observation(name, self.hits[name] / self.turns, groups) for name in _OUTCOMES if self.turns]
        if self.attempted:
            found.append(Observation("parse_failure", max(0, self.attempted - self.parsed) / self.attempted, groups))
        if self.rollouts and calling:
            found.append(Observation("no_call", self.silent / self.rollouts, groups))
            metrics["tools/call_frequency"] = self.calls / self.rollouts
        return StepRecord(step, 0.0, metrics, tuple(found))


def _counted(number: int | None) -> int | None:
    return number if number is not None and 0 <= number < _MANY else None


def stop_of(reason: object) -> Stop:
    """What an engine's finish reason says.

    >>> stop_of("max_tokens"), stop_of("tool_calls"), stop_of(None)
    ('length', 'eos', 'unknown')
    """
    return _STOPS.get(str(reason).lower(), "unknown")


def _sum(steps: Iterable[_Step]) -> _Step:
    """All steps as one."""
    whole = _Step()
    for s in steps:
        whole.turns, whole.rollouts = whole.turns + s.turns, whole.rollouts + s.rollouts
        whole.attempted, whole.parsed = whole.attempted + s.attempted, whole.parsed + s.parsed
        whole.calls, whole.silent = whole.calls + s.calls, whole.silent + s.silent
        whole.hits.update(s.hits)
        whole.groups |= s.groups
        for name, (total, n) in s.told.items():
            before = whole.told.get(name, (0.0, 0))
            whole.told[name] = (before[0] + total, before[1] + n)
    return whole
