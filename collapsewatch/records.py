"""The nouns: what is measured at one step, what is concluded from it, what was done about it.

Frozen dataclasses and enums only. Every other module imports from here; this one imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import nan
from typing import Any, Literal

Stop = Literal["eos", "length", "unknown"]
"""Why a turn ended: it sampled its end-of-turn token, it hit the length limit, or nobody recorded it."""


class Slot(StrEnum):
    """A kind of position in a turn: what stands before the token that is predicted there."""

    START = "start"  # after the assistant header
    OPEN = "open"  # right after an opened call
    BODY = "body"  # inside call arguments
    CLOSE = "close"  # after a closed call
    TEXT = "text"  # prose
    THINK = "think"  # inside a reasoning block
    END = "end"  # after the end of the turn


SLOTS: tuple[Slot, ...] = tuple(Slot)
"""Slots by code: `SLOTS[code]`; arrays hold codes as int8."""


VITAL = frozenset({"entropy", "grad_norm", "loss", "reward"})
"""Metrics without which nothing is learned, once they are no numbers any more."""
NOT_FINITE = "not_finite"
"""The metric of a step that logged a vital one as NaN or infinite: what is left of it where only numbers are kept."""


class Structure(StrEnum):
    """The state of one turn (paper, section 4.3)."""

    TOOL_CALL = "tool_call"
    RESPONSE = "response"
    POLLUTED = "polluted"
    COLLAPSED = "collapsed"

    @property
    def healthy(self) -> bool:
        return self in (Structure.TOOL_CALL, Structure.RESPONSE)


class Tier(StrEnum):
    """How serious an alarm row is, or how it ended."""

    WATCH = "watch"  # worth a free action (an extra checkpoint, denser logging); no false-alarm guarantee
    ALARM = "alarm"
    HOLD = "hold"  # an alarm that is still true
    CLEARED = "cleared"
    REBASELINED = "rebaselined"  # never cleared: the new level was taken as normal, and said so


class Verdict(StrEnum):
    """What `analyze` says of a run."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    RECOVERED = "recovered"  # collapsed and came back
    SILENT = "silent"  # structure lost, reward intact
    COLLAPSED = "collapsed"
    DEAD = "dead"  # never alive
    UNJUDGED = "unjudged"  # too little to say


@dataclass(frozen=True, slots=True)
class Call:
    """One parsed tool call."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Classified:
    """One turn, judged: its structure, the reason (`ok` when healthy) and the calls that parse strictly.

    `attempted` counts the calls opened, so the parse failure rate is `1 - len(calls) / attempted`. `recovered`
    counts the calls beyond `calls` that a reader who cares for no marker would still find.
    """

    structure: Structure
    reason: str
    calls: tuple[Call, ...] = ()
    attempted: int = 0
    recovered: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """What a detector reads of one stream at one step.

    `value` is the mean over prompt groups: a hazard (>= 0: 1 - exp(-value) is the share of turns expected to hold an
    illegal control token; where small, illegal emissions expected per turn) or a rate or probability in [0, 1].
    `n` counts prompt groups, the sample size; `stderr` is clustered by prompt group.
    """

    stream: str
    value: float
    n: int
    stderr: float = 0.0


@dataclass(frozen=True, slots=True)
class ControlRow:
    """One control token in one slot at one step: probability statistics over `n` scored positions.

    `hazard` is the mean over turns of the sum of -log(1-p); `expected` is the sum of p and `sampled` how often
    the token was really drawn there (the two agree when the probe is right). A marker that several tokens spell
    is read at its first one; `forced` is the mean probability of the whole marker where it was drawn.
    `turn_n` and `turn_mean` are `n` and `mean` by turn, the last entry for that turn and all later ones.
    `pressure_self` and `pressure_other` are the push of the policy gradient on the token's logit: the sums of
    A (1 - p) where it was drawn, and of -A p where another token was, over the trained tokens of the step.
    `probe` says who read it: `policy` on its own rollouts, `fixed` or `alternate` on dialogues kept for that.
    """

    token: str
    slot: str
    legal: bool
    n: int
    mean: float
    p50: float
    p99: float
    max: float
    hazard: float
    expected: float
    sampled: int
    forced: float = nan
    turn_n: tuple[int, ...] = ()
    turn_mean: tuple[float, ...] = ()
    pressure_self: float = nan
    pressure_other: float = nan
    probe: str = "policy"


@dataclass(frozen=True, slots=True)
class TurnRow:
    """One assistant message of one rollout."""

    rollout: int
    turn: int
    structure: str
    reason: str
    stop: str
    tokens: int
    calls: int
    hazard: float


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """One sampled multi-turn trajectory; `structure` is its worst turn's."""

    rollout: int
    group: int
    reward: float
    advantage: float
    turns: int
    tokens: int
    calls: int
    env_errors: int
    structure: str
    hazard: float
    prompt: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class TokenView:
    """One rollout token by token, (T,) each: what a page needs to show it.

    `token` ids and `piece` their text; `turn` -1 and `slot` "" where the environment wrote; `logp` the trained
    log-prob and `sampler_logp` the sampler's own, `entropy` in nats, NaN where unknown; `control` (T * K,) the
    log-probs of the control tokens `names` (K,), position by position. `advantage` is the rollout's.
    """

    rollout: int
    advantage: float
    token: tuple[int, ...]
    piece: tuple[str, ...]
    turn: tuple[int, ...]
    slot: tuple[str, ...]
    logp: tuple[float, ...]
    sampler_logp: tuple[float, ...]
    entropy: tuple[float, ...]
    names: tuple[str, ...]
    control: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """Everything measured at one optimizer step. `metrics` uses TRL's names (`reward`, `entropy`, ...)."""

    step: int
    time: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    observations: tuple[Observation, ...] = ()
    control: tuple[ControlRow, ...] = ()
    turns: tuple[TurnRow, ...] = ()
    rollouts: tuple[RolloutRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Driver:
    """One stream's part in an alarm: its share of the evidence, its level, and what would have been tolerated."""

    stream: str
    share: float
    level: float
    baseline: float
    tolerance: float


@dataclass(frozen=True, slots=True)
class Alarm:
    """A detector's finding at one step. `log_e` is the log evidence, to be compared with `log_bound`."""

    step: int
    tier: Tier
    detector: str
    drivers: tuple[Driver, ...]
    onset_step: int
    log_e: float
    log_bound: float
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a detector holds after one step: global log evidence and, per stream, what it rests on."""

    step: int
    detector: str
    log_e: float
    log_bound: float
    drivers: Sequence[Driver] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """What an intervention did: `status` is `applied`, or `begin` and `end` of one that stands; `effect` (measured
    later); `skipped` or `failed`.
    """

    step: int
    name: str
    schedule: str
    trigger_step: int
    status: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the run: `started`, `finished`, `interrupted`, `failed`, `fault`, `mark`, ..."""

    step: int
    time: float
    name: str
    detail: str = ""
