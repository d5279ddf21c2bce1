"""The rules of the verdict: what a replay of a run says of it, with every threshold and its reason."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

import numpy as np

from .course import LOST, Finding, judge, loss_before
from .detectors import spec
from .detectors.baseline import USABLE
from .detectors.policy import CULPRIT, OUTCOMES
from .detectors.streams import BAD_OUTCOMES, FAILURES
from .levels import WINDOW, cut, floor, rose, settled, window
from .records import Alarm, Driver, StepRecord, Tier, Verdict
from .replay import Trace

MIN_STEPS = 5  # what the health check needs; a run that was shorter says nothing
BROKEN = 0.5  # share of failed outcomes from which on structure counts as lost: the hard limit's
SOUND = 0.25  # below it structure counts as intact again: half of broken
KEPT = 0.8  # of the best reward: that much at the end is a run whose reward shows nothing
MENDED = 2 / 3  # of the broken share at the start: a run that came so far with its reward intact is learning
NO_REWARD = 0.01  # a best window below it: no rollout ever succeeded
ENDLESS = 0.9  # share of turns cut off from which on none ends by itself; a limit that is only low spares some
FEW = 3  # rows that small batches do not spoil by chance one after the other
TOUCHED = 0.1  # share of broken turns, in a transcript without steps, that is more than slips


class Judgement(NamedTuple):
    """Verdict, kind, the alarm they rest on, and the mean reward of the first, best and last window.

    Where no alarm tells a loss that the scalars tell, `finding` does. `onset` is when it began, `mover` what moved
    first.
    """

    verdict: Verdict
    kind: str
    alarm: Alarm | None
    reward: tuple[float, float, float] | None
    finding: Finding | None = None
    onset: int | None = None
    mover: str = ""


def decide(trace: Trace) -> Judgement:
    """Judge a replayed run by its structure and by its scalars: the worse counts."""
    found, finding = _by_structure(trace), None
    if found.verdict is not Verdict.COLLAPSED and len(trace.steps) >= MIN_STEPS:
        finding = judge(trace.told)
    if finding and found.verdict is Verdict.DEAD and finding.kind != "lock_in":
        finding = None  # what never lived lost nothing
    if finding and (found.alarm is None or finding.verdict is Verdict.COLLAPSED):
        mover = finding.drivers[0].stream
        return Judgement(finding.verdict, finding.kind, None, found.reward, finding, finding.onset, mover)
    if found.alarm is None:
        return found
    onset, drivers = _onset(trace, found.alarm), found.alarm.drivers
    mover = trace.movers.get(found.alarm.step, "") or (drivers[0].stream if drivers else "")
    earlier = loss_before(trace.told.get("reward"), onset) if found.verdict is Verdict.COLLAPSED else None
    return (
        found._replace(onset=onset, mover=mover) if earlier is None else found._replace(onset=earlier, mover="reward")
    )


def _onset(trace: Trace, alarm: Alarm) -> int:
    """When what the alarm tells began: the jump of its main rate, if one step made most of the change.

    The detector's own is a mean over when its bets may have begun, and counts the drift before a jump.
    """
    series = trace.told.get(alarm.drivers[0].stream) if alarm.drivers else None
    if series is None:
        return alarm.onset_step
    first, last = bisect_left(series.steps, alarm.onset_step), bisect_left(series.steps, alarm.step)
    first = max(0, first - WINDOW)
    near = np.asarray(series.values[first : last + WINDOW])
    k = cut(near)
    if k is None or series.steps[first + k] > alarm.step:
        return alarm.onset_step
    jump, change = near[k] - near[k - 1], near[k:].mean() - near[:k].mean()
    return series.steps[first + k] if jump >= change / 2 > 0 else alarm.onset_step


def _by_structure(trace: Trace) -> Judgement:
    reward = _reward(trace.reward)
    kept = _kept(trace.reward)
    scored = trace.failure or trace.counts or trace.reward or "accuracy" in trace.told
    if len(trace.steps) < MIN_STEPS or not scored:
        return Judgement(Verdict.UNJUDGED, "", None, reward)
    alarm, over = _decisive(trace.alarms)
    recent = _recent(trace, alarm)
    failing = median(trace.failure[-recent:]) if trace.failure else None
    began = median(trace.failure[:MIN_STEPS]) if trace.failure else None
    broken = (failing is not None and failing >= BROKEN) or (alarm is not None and _still(trace, alarm, recent))
    never_sound = began is None or (began >= BROKEN and min(_medians(trace.failure)) >= BROKEN)
    if never_sound and (began is not None or reward is not None) and _never_rewarded(trace, reward):
        return Judgement(Verdict.DEAD, "broken_start", None, reward)
    if _no_signal(trace):
        return Judgement(Verdict.DEAD, "no_reward", None, reward)
    if failing is not None and alarm is None:  # from the start: nothing rose, so nothing alarmed
        mending = began is not None and failing <= MENDED * began and (kept or 0.0) >= KEPT
        if failing >= BROKEN and not mending and not _learning(trace, trace.steps[0]):
            verdict = Verdict.SILENT if kept is None or kept >= KEPT else Verdict.COLLAPSED
            return Judgement(verdict, "broken_start", None, reward)
    if alarm is None:
        return Judgement(Verdict.HEALTHY, "", None, reward)
    sound = failing is None or failing < SOUND
    limited = {d.stream for d in alarm.drivers if d.share >= CULPRIT} <= {"truncated"}
    excused = (limited and _learning(trace, alarm.onset_step)) or (sound and _chance(trace))
    if excused and kept is not None and kept >= KEPT:
        return Judgement(Verdict.HEALTHY, "", None, reward)
    if broken and kept is not None and kept >= KEPT:
        # The answers are right and do not end: the end of the turn is what was lost.
        kind = "eos_loss" if alarm.kind == "length_runaway" else alarm.kind
        return Judgement(Verdict.SILENT, kind, alarm, reward)
    if broken or (kept is not None and kept < LOST):
        return Judgement(Verdict.COLLAPSED, alarm.kind, alarm, reward)
    if sound and (over or _back(trace, alarm, recent)) and (kept is None or kept >= KEPT):
        return Judgement(Verdict.RECOVERED, alarm.kind, alarm, reward)
    return Judgement(Verdict.DEGRADED, alarm.kind, alarm, reward)


def _never_rewarded(trace: Trace, reward: tuple[float, float, float] | None) -> bool:
    """Did no rollout ever succeed? Where only penalties are given, rewards that rise or at least differ say no."""
    if reward is None or reward[1] > NO_REWARD:
        return reward is None
    constant = max(trace.reward) - min(trace.reward) <= NO_REWARD
    return constant or (bool(trace.failure) and not rose(trace.reward))


def _no_signal(trace: Trace) -> bool:
    """Was every reward of the run one and the same, and none above zero? Then it learned from no rollout.

    One above zero may be the highest there is; and where answers were right at times, rewards are missing, not skill.
    """
    accuracy = trace.told.get("accuracy")
    alive = accuracy is not None and max(accuracy.values, default=0.0) > NO_REWARD
    return len(trace.reward) >= WINDOW and max(trace.reward) == min(trace.reward) <= 0 and not alive


def _chance(trace: Trace) -> bool:
    """Were all alarms about a few rows with many turns cut off, as small batches have by chance, and equal rewards?

    What a run ends with may go on, and is no chance if it already went on for as long as chance does not.
    """
    loud = [alarm for alarm in trace.alarms if alarm.tier is Tier.ALARM]
    cut_off, reward = trace.told.get("truncated"), trace.told.get("reward")
    only = all(a.detector == "hard_limit" and {d.stream for d in a.drivers} == {"truncated"} for a in loud)
    if not only or cut_off is None or reward is None:
        return False
    rows = {step for step, level in cut_off if level >= BROKEN}
    if rows.issuperset(cut_off.steps[-FEW:]):
        return False
    then, low = [value for step, value in reward if step in rows], floor(reward.values)
    return len(rows) < MIN_STEPS and bool(then) and fmean(then) - low >= KEPT * (median(reward.values) - low)


def _learning(trace: Trace, since: int) -> bool:
    """Does the reward go on rising, without a fall, since a step from which turns are cut off, and no more is wrong?

    Then the limit is low, or answers get longer: nothing was lost, unless the end of the turn was.
    """
    reward, tails = trace.told.get("reward"), trace.tail.items()
    wrong = {s for s, tail in tails if s in OUTCOMES and median(tail) >= min(spec(s).null.abs, SOUND)}
    if reward is None or not wrong <= {"truncated"} or _endless(trace, since):
        return False
    low, after = floor(reward.values), reward.since(since)
    before = reward.values[: len(reward.values) - len(after)][-WINDOW:]
    held = not before or fmean(after[:WINDOW]) - low >= KEPT * (fmean(before) - low)
    return len(after) >= 2 * WINDOW and held and rose(after)


def _endless(trace: Trace, since: int) -> bool:
    """Does no turn end by itself at the end, where nearly all did before a step?"""
    cut_off = trace.told.get("truncated")
    before = [level for step, level in cut_off or () if step < since]
    return len(before) >= MIN_STEPS and median(before) < SOUND and median(trace.tail["truncated"]) >= ENDLESS


def shares_verdict(record: StepRecord) -> tuple[Verdict, str, tuple[Driver, ...]]:
    """Verdict, kind and shares of a log without steps: one record over all its turns."""
    level = {o.stream: o.value for o in record.observations}
    bad = level.get("polluted", 0.0) + level.get("collapsed", 0.0)
    ranked = sorted((s for s in level if level[s] > 0), key=lambda s: -level[s])
    total = sum(level.values())
    shares = tuple(Driver(s, level[s] / total, level[s], 0.0, spec(s).null.abs) for s in ranked)
    if record.metrics.get("turns", 0) < MIN_STEPS:
        return Verdict.UNJUDGED, "", shares
    if bad < TOUCHED:
        return Verdict.HEALTHY, "", shares
    return Verdict.COLLAPSED if bad >= BROKEN else Verdict.DEGRADED, FAILURES[ranked[0]], shares


def not_judged(trace: Trace) -> tuple[tuple[str, str], ...]:
    """Streams nobody could judge, and why."""
    rows = [(s, "not in the log") for s in ("hazard", *sorted(BAD_OUTCOMES)) if s not in trace.counts]
    if len(trace.steps) < MIN_STEPS:
        rows.insert(0, ("", f"{len(trace.steps)} steps, {MIN_STEPS} are needed"))
    short = [(s, n) for s, n in sorted(trace.counts.items()) if n <= USABLE]
    return tuple(rows + [(s, f"{n} values, {USABLE + 1} are needed for a baseline") for s, n in short])


def _decisive(alarms: Sequence[Alarm]) -> tuple[Alarm | None, bool]:
    """The alarm that opened the last episode, and whether that episode is over.

    A new normal declared by `rebaselined` ends nothing: what is broken was only got used to.
    """
    first: Alarm | None = None
    over = True
    for a in alarms:
        if a.tier is Tier.ALARM and (over or first is None):
            first, over = a, False
        elif a.tier is Tier.CLEARED:
            over = True
    return first, over


def _recent(trace: Trace, alarm: Alarm | None) -> int:
    """How many rows are the end: none from before the onset of an alarm, which would call it over by what was sound."""
    since = len(trace.steps) - bisect_left(trace.steps, _onset(trace, alarm)) if alarm else WINDOW
    return min(WINDOW, since) if since >= FEW else WINDOW


def _still(trace: Trace, alarm: Alarm, recent: int) -> bool:
    """Is the main driver still lost at the end: beyond what was tolerated, and in half of all cases?"""
    if not alarm.drivers:
        return False
    top = alarm.drivers[0]
    tail = list(trace.tail.get(top.stream, ()))[-recent:]
    return bool(tail) and median(tail) >= max(BROKEN, top.tolerance)


def _back(trace: Trace, alarm: Alarm, recent: int) -> bool:
    """Are all streams that drove the alarm within what was tolerated then, at the end?"""
    culprits = [driver for driver in alarm.drivers if driver.share >= CULPRIT]
    tails = [(driver.tolerance, list(trace.tail.get(driver.stream, ()))[-recent:]) for driver in culprits]
    return bool(tails) and all(tail and median(tail) < tolerance for tolerance, tail in tails)


def _medians(values: Sequence[float]) -> list[float]:
    w = min(window(len(values)), len(values))
    return [median(values[i : i + w]) for i in range(len(values) - w + 1)]


def _reward(values: Sequence[float]) -> tuple[float, float, float] | None:
    if not values:
        return None
    w = min(window(len(values)), len(values))
    means = [fmean(values[i : i + w]) for i in range(len(values) - w + 1)]
    return means[0], max(means), means[-1]


def _kept(values: Sequence[float]) -> float | None:
    """The part of the best reward left at the end, whatever one freak row says; below zero, counted from the worst."""
    reward, low = _reward(settled(values).tolist()), floor(values)
    return (reward[2] - low) / (reward[1] - low) if reward and reward[1] > low else None
