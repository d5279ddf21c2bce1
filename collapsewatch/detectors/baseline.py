"""The self-starting baseline: where a stream normally is, learned from the run but not from its collapse."""

from __future__ import annotations

from math import exp
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
APART = 40  # values between two events that each explain a jump: twice the memory
SCALE_START, SCALE_MIN, SCALE_MAX = 0.5, 0.1, 1.0  # nat, of log(y + floor)
_UNLIMITED = 700.0  # nat; finite, so that the state stays plain JSON

Index = np.ndarray | slice
"""Streams: their numbers, or all of them, which spares a copy of every column."""


class SelfStartingBaseline:
    """Per stream a local mean of `y`: Huber-clipped, creep-limited, gated by evidence.

    What counts as a freak is decided on `x = log(y + floor)`, whose level and scale are learned beside it. The
    baseline itself is the arithmetic mean, because the null is about a mean: a hazard that is near zero on most
    steps and 0.05 on some has a level ten times below its mean, and would alarm for ever (measured: three of
    four healthy runs of the tiny model, docs/measurements.md).

    All columns are (R, S) arrays: of each stream as many baselines as there are rows, which differ in what is
    suspect to them; `grow` appends streams. `mean` and `mean_low` are of `y + floor`.
    """

    def __init__(self, rows: int = 1) -> None:
        self.count = np.zeros((rows, 0), dtype=np.int64)
        self.level = np.zeros((rows, 0))
        self.low = np.zeros((rows, 0))
        self.mean = np.zeros((rows, 0))
        self.mean_low = np.zeros((rows, 0))
        self.scale = np.zeros((rows, 0))
        self.cap = np.zeros((rows, 0))
        self.gated = np.zeros((rows, 0), dtype=np.int64)
        self.floor = np.zeros((rows, 0))

    def grow(self, floors: list[float]) -> None:
        """Append streams, given the small number that is added before their logarithm."""
        rows = self.count.shape[0]
        for name, column in vars(self).items():
            new = np.zeros((rows, len(floors)), dtype=column.dtype)
            setattr(self, name, np.concatenate([column, new], axis=1))
        self.floor[:, self.floor.shape[1] - len(floors) :] = floors
        self.reset(slice(None), slice(self.floor.shape[1] - len(floors), None))

    def reset(self, row: int | slice, at: Index = slice(None)) -> None:
        """As if a row had never learned."""
        start = {"floor": self.floor, "mean": self.floor, "scale": SCALE_START, "cap": _UNLIMITED}
        for name, column in vars(self).items():
            value = start.get(name, 0)
            column[row, at] = value[row, at] if isinstance(value, np.ndarray) else value

    def usable(self) -> np.ndarray:
        """Which streams have a baseline, (R, S) bool."""
        return np.asarray(self.count >= USABLE)

    def values(self) -> np.ndarray:
        """The baselines in the unit of the values, (R, S); 0 where there is none yet."""
        return np.maximum(self.mean - self.floor, 0.0)

    def update(self, at: Index, y: np.ndarray, suspect: np.ndarray) -> None:
        """Learn `y` (P,) of the streams `at`, except where `suspect` (R, P) bool holds the gate shut."""
        if not y.size:
            return
        learn = None
        if np.count_nonzero(suspect):
            gated = self.gated[:, at] = np.where(suspect, self.gated[:, at] + 1, 0)
            learn = (gated == 0) | (gated > GATE_STEPS)
        else:
            self.gated[:, at] = 0
        self._learn(at, y + self.floor[:, at], learn)

    def _learn(self, i: Index, y: np.ndarray, learn: np.ndarray | None) -> None:
        """Take the values (R, P), floor added, of the streams `i`, where they may be learned."""
        count = self.count[:, i] + 1
        young = bool(count.min() * GAIN < 1.0)  # any of them: when none is, three columns are constants
        gain = np.maximum(GAIN, 1.0 / count) if young else GAIN
        x, level, mean, scale = np.log(y), self.level[:, i], self.mean[:, i], self.scale[:, i]
        if young:  # a first value is the level, and so moves nothing
            level, mean = np.where(count == 1, x, level), np.where(count == 1, y, mean)
        freak = np.exp(level + HUBER * SCALE_MAX)
        reach = HUBER * scale
        move = np.minimum(np.maximum(x - level, -reach), reach)
        level = level + gain * move
        mean = mean + gain * (np.minimum(y, freak) - mean)
        room = CREEP + SLACK * scale
        low, mean_low = self.low[:, i], self.mean_low[:, i]
        ceiling, mean_ceiling = low + room, mean_low * np.exp(room)
        settled = count > FREE if young else None
        if settled is not None:
            cap = self.cap[:, i]
            ceiling, mean_ceiling = np.where(settled, ceiling, cap), np.where(settled, mean_ceiling, np.exp(cap))
        level, mean = np.minimum(level, ceiling), np.minimum(mean, mean_ceiling)
        low, mean_low = np.minimum(low + CREEP, level), np.minimum(mean_low * exp(CREEP), mean)
        # 1.25 turns a mean absolute deviation into a standard one; a first value says nothing of spread.
        spread = scale + gain * (1.25 * np.abs(move) - scale)
        if settled is not None:
            low, mean_low = np.where(settled, low, level), np.where(settled, mean_low, mean)
            spread = np.where(count == 1, scale, spread)
        scale = np.minimum(np.maximum(spread, SCALE_MIN), SCALE_MAX)
        new = {"count": count, "level": level, "mean": mean, "scale": scale, "low": low, "mean_low": mean_low}
        for name, values in new.items():
            column = getattr(self, name)
            column[:, i] = values if learn is None else np.where(learn, values, column[:, i])

    def restart(self, row: int) -> None:
        """Start again after an announced event; the new baseline may lie `EVENT_RISE` above the old one.

        Of events in quick succession all lie within the first one's limit: else each would add a nat, and a run
        with an event every ten steps could break as slowly as it likes.
        """
        count, cap = self.count[row], self.cap[row]
        raised = (count >= APART) | ((count > 0) & (cap == _UNLIMITED))
        self.cap[row] = np.where(raised, np.log(self.mean[row]) + EVENT_RISE, cap)
        self.count[row] = 0
        self.gated[row] = 0
        self.scale[row] = SCALE_START

    def state_dict(self, row: int) -> dict[str, Any]:
        return {k: v[row].tolist() for k, v in vars(self).items()}

    def load_state_dict(self, row: int, state: dict[str, Any]) -> None:
        for k, v in vars(self).items():
            v[row] = state[k]
