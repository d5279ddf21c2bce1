"""The product's own `Detection` on simulated runs, by the one path that training and `analyze` take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import log
from statistics import median
from typing import Any

import numpy as np
from plan import CELLS, COLLAPSES
from score import Truth
from simulate import Run

from collapsewatch.detectors import FA_PER_10K, Detection, build, spec
from collapsewatch.records import Alarm, StepRecord, Tier

BOUNDS = (1.0, 10.0, 50.0, 200.0)
_OUTCOMES = {  # what follows from each kind of collapse, beside its cells
    "eos_empty": {"empty", "collapsed", "no_call_start", "no_call"},
    "repeat": {"reopen", "repeated", "collapsed", "parse_failure"},
    "pollution": {"no_end", "call_in_text", "polluted", "parse_failure"},
    "eos_starve": {"no_end", "truncated", "polluted"},
}
_BROKEN = {"polluted", "collapsed", "parse_failure"}


@dataclass(frozen=True)
class Found:
    """The first alarm of a run at each setting, as steps; 0 where there was none."""

    alarm: Alarm | None  # all detectors, default budget
    marked: int  # the same with the data changes announced
    wide: int  # all detectors, a budget of 50
    outcomes: int  # the same without any probability
    bounds: tuple[int, ...]  # the e-detector alone at `BOUNDS`

    @property
    def step(self) -> int:
        return self.alarm.step if self.alarm else 0


def first_alarm(
    records: Iterable[StepRecord], marks: Sequence[int] = (), fa_per_10k: float = FA_PER_10K
) -> Alarm | None:
    """The first alarm of tier `alarm`; `marks` are the steps at which an announced change takes effect."""
    detection, waiting = Detection(build(fa_per_10k=fa_per_10k)), list(marks)
    for record in records:
        while waiting and waiting[0] <= record.step:
            detection.mark_event(waiting.pop(0) - 1, "curriculum")
        for alarm in detection.update(record)[0]:
            if alarm.tier is Tier.ALARM:
                return alarm
    return None


def crossings(records: Iterable[StepRecord], bounds: Sequence[float] = BOUNDS) -> tuple[int, ...]:
    """The first step at which the e-detector reaches each bound: until its first alarm no bound matters to it."""
    detection, first = Detection(build(["e_detector"], min(bounds))), dict.fromkeys(bounds, 0)
    for record in records:
        log_e = detection.update(record)[1][0].log_e
        for bound in bounds:
            if not first[bound] and log_e >= log(10_000 / bound):
                first[bound] = record.step
        if all(first.values()):
            break
    return tuple(first.values())


def watch(run: Run) -> Found:
    """Every setting on one run."""
    records = list(run.records())
    alarm = first_alarm(records)
    marks = [first for first, _ in run.plan.jumps]
    marked = first_alarm(records, marks) if marks else alarm
    rates = (
        replace(r, observations=tuple(o for o in r.observations if spec(o.stream).kind == "rate")) for r in records
    )
    outcomes = first_alarm(rates)
    wide = first_alarm(records, fa_per_10k=50.0)
    steps = (found.step if found else 0 for found in (marked, wide, outcomes))
    return Found(alarm, *steps, crossings(records))


def attribution(truths: Sequence[Truth], found: Sequence[Found]) -> dict[str, Any]:
    """How often the first driver, and the first that names a token, speak of what was planted; onset errors."""
    hits = [
        (t, f.alarm)
        for t, f in zip(truths, found, strict=True)
        if t.collapsed and f.alarm is not None and f.alarm.step >= t.plan.onset
    ]
    tokens = [(t, name) for t, a in hits if (name := _token(a))]
    errors = sorted(a.onset_step - t.plan.onset for t, a in hits)
    sharp = [
        a.onset_step - t.plan.onset for t, a in hits if t.plan.kind in COLLAPSES and t.plan.rates.max(initial=0) >= 0.1
    ]
    return {
        "alarms": len(hits),
        "driver": sum(a.drivers[0].stream in _planted(t) for t, a in hits) / max(len(hits), 1),
        "token": sum(name in t.plan.tokens for t, name in tokens) / max(len(tokens), 1),
        "tokens_named": len(tokens),
        "cell_in_3": _cells(hits),
        "onset_error": median(errors) if errors else None,
        "onset_within_10": sum(abs(e) <= 10 for e in sharp) / max(len(sharp), 1),
    }


def _token(alarm: Alarm) -> str:
    """The control token that the alarm names: the first driver's that has one."""
    own = {
        "no_end": "<|im_end|>",
        "reopen": "<tool_call>",
        "no_call_start": "<tool_call>",
        "call_in_text": "<tool_call>",
    }
    named = (spec(d.stream).token or own.get(d.stream, "") for d in alarm.drivers)
    return next((name for name in named if name), "")


def _planted(truth: Truth) -> set[str]:
    """Streams that the planted change moves: its cells, their sums, and the outcomes that follow."""
    moved = {f"hazard:{t}@{s}" for t, s in _grown(truth)}
    moved |= {name for t, s in _grown(truth) for name in (f"hazard:{t}", f"hazard@{s}", "hazard")}
    return moved | _OUTCOMES.get(truth.plan.kind, _BROKEN)


def _grown(truth: Truth) -> list[tuple[str, str]]:
    return [CELLS[i] for i in np.flatnonzero(truth.plan.rates[: len(CELLS)])]


def _cells(hits: Sequence[tuple[Truth, Alarm]]) -> float:
    """Of the collapses that grow in cells, those with a grown cell among the first three cells of the drivers."""
    own = [(t, a) for t, a in hits if _grown(t)]
    cells = [[d.stream for d in a.drivers if spec(d.stream).weight_group == "cell"][:3] for _, a in own]
    right = [bool(set(c) & {f"hazard:{k}@{s}" for k, s in _grown(t)}) for (t, _), c in zip(own, cells, strict=True)]
    return sum(right) / max(len(right), 1)
