"""Which rollouts are kept token by token, and what is kept of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from zlib import crc32

import numpy as np
import numpy.typing as npt

from .formats.bound import BoundFormat
from .records import SLOTS, RolloutRow, TokenView
from .rollouts import Rollouts

KEPT = 4
"""Rollouts kept per step and rank at most."""
SUSPECTS = 2
"""Rollouts of the highest hazard remembered per step, for the alarm that may come."""
REMEMBERED = 16
"""Steps back to which suspects are remembered: an alarm follows its onset by 4 to 13 steps in the demo's runs."""


class ViewKeeper:
    """Picks rollouts of a share of the prompts, always the same ones, and the suspects behind an alarm.

    `share` of the prompts, by a hash of their text, so that a prompt that comes again is kept again. `decode`: a
    token id to its text.
    """

    def __init__(self, chat_format: BoundFormat, decode: Callable[[int], str], share: float) -> None:
        self._format, self._decode, self._share = chat_format, cache(decode), share
        self._suspects: deque[tuple[int, list[TokenView]]] = deque(maxlen=REMEMBERED)

    def take(
        self, step: int, rollouts: Rollouts, rows: Sequence[RolloutRow], prompt: Callable[[int], str]
    ) -> list[TokenView]:
        """The step's views to store; its suspects are remembered. `prompt`: a rollout's number to its prompt."""
        worst = by_hazard(rows)
        first_of = {rows[i].group: i for i in reversed(worst)}
        kept = [i for i in first_of.values() if crc32(prompt(rows[i].rollout).encode()) < self._share * 2**32][:KEPT]
        views = {i: self._view(rollouts, i) for i in {*kept, *worst[:SUSPECTS]}}
        self._suspects.append((step, [views[i] for i in worst[:SUSPECTS] if i not in kept]))
        return [views[i] for i in kept]

    def suspects(self) -> list[tuple[int, TokenView]]:
        """Views behind an alarm, with their steps; each is given once."""
        found = [(step, view) for step, views in self._suspects for view in views]
        self._suspects.clear()
        return found

    def _view(self, rollouts: Rollouts, i: int) -> TokenView:
        length = int(rollouts.length[i])
        ids, mask = rollouts.ids[i, :length], rollouts.mask[i, :length]
        arrays = self._format.slots(ids[None], mask[None])
        slots = [str(SLOTS[code]) if code >= 0 else "" for code in arrays.slot[0].tolist()]
        return TokenView(
            rollout=int(rollouts.row[i]),
            advantage=float(rollouts.advantage[i]),
            token=tuple(ids.tolist()),
            piece=tuple(map(self._decode, ids.tolist())),
            turn=tuple(arrays.turn[0].tolist()),
            slot=tuple(slots),
            logp=_row(rollouts.label_logp, i, length),
            sampler_logp=_row(rollouts.sampler_logp, i, length),
            entropy=_row(rollouts.entropy, i, length),
            names=self._format.probe_tokens,
            control=tuple(rollouts.logp[i, :length].ravel().tolist()),
        )


def by_hazard(rows: Sequence[RolloutRow]) -> list[int]:
    """The places of rollouts, the most hazardous first."""
    return sorted(range(len(rows)), key=lambda i: -rows[i].hazard)


def _row(values: npt.NDArray[np.floating] | None, i: int, length: int) -> tuple[float, ...]:
    """The first `length` values of row `i` of (N, T); NaN where there are none."""
    return (float("nan"),) * length if values is None else tuple(values[i, :length].tolist())
