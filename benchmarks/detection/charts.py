"""Control charts of a few lines, each as a statistic per step: where it crosses a threshold, it alarms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from field import ALLOWED, Field
from score import score
from series import Series


def z_score(values: np.ndarray, window: int = 30) -> np.ndarray:
    """W&B's automation: each value against mean and standard deviation of the `window` before it, (T,) from (T, S)."""
    out = np.zeros(len(values))
    for i in range(window, len(values)):
        past = values[i - window : i]
        spread = past.std(axis=0)
        away = np.abs(values[i] - past.mean(axis=0))
        out[i] = np.max(np.where(spread > 1e-6, away / np.maximum(spread, 1e-6), 0.0))
    return out


def cusum(values: np.ndarray, learn: int = 20, slack: float = 0.5, both: bool = False) -> np.ndarray:
    """Plain CUSUM of standardised values, normal as in the first `learn` rows; upwards, or `both` ways."""
    first = values[:learn]
    spread = np.maximum(first.std(axis=0), np.maximum(0.05 * np.abs(first.mean(axis=0)), 0.01))  # no series stays at 0
    z = (values - first.mean(axis=0)) / spread
    z[:learn] = 0.0
    up = _sums(z - slack)
    return np.maximum(up, _sums(-z - slack)) if both else up


def tolerant_cusum(excess: np.ndarray) -> np.ndarray:
    """CUSUM of what lies beyond the tolerance, each step counting for at most 3 nat either way."""
    return _sums(np.clip(excess, -3.0, 3.0))


def _sums(z: np.ndarray) -> np.ndarray:
    """The largest of the sums that restart at zero, (T,) from (T, S)."""
    out, held = np.zeros(len(z)), np.zeros(z.shape[1])
    for i, row in enumerate(z):
        held = np.maximum(held + row, 0.0)
        out[i] = held.max()
    return out


@dataclass(frozen=True)
class Chart:
    """A statistic of a run, and the threshold its makers or textbooks set; None where there is no such thing."""

    name: str
    statistic: Callable[[Series], np.ndarray]
    default: float | None


CHARTS = (
    Chart("W&B z-score 30, usual scalars", lambda s: z_score(s.scalar), 3.0),
    Chart("W&B z-score 30, our 11 series", lambda s: z_score(s.key), 3.0),
    Chart("CUSUM, usual scalars", lambda s: cusum(s.scalar, both=True), 5.0),
    Chart("CUSUM, our 11 series", lambda s: cusum(s.key), 5.0),
    Chart("CUSUM, our 11 series and tolerance", lambda s: tolerant_cusum(s.excess), None),
)


def first(steps: np.ndarray, statistic: np.ndarray, threshold: float) -> int:
    """The first step at which the statistic exceeds the threshold; 0 if none."""
    over = np.flatnonzero(statistic > threshold)
    return int(steps[over[0]]) if over.size else 0


def alarms(data: Field, statistics: Sequence[np.ndarray], threshold: float) -> list[int]:
    """Each run's first alarm."""
    return [first(s.steps, x, threshold) for s, x in zip(data.series, statistics, strict=True)]


def tuned(train: Field, statistics: Sequence[np.ndarray]) -> float:
    """The smallest threshold, to 1 %, that keeps false alarms at `ALLOWED`."""
    low, high = 0.0, max(float(x.max(initial=0)) for x in statistics) + 1.0
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        enough = score(train.truths, alarms(train, statistics, middle))["fa_per_10k"] <= ALLOWED
        low, high = (low, middle) if enough else (middle, high)
    return high


def table(train: Field, data: Field) -> dict[str, Any]:
    """A row per chart at its default, and one at the threshold set on the training runs."""
    rows = {}
    for chart in CHARTS:
        learned = [chart.statistic(s) for s in train.series]
        told = learned if data is train else [chart.statistic(s) for s in data.series]
        if chart.default is not None:
            rows[f"{chart.name}, {chart.default:g}"] = score(data.truths, alarms(data, told, chart.default))
        level = tuned(train, learned)
        rows[f"{chart.name}, tuned to {level:.3g}"] = score(data.truths, alarms(data, told, level))
    return rows
