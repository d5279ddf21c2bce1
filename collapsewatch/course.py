"""What the scalars of a run say after the fact: losses that last, when they began, and what moved before them.

Detectors watch structural rates, of which a healthy run has a known level. Reward, accuracy, entropy and lengths
have none: they are judged against the run's own best, once it is over.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from statistics import fmean, median
from typing import NamedTuple

import numpy as np

from .curves import is_score
from .levels import SURE, WINDOW, Fall, Series, cut, fall, floor, quantile, sagged, settled, window
from .records import NOT_FINITE, VITAL, Driver, Verdict

LOST = 0.3  # of the best: less than that at the end is lost
FEW_TOKENS = 5.0  # in the mean: less is no answer, only its end
LOCKED = 0.02  # nat: the model writes one text whatever is sampled; healthy tool agents have 0.03 and more
CALLED = 0.3  # calls per rollout: who calls less has not much to abandon
BACK = 0.8  # of the level before a dip: a run that came back
SELDOM = 0.5  # share of rows without finite numbers: where most have none, it is how the run logs
LASTING = 5  # rows without finite numbers: a batch or two of infinite ratios are skipped, and training goes on
CEILING = 0.9  # of the highest reward of any row: what is there has nothing left to learn

LENGTH, CALLS, GRAD = "completions/mean_length", "tools/call_frequency", "grad_norm"


class Change(NamedTuple):
    """A metric that counts as moved when its level is multiplied by `factor` or more (if < 1: or less)."""

    metric: str
    factor: float
    kind: str


# Factors that no healthy run of the logs seen so far reaches while its reward falls.
CAUSES = (
    Change(CALLS, 0.5, "tool_abandonment"),
    Change(LENGTH, 0.25, "early_stop"),
    Change(LENGTH, 1.5, "length_runaway"),
    Change(GRAD, 30.0, "grad_explosion"),
    Change("entropy", 3.0, "entropy_explosion"),
    Change("kl", 10.0, "kl_explosion"),
)
"""What may have moved with a loss, the most telling first."""
WATCHED = VITAL | {"accuracy", "reward_std"} | {cause.metric for cause in CAUSES}


class Finding(NamedTuple):
    """A lasting loss: its kind, the step at which it began, the one by which it was beyond noise, what moved."""

    verdict: Verdict
    kind: str
    onset: int
    seen: int
    drivers: tuple[Driver, ...]


def watched(metric: str) -> bool:
    """Is a metric read here?"""
    return metric in WATCHED or is_score(metric)


def judge(told: Mapping[str, Series]) -> Finding | None:
    """The worst lasting loss among the scores of a run, or a policy locked into one answer; None without any."""
    scores = ["reward", "accuracy", *sorted(name for name in told if is_score(name))]
    lost = next(
        (_explained(told, name, Verdict.COLLAPSED) for name in scores if name in told and _lost(told[name])), None
    )
    found = _no_numbers(told)
    if found and (lost is None or found.onset <= lost.seen):
        return found._replace(verdict=Verdict.COLLAPSED) if lost else found
    found = lost or _early_stop(told) or _abandoned(told) or _locked(told)
    if found:
        return found
    for name in scores[:2]:
        if name in told and sagged(told[name].values):
            return _explained(told, name, Verdict.DEGRADED)
    return _dipped(told["reward"]) if "reward" in told else None


def loss_before(series: Series | None, onset: int) -> int | None:
    """The step at which the values fell for good, if that was shortly before the onset of something else."""
    found = fall(series.values) if series else None
    if series is None or found is None or not found.sure:
        return None
    rows = bisect_left(series.steps, onset) - found.at
    return series.steps[found.at] if 0 < rows <= WINDOW else None


def _lost(series: Series) -> bool:
    found = fall(series.values)
    if found is None or not found.sure:
        return False
    values, low = settled(series.values), floor(series.values)
    end = float(values[max(found.at, values.size - window(values.size)) :].mean())
    return max(found.after, end) - low < LOST * (found.before - low)


def _explained(told: Mapping[str, Series], score: str, verdict: Verdict) -> Finding | None:
    """The loss of a score, with what else moved about then; the cause that moved first names it."""
    found = fall(told[score].values)
    if found is None:
        return None
    onset = told[score].steps[found.at]
    causes: dict[str, tuple[int, Driver, str]] = {}
    for cause in CAUSES:
        moved = _moved(told.get(cause.metric), onset, cause)
        if moved and cause.metric not in causes:
            causes[cause.metric] = moved
    ranked = sorted(causes.values(), key=lambda moved: moved[0])  # stable: of what moved at once, the most telling
    if ranked:
        kind = ranked[0][2]
    else:
        masked = score != "reward" and "reward" in told and not sagged(told["reward"].values)
        kind = "reward_masked" if masked else "reward_loss"
    own = (onset, Driver(score, 1.0, found.after, found.before, LOST * found.before), "")
    drivers = [driver for _, driver, _ in sorted([*ranked, own], key=lambda moved: moved[0])]
    return _finding(verdict, kind, told[score], found, drivers)


def _moved(series: Series | None, onset: int, cause: Change) -> tuple[int, Driver, str] | None:
    """When a cause moved, from where to where, if it did about the onset."""
    at = bisect_left(series.steps, onset) if series else 0
    if series is None or not 1 < at < len(series.values):
        return None
    first = max(0, at - 3 * WINDOW)
    before, after = median(series.values[first:at]), median(series.values[at : at + WINDOW])
    limit = cause.factor * before
    if not (before > 0 and (after <= limit if cause.factor < 1 else after >= limit)):
        return None
    k = cut(np.asarray(series.values[first : at + WINDOW]))
    step = series.steps[at if k is None else first + k]
    return step, Driver(cause.metric, 1.0, after, before, limit), cause.kind


def _no_numbers(told: Mapping[str, Series]) -> Finding | None:
    """Updates that have no finite numbers any more; a reward that is told and holds is not lost yet."""
    if NOT_FINITE not in told:
        return None
    bad = set(told[NOT_FINITE].steps)
    # Not every step may tell of its update: a reward counts as an update's only where nothing else is told of one.
    names = [name for name in ("entropy", GRAD, "loss") if name in told] or ["reward"]
    rows = sorted(bad.union(*(told[name].steps for name in names if name in told)))
    at = len(rows)
    while at and rows[at - 1] in bad:
        at -= 1
    before = sum(step in bad for step in rows[:at]) / at if at else 1.0
    if len(rows) - at < LASTING or before >= SELDOM:
        return None
    holds = "reward" in told and told["reward"].since(rows[-LASTING]) and not sagged(told["reward"].values)
    verdict = Verdict.DEGRADED if holds else Verdict.COLLAPSED
    return Finding(verdict, NOT_FINITE, rows[at], rows[at + 1], (Driver(NOT_FINITE, 1.0, 1.0, before, SELDOM),))


def _early_stop(told: Mapping[str, Series]) -> Finding | None:
    """Turns of a few tokens where there were many; a reward that did not fall with them pays for it."""
    found = fall(told[LENGTH].values) if LENGTH in told else None
    # The median: a row on the way down is among those after the fall, and in a mean it outweighs what it fell to.
    if found is None or not found.sure or median(told[LENGTH].values[found.at :]) > min(FEW_TOKENS, found.before / 10):
        return None
    verdict = Verdict.SILENT if "reward" in told else Verdict.COLLAPSED
    return _finding(verdict, "early_stop", told[LENGTH], found, [_driver(LENGTH, found, FEW_TOKENS)])


def _abandoned(told: Mapping[str, Series]) -> Finding | None:
    """Tools that were called and hardly are any more; a reward that did not fall with them pays for it."""
    found = fall(told[CALLS].values) if CALLS in told else None
    if found is None or not found.sure or found.before < CALLED or found.after > found.before / 10:
        return None
    verdict = Verdict.SILENT if "reward" in told else Verdict.COLLAPSED
    return _finding(verdict, "tool_abandonment", told[CALLS], found, [_driver(CALLS, found, found.before / 2)])


def _dipped(reward: Series) -> Finding | None:
    """A reward that was lost for many rows and came back by itself."""
    v, w = settled(reward.values), window(len(reward.values))
    means = np.convolve(v, np.ones(w) / w, "valid")
    if w < 5 or means.size < 3 * w:
        return None
    at = w + int(np.argmin(means[w : -w or None]))
    before, dip, low = v[:at], v[at : at + w], floor(reward.values)
    best = before[-3 * w :]
    spread = sqrt(best.var(ddof=1) * (1 / best.size + 1 / w))
    sure = best.mean() - dip.mean() > spread * quantile(SURE, best.size - 1)
    back = means[-1] - low >= BACK * (best.mean() - low)
    if not (sure and back and dip.max() - low < LOST * (best.mean() - low)):
        return None
    first = at
    while first > 0 and v[first - 1] - low < LOST * (best.mean() - low):
        first -= 1
    found = Fall(first, float(best.mean()), float(dip.mean()), True)
    return _finding(Verdict.RECOVERED, "reward_loss", reward, found, [_driver("reward", found, LOST * found.before)])


def _locked(told: Mapping[str, Series]) -> Finding | None:
    """A policy that was alive and now writes one text: no entropy and no gradient, or one length throughout.

    Where the reward is as high as it ever was, nothing is left to learn and low entropy is no failure; one answer
    for all prompts is then a trick that pays.
    """
    if "entropy" in told and GRAD in told:
        entropy = fall(told["entropy"].values)
        if entropy and entropy.after < min(LOCKED, entropy.before / 20):
            below = next(i for i, value in enumerate(told["entropy"].values) if i >= entropy.at and value < LOCKED)
            entropy, onset = entropy._replace(at=below), told["entropy"].steps[below]
            if _stopped(told[GRAD], onset) and _alive(told, onset) and not _solved(told, onset):
                driver = _driver("entropy", entropy, LOCKED)
                return _finding(Verdict.COLLAPSED, "lock_in", told["entropy"], entropy, [driver])
    return _one_answer(told)


def _stopped(gradient: Series, onset: int) -> bool:
    """Is there hardly a gradient any more since? By medians: gradients have spikes, which make a mean of anything."""
    after = gradient.since(onset)
    before = gradient.values[: len(gradient.values) - len(after)]
    return bool(before) and bool(after) and median(after) < median(before) / 50


def _one_answer(told: Mapping[str, Series]) -> Finding | None:
    """One short answer to whatever is asked: a mean length that half of all rows share, and no spread of rewards."""
    if LENGTH not in told or "reward_std" not in told:
        return None
    series = told[LENGTH]
    length, times = Counter(series.values).most_common(1)[0]
    at = series.values.index(length)
    if at < 3 or times < max(WINDOW, (len(series.values) - at) / 2) or length > median(series.values[:at]) / 2:
        return None
    onset = series.steps[at]
    if not _alive(told, onset) or median(told["reward_std"].since(onset) or [1.0]) > 0:
        return None
    found = Fall(at, median(series.values[:at]), length, True)
    verdict = Verdict.SILENT if _solved(told, onset) else Verdict.COLLAPSED
    return _finding(verdict, "lock_in", series, found, [_driver(LENGTH, found, found.before / 2)])


def _alive(told: Mapping[str, Series], onset: int) -> bool:
    """Did the rewards differ before?"""
    return "reward" in told and len({v for s, v in told["reward"] if s < onset}) > 1


def _solved(told: Mapping[str, Series], onset: int) -> bool:
    low, high = min(0.0, *told["reward"].values), max(told["reward"].values)
    return fmean(told["reward"].since(onset) or [low]) - low >= CEILING * (high - low)


def _driver(metric: str, found: Fall, limit: float) -> Driver:
    return Driver(metric, 1.0, found.after, found.before, limit)


def _finding(verdict: Verdict, kind: str, series: Series, found: Fall, drivers: Sequence[Driver]) -> Finding:
    shared = tuple(replace(driver, share=1 / len(drivers)) for driver in drivers)
    # Two rows below are the first that can be told from one freak.
    seen = series.steps[min(found.at + 1, len(series.steps) - 1)]
    return Finding(verdict, kind, series.steps[found.at], seen, shared)
