"""Changes of level in a series: where it fell for good, and whether noise could do that."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import inf, sqrt
from typing import NamedTuple

import numpy as np

HUGE = 1e100  # sums of squares stay finite below it
WINDOW = 10  # rows that make "at the end": long enough for a mean to outvote a freak batch
SAGGED = 0.7  # of the best quarter: less, beyond noise, is a loss
NOISE = 3.0  # standard errors between two quarters
SURE = 5.0  # standard errors between best and end: the best of many windows is a lucky one, in any noisy run


class Series:
    """One metric over the steps that tell it; a value whose square is none any more tells nothing."""

    def __init__(self) -> None:
        self.steps, self.values = array("q"), array("d")

    def add(self, step: int, value: float) -> None:
        if abs(value) < HUGE:
            self.steps.append(step)
            self.values.append(value)

    def since(self, step: int) -> Sequence[float]:
        """The values from a step on."""
        return self.values[bisect_left(self.steps, step) :]

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self.steps, self.values, strict=True)


class Fall(NamedTuple):
    """A fall from the best level: index of the first row below, means before and after, and whether noise can do it."""

    at: int
    before: float
    after: float
    sure: bool


def settled(values: Sequence[float]) -> np.ndarray:
    """The values within the range of their medians of three neighbours: what one row alone reaches is no level.

    Of a few rows all count: their extremes are most of the noise there is to see.
    """
    v = np.asarray(values, dtype=np.float64)
    if v.size < 2 * WINDOW:
        return v
    middle = np.median(np.stack([v[:-2], v[1:-1], v[2:]]), axis=0)
    return np.clip(v, middle.min(), middle.max())


def floor(values: Sequence[float]) -> float:
    """What the height of a level is counted from: zero, or the lowest that was settled below it."""
    return float(settled(values).min(initial=0.0))


def fall(values: Sequence[float]) -> Fall | None:
    """Where the values fell from their best window for good, if they did.

    Of all ways to cut what follows the beginning of the best window in two, the one that leaves the least
    variance. A row varies as much afterwards as before, at least: two equal rows prove nothing.
    """
    v = settled(values)
    if v.size < 5:
        return None
    w = window(v.size)
    best = int(np.argmax(np.convolve(v, np.ones(w), "valid")))
    k = cut(v[best:], max(2, w // 2))
    if k is None:
        return None
    before, after = v[best : best + k], v[best + k :]
    drop = float(before.mean() - after.mean())
    if drop <= 0:
        return None
    spread = sqrt(max(before.var(ddof=1), after.var(ddof=1)) * (1 / before.size + 1 / after.size))
    errors = drop / spread if spread else inf
    sure = errors > quantile(SURE, before.size + after.size - 2)
    return Fall(best + k, float(before.mean()), float(after.mean()), sure)


def cut(v: np.ndarray, least: int = 1) -> int | None:
    """Where to cut (N,) values into two of least variance: `least` values or more before, two or more after."""
    k = np.arange(1, v.size)
    allowed = (k >= least) & (v.size - k >= 2)
    if not allowed.any():
        return None
    total = np.cumsum(v)
    between = total[:-1] ** 2 / k + (total[-1] - total[:-1]) ** 2 / (v.size - k)
    return int(k[np.argmax(np.where(allowed, between, -inf))])


def window(n: int) -> int:
    """How many of n rows make a window."""
    return max(3, min(WINDOW, n // 4))


def sagged(values: Sequence[float]) -> bool:
    """Is the last quarter below the best quarter by a third, and by more than noise?

    Quarters, because the best of many short windows lies above the last one in any noisy run.
    """
    v = np.asarray(values, dtype=np.float64)
    w = v.size // 4
    if w < 3:  # of two rows nobody knows the spread
        return False
    last, best = v[-w:], max((v[i * w : (i + 1) * w] for i in range(3)), key=lambda part: float(part.mean()))
    low = min(0.0, float(v.min()))
    noise = sqrt((best.var(ddof=1) + last.var(ddof=1)) / w)
    fell = last.mean() - low < SAGGED * (best.mean() - low)
    return bool(fell and best.mean() - last.mean() > noise * quantile(NOISE, 2 * w - 2))


def rose(values: Sequence[float]) -> bool:
    """Is the last quarter above the first by more than noise?"""
    v = np.asarray(values, dtype=np.float64)
    w = v.size // 4
    if w < 2:
        return False
    first, last = v[:w], v[-w:]
    noise = sqrt((first.var(ddof=1) + last.var(ddof=1)) / w)
    return bool(last.mean() - first.mean() > noise * quantile(NOISE, 2 * w - 2))


def quantile(z: float, freedom: int) -> float:
    """Student's quantile for a normal one of z, by its expansion: of few rows even the spread is a guess.

    >>> round(quantile(3.0, 4), 1), round(quantile(3.0, 1000), 1)
    (6.0, 3.0)
    """
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
