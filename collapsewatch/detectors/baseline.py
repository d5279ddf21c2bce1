"""The self-starting baseline: where a stream normally is, learned from the run but not from its collapse."""

from __future__ import annotations

from typing import Any

import numpy as np

GAIN = 0.05  # slow: about 20 steps of memory
HUBER = 2.5  # scales; a freak batch counts as this much
CREEP = 0.005  # nat per step that the floor may rise: without it early recall fell from 0.96 to 0.72
SLACK = 0.5  # scales above the floor
USABLE = 3  # values before the first bet
FREE = 10  # values before the creep limit: the first ones are too few to be a floor
GATE_STEPS = 40  # a stream under suspicion teaches nothing for at most so long
EVENT_RISE = 1.0  # nat: an announced event explains a jump of this size, not a collapse
SCALE_START, SCALE_MIN, SCALE_MAX = 0.5, 0.1, 1.0  # nat, of log(y + floor)
_UNLIMITED = 1e9  # finite, so that the state stays plain JSON


class SelfStartingBaseline:
    """Per stream a local mean of `y`: Huber-clipped, creep-limited, gated by evidence.

    What counts as a freak is decided on `x = log(y + floor)`, whose level and scale are learned beside it. The
    baseline itself is the arithmetic mean, because the null is about a mean: a hazard that is near zero on most
    steps and 0.05 on some has a level ten times below its mean, and would alarm for ever (measured: three of
    four healthy runs of the tiny model, docs/measurements.md).

    All columns are (S,) arrays; `grow` appends streams.
    """

    def __init__(self) -> None:
        self.count = np.zeros(0, dtype=np.int64)
        self.level = np.zeros(0)
        self.mean = np.zeros(0)
        self.mean_low = np.zeros(0)
        self.scale = np.zeros(0)
        self.low = np.zeros(0)
        self.cap = np.zeros(0)
        self.gated = np.zeros(0, dtype=np.int64)
        self.floor = np.zeros(0)

    def grow(self, floors: list[float]) -> None:
        """Append streams, given the small number that is added before their logarithm."""
        k = len(floors)
        self.count = np.concatenate([self.count, np.zeros(k, dtype=np.int64)])
        self.gated = np.concatenate([self.gated, np.zeros(k, dtype=np.int64)])
        self.level = np.concatenate([self.level, np.zeros(k)])
        self.low = np.concatenate([self.low, np.zeros(k)])
        self.mean = np.concatenate([self.mean, np.zeros(k)])
        self.mean_low = np.concatenate([self.mean_low, np.zeros(k)])
        self.scale = np.concatenate([self.scale, np.full(k, SCALE_START)])
        self.cap = np.concatenate([self.cap, np.full(k, _UNLIMITED)])
        self.floor = np.concatenate([self.floor, np.array(floors)])

    def usable(self) -> np.ndarray:
        """Which streams have a baseline, (S,) bool."""
        return np.asarray(self.count >= USABLE)

    def values(self) -> np.ndarray:
        """The baselines in the unit of the values, (S,); 0 where there is none yet."""
        return np.where(self.count > 0, np.maximum(self.mean, 0.0), 0.0)

    def update(self, at: np.ndarray, y: np.ndarray, suspect: np.ndarray) -> None:
        """Learn `y` (P,) of the streams `at` (P,), except where `suspect` (P,) bool holds the gate shut."""
        self.gated[at] = np.where(suspect, self.gated[at] + 1, 0)
        learn = self.gated[at] == 0
        learn |= self.gated[at] > GATE_STEPS
        i, x = at[learn], np.log(y[learn] + self.floor[at[learn]])
        first = self.count[i] == 0
        self.count[i] += 1
        gain = np.maximum(GAIN, 1.0 / self.count[i])
        reach = HUBER * self.scale[i]
        step = np.where(first, 0.0, np.clip(x - self.level[i], -reach, reach))
        level = np.where(first, x, self.level[i] + gain * step)
        settled = self.count[i] > FREE
        ceiling = np.where(settled, self.low[i] + CREEP + SLACK * self.scale[i], self.cap[i])
        level = np.minimum(level, ceiling)
        self._learn_mean(i, y[learn], gain, first, settled)
        # 1.25 turns a mean absolute deviation into a standard one; a first value says nothing of spread.
        spread = self.scale[i] + np.where(first, 0.0, gain * (1.25 * np.abs(step) - self.scale[i]))
        self.scale[i] = np.clip(spread, SCALE_MIN, SCALE_MAX)
        self.low[i] = np.where(settled, np.minimum(self.low[i] + CREEP, level), level)
        self.level[i] = level

    def _learn_mean(
        self, i: np.ndarray, y: np.ndarray, gain: np.ndarray, first: np.ndarray, settled: np.ndarray
    ) -> None:
        """The arithmetic mean of `y` (P,) of the streams `i` (P,), under the limits of the level."""
        floor = self.floor[i]
        freak = np.exp(self.level[i] + HUBER * SCALE_MAX) - floor
        mean = np.where(first, y, self.mean[i] + gain * (np.minimum(y, freak) - self.mean[i]))
        log_mean = np.log(mean + floor)
        ceiling = np.where(settled, self.mean_low[i] + CREEP + SLACK * self.scale[i], self.cap[i])
        log_mean = np.minimum(log_mean, ceiling)
        self.mean_low[i] = np.where(settled, np.minimum(self.mean_low[i] + CREEP, log_mean), log_mean)
        self.mean[i] = np.exp(log_mean) - floor

    def restart(self) -> None:
        """Start again after an announced event; the new baseline may lie `EVENT_RISE` above the old one."""
        self.cap = np.where(self.count > 0, np.log(self.mean + self.floor) + EVENT_RISE, self.cap)
        self.count[:] = 0
        self.gated[:] = 0
        self.scale[:] = SCALE_START

    def state_dict(self) -> dict[str, Any]:
        return {k: v.tolist() for k, v in vars(self).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for k, v in vars(self).items():
            setattr(self, k, np.array(state[k], dtype=v.dtype))
