"""What the other methods are given of a run: usual scalars, our key series, and those less what is tolerated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from simulate import Run

from collapsewatch.detectors import spec
from collapsewatch.detectors.baseline import SelfStartingBaseline
from collapsewatch.detectors.streams import FLOOR

SCALARS = ("reward", "reward_std", "entropy", "kl", "grad_norm", "loss")
SCALARS += ("completions/mean_length", "completions/clipped_ratio")
KEY = ("hazard", "no_end", "reopen", "no_call_start", "call_in_text")
KEY += ("polluted", "collapsed", "empty", "truncated", "repeated", "parse_failure")
_SPECS = [spec(name) for name in KEY]
_FLOORS = np.array([FLOOR[s.kind] for s in _SPECS])
_ABS, _RATIO = np.array([s.null.abs for s in _SPECS]), np.array([s.null.ratio for s in _SPECS])


@dataclass(frozen=True)
class Series:
    """One run's rows: `steps` (T,), `scalar` (T, 8), `key` (T, 11), `excess` (T, 11)."""

    steps: np.ndarray
    scalar: np.ndarray
    key: np.ndarray
    excess: np.ndarray


def of(run: Run) -> Series:
    """The series of a run; a value that was not measured on a step is the last one that was."""
    key = np.stack([_filled(*run.streams[name][:2]) for name in KEY], axis=1)
    scalar = np.stack([run.metrics[name] for name in SCALARS], axis=1)
    return Series(run.steps, scalar, np.log(key + _FLOORS), excess(key))


def _filled(value: np.ndarray, n: np.ndarray) -> np.ndarray:
    known = np.maximum.accumulate(np.where(n > 0, np.arange(len(n)), 0))
    return np.asarray(value[known])


def excess(key: np.ndarray) -> np.ndarray:
    """How far each value lies beyond what the product's null tolerates, in nat; (T, 11) from values (T, 11).

    The tolerance is fixed before each value is seen, by the product's own baseline.
    """
    baseline, all_of_them = SelfStartingBaseline(), np.arange(len(KEY))
    baseline.grow(list(_FLOORS))
    y = key.copy()
    y[:, 0] = -np.expm1(-y[:, 0])  # the hazard's share of turns about to break
    out = np.zeros_like(y)
    quiet = np.zeros(len(KEY), dtype=bool)
    for i in range(len(y)):
        if baseline.usable().all():
            limit = np.maximum(_ABS, _RATIO * baseline.values())
            out[i] = np.log((y[i] + _FLOORS) / (limit + _FLOORS))
        else:
            out[i] = -3.0
        baseline.update(all_of_them, y[i], quiet)
    return out


def packed(all_series: Sequence[Series]) -> dict[str, np.ndarray]:
    """All runs below each other, and where each begins, for another process."""
    names = ("steps", "scalar", "key", "excess")
    rows = {name: np.concatenate([getattr(s, name) for s in all_series]) for name in names}
    return rows | {"starts": np.cumsum([0, *(len(s.steps) for s in all_series)])}
