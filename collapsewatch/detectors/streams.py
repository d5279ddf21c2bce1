"""Streams: the names a detector understands, and what each one tolerates.

`hazard`, `hazard:<token>`, `hazard@slot` and `hazard:<token>@slot` are expected illegal emissions per turn;
`no_end`, `reopen`, `no_call_start` and `call_in_text` are probabilities on the legal side, turned so that up
is bad; the rest are outcome rates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from ..records import SLOTS, Observation
from .baseline import Index

Kind = Literal["hazard", "probability", "rate"]

FLOOR: dict[Kind, float] = {"hazard": 1e-3, "probability": 1e-2, "rate": 1e-2}
"""Added before the logarithm: below it a difference means nothing."""

WEIGHTS: dict[str, float] = {
    "total": 0.20,
    "token": 0.15,
    "slot": 0.10,
    "cell": 0.10,
    "outcome": 0.30,
    "legal": 0.15,
    "call_rate": 0.02,
}
"""Prior weight per group, shared by the streams of a group that exist."""


class UnknownStream(ValueError):
    """A stream name that no detector understands."""


@dataclass(frozen=True, slots=True)
class ToleranceNull:
    """The level a stream may have: `max(abs, ratio x its own baseline)`, inside [1e-4, 0.995]."""

    abs: float
    ratio: float

    def __post_init__(self) -> None:
        if not (0 < self.abs < 1 and self.ratio >= 1):
            raise ValueError(f"tolerance: got abs={self.abs}, ratio={self.ratio}, expected 0 < abs < 1 <= ratio")


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """What a stream is: unit, tolerances (of the alarm and the watch tier), weight group, token and slot."""

    name: str
    kind: Kind
    null: ToleranceNull
    weight_group: str
    token: str = ""
    slot: str = ""
    watch: ToleranceNull = ToleranceNull(0.001, 2.0)

    @property
    def failure(self) -> str:
        """The failure that a rise of this stream speaks for."""
        return FAILURES.get(self.name, "control_token_spike")


# Chosen on simulated runs, of the training seeds. On the legal side `no_end`, `reopen` and `call_in_text` are failures
# that a sampler makes at just that rate: at 0.5 they alarmed 8 to 11 steps later (docs/measurements.md).
_RARE, _RARE_WATCH = ToleranceNull(0.02, 3.0), ToleranceNull(0.01, 2.0)
_SELDOM = ToleranceNull(0.73, 1.25)  # call rate: a ratio of 3 would leave a run that calls in every 2nd turn unwatched
_NAMED: dict[str, StreamSpec] = {
    s.name: s
    for s in (
        StreamSpec("no_end", "probability", _RARE, "legal", watch=_RARE_WATCH),
        StreamSpec("reopen", "probability", ToleranceNull(0.05, 3.0), "legal", watch=_RARE_WATCH),
        StreamSpec("no_call_start", "probability", _SELDOM, "legal", watch=ToleranceNull(0.6, 1.2)),
        StreamSpec("call_in_text", "probability", _RARE, "legal", watch=_RARE_WATCH),
        StreamSpec("polluted", "rate", _RARE, "outcome", watch=_RARE_WATCH),
        StreamSpec("collapsed", "rate", _RARE, "outcome", watch=_RARE_WATCH),
        StreamSpec("empty", "rate", _RARE, "outcome", watch=_RARE_WATCH),
        StreamSpec("truncated", "rate", _RARE, "outcome", watch=_RARE_WATCH),
        StreamSpec("repeated", "rate", _RARE, "outcome", watch=_RARE_WATCH),
        StreamSpec("parse_failure", "rate", ToleranceNull(0.10, 2.0), "outcome", watch=ToleranceNull(0.08, 1.5)),
        StreamSpec("no_call", "rate", _SELDOM, "call_rate", watch=ToleranceNull(0.6, 1.2)),
    )
}
FAILURES: dict[str, str] = {
    "no_end": "eos_loss",
    "reopen": "repetition",
    "no_call_start": "tool_abandonment",
    "no_call": "tool_abandonment",
    "polluted": "format_breakage",
    "parse_failure": "format_breakage",
    "collapsed": "format_breakage",
    "empty": "early_stop",
    "truncated": "length_runaway",
    "repeated": "repetition",
}
"""The failure a stream speaks for; every other stream (hazards, a call in prose) is a control-token spike."""

BAD_OUTCOMES: frozenset[str] = frozenset(name for name, s in _NAMED.items() if s.weight_group == "outcome")
"""Rates that are bad whatever the task: what the hard limit and the health check look at."""

_HAZARD = ToleranceNull(0.005, 3.0)
_GROUPS = {(False, False): "total", (True, False): "token", (False, True): "slot", (True, True): "cell"}


@lru_cache(maxsize=8192)
def spec(name: str) -> StreamSpec:
    """What the stream `name` is.

    >>> spec("hazard:<tool_call>@text").weight_group
    'cell'

    Raises:
        UnknownStream: the message lists the names that exist.
    """
    if name in _NAMED:
        return _NAMED[name]
    head, at, slot = name.rpartition("@")
    # A token may hold an `@` itself (`<@end>`): only a slot's name after the last one makes a slot.
    if not (at and slot in tuple(SLOTS)):
        head, slot = name, ""
    stem, colon, token = head.partition(":")
    if stem != "hazard" or bool(colon) != bool(token) or (not colon and "@" in head):
        known = ", ".join(("hazard", "hazard:TOKEN", "hazard@SLOT", "hazard:TOKEN@SLOT", *_NAMED))
        raise UnknownStream(f"stream: got {name!r}, expected one of {known} with SLOT one of {', '.join(SLOTS)}")
    return StreamSpec(name, "hazard", _HAZARD, _GROUPS[bool(token), bool(slot)], token, slot)


class Observed(tuple[Observation, ...]):
    """The observations of one step, whose columns are made once for all detectors."""

    @classmethod
    def of(cls, observations: Sequence[Observation], before: Observed | None = None) -> Observed:
        """Observations as such; those of the step before lend their list of names, which mostly is the same."""
        if isinstance(observations, Observed):
            return observations
        made = cls(observations)
        if before is not None and before.names == made.names:
            made.names = before.names
        return made

    @cached_property
    def names(self) -> list[str]:
        return [o.stream for o in self]

    @cached_property
    def values(self) -> np.ndarray:
        return np.array([o.value for o in self], dtype=np.float64)

    @cached_property
    def groups(self) -> np.ndarray:
        return np.array([o.n for o in self], dtype=np.int64)


class Reading(NamedTuple):
    """What a step says: streams by index (a slice for all of them), values in [0, 1], places of the observations."""

    at: Index
    y: np.ndarray  # (P,); hazards as `1 - exp(-H)`
    rows: np.ndarray  # (P,)


class _Plan(NamedTuple):
    """How to read a step that names these streams in this order."""

    names: list[str]
    at: np.ndarray  # (P,), rising
    rows: np.ndarray  # (P,)
    hazard: np.ndarray  # (P,) bool
    highest: np.ndarray  # (P,) what is still a value
    unread: int  # observations of a stream named before, or without a first value


class StreamTable:
    """Streams by index in order of first sight, and how one step's observations become arrays."""

    def __init__(self) -> None:
        self.specs: list[StreamSpec] = []
        self.names: list[str] = []
        self.floors: list[float] = []  # below it a difference means nothing, given the first sample size
        self.index: dict[str, int] = {}
        self.ignored = 0  # observations that were not a number, out of range, or named twice in one step
        self._plan: _Plan | None = None

    def read(self, observations: Sequence[Observation]) -> Reading:
        """One step's values by stream; streams not seen before join the table."""
        seen = Observed.of(observations)
        plan = self._plan
        if plan is None or (plan.names is not seen.names and plan.names != seen.names):
            plan = self._planned(seen)
        self.ignored += plan.unread
        value, at, rows, hazard = seen.values[plan.rows], plan.at, plan.rows, plan.hazard
        valid = (value >= 0) & (value <= plan.highest)  # False for NaN too
        wrong = valid.size - int(np.count_nonzero(valid))
        if wrong:
            self.ignored += wrong
            value, at, rows, hazard = value[valid], at[valid], rows[valid], hazard[valid]
        y = np.where(hazard, -np.expm1(-value), np.minimum(value, 1.0))
        return Reading(slice(None) if at.size == len(self.specs) else at, y, rows)

    def _planned(self, seen: Observed) -> _Plan:
        new = [o for o in seen if o.stream not in self.index and o.value >= 0]
        for o in sorted(new, key=lambda o: o.stream):  # sorted: the order of one step's observations means nothing
            self.add(o.stream, o.n)
        first = {self.index[o.stream]: row for row, o in reversed([*enumerate(seen)]) if o.stream in self.index}
        at = sorted(first)
        hazard = np.array([self.specs[i].kind == "hazard" for i in at], dtype=bool)
        rows = np.array([first[i] for i in at], dtype=np.intp)
        highest = np.where(hazard, np.inf, 1.0 + 1e-9)
        plan = _Plan(seen.names, np.array(at, dtype=np.intp), rows, hazard, highest, len(seen) - len(at))
        if all(o.stream in self.index for o in seen):  # else the next value may be a stream's first
            self._plan = plan
        return plan

    def add(self, name: str, n: int = 1) -> int:
        """The index of a stream, new or known; `n` prompt groups stood behind its first value."""
        at = self.index.get(name)
        if at is None:
            known = spec(name)
            # A prompt group holds some 8 rollouts: a rate has no finer resolution. With 2 groups a step this
            # took false alarms from 12 to 0 in 15,000 simulated steps, and cost 0 to 5 steps of delay.
            fine = 1.0 / (8 * max(n, 1)) if known.kind == "rate" else 0.0
            at = self.index[name] = len(self.specs)
            self.specs.append(known)
            self.names.append(name)
            self.floors.append(max(FLOOR[known.kind], fine))
        return at

    def weights(self) -> np.ndarray:
        """Weights of the streams seen so far, (S,), summing to one.

        They only shrink when a stream joins and never grow back: coming and going makes no evidence.
        """
        groups = [s.weight_group for s in self.specs]
        size = Counter(groups)
        raw = np.array([WEIGHTS[g] / size[g] for g in groups], dtype=np.float64)
        return raw / raw.sum() if raw.size else raw

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON-able values; the floors are in the baseline's own state."""
        return {"streams": list(self.names), "ignored": self.ignored}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The streams of `state`, in its order, added to an empty table."""
        for name in state["streams"]:
            self.add(name)
        self.ignored = state["ignored"]
