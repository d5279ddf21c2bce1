"""Control-token statistics of one rank by cell: token, slot, and whether the token is legal there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .formats.bound import BoundFormat, SlotArrays, Spelled
from .records import SLOTS, ControlRow, Slot
from .rollouts import Bools, Floats, Rollouts

LAST_TURN = 8
"""Turns told apart; the last of them holds all later ones."""


class _Positions(NamedTuple):
    """The trained positions of a batch, one after another."""

    slot: npt.NDArray[np.int8]  # (P,)
    turn: npt.NDArray[np.int32]  # (P,)
    alive: Bools  # (P,) scored: nothing illegal was sampled before in its turn
    legal: Bools  # (P, K)
    p: Floats  # (P, K)
    hazard: Floats  # (P, K)
    drawn: Bools  # (P, K) this token was sampled here
    whole: Floats  # (P, K) probability of the whole marker where it was sampled, else NaN
    advantage: Floats  # (P,)


class ControlKey(NamedTuple):
    """What a cell is: a token in a slot, where it is legal or where it is not."""

    token: str
    slot: Slot
    legal: bool


def control_rows(
    chat_format: BoundFormat,
    rollouts: Rollouts,
    arrays: SlotArrays,
    p: Floats,
    hazard: Floats,
    known: Bools,
    turns: int,
    spelled: Spelled,
) -> Iterator[ControlRow]:
    """One row per cell that has a trained position; `p` and `hazard` (N, T, K) hold where `known` (N, T).

    `spelled`: the markers of several tokens, as `BoundFormat.spelled` finds them.

    Probabilities are those of scored positions, up to the first illegal token of each of the `turns`. Logit
    pressure is of all trained positions, for all of them push: its sum over a token's cells is the whole push.
    """
    at = _positions(chat_format, rollouts, arrays, p, hazard, known, spelled)
    last = min(int(at.turn.max(initial=0)) + 1, LAST_TURN)
    for code, slot in enumerate(SLOTS):
        here = np.flatnonzero(at.slot == code)
        for k, token in enumerate(chat_format.probe_tokens):
            for legal in (False, True):
                cell = here[at.legal[here, k] == legal]
                if cell.size:
                    yield _row(at, cell, k, ControlKey(token, slot, legal), turns, last)


def pressure(chat_format: BoundFormat, rollouts: Rollouts, p: Floats, known: Bools) -> tuple[Floats, Floats]:
    """Push of the policy gradient on each control token's logit, by rollout: `self` and `other`, (N, K) each.

    The sums of A (1 - p) over trained positions where the token was drawn, and of -A p over the others: over the
    number of trained tokens, the gradient of the mean of A log p(token) in a bias on the logit, at temperature 1.
    Source: arXiv 2606.26027, released code, `dp_actor.py` (`self_logits_*`, `other_logits_*`).
    """
    drawn = known[..., None] & (rollouts.ids[..., None] == chat_format.probe_ids)  # (N, T, K)
    held = np.where(known[..., None], p, 0.0)
    own = np.where(drawn, 1.0 - held, 0.0).sum(axis=1)  # (N, K)
    rest = np.where(drawn, 0.0, held).sum(axis=1)
    advantage = rollouts.advantage[:, None]
    return advantage * own, -advantage * rest


def _positions(
    chat_format: BoundFormat,
    rollouts: Rollouts,
    arrays: SlotArrays,
    p: Floats,
    hazard: Floats,
    known: Bools,
    spelled: Spelled,
) -> _Positions:
    row, column = np.nonzero(known)
    drawn = rollouts.ids[row, column, None] == chat_format.probe_ids  # (P, K)
    own_p = p[row, column]
    whole = np.where(drawn & ~np.isin(chat_format.probe_tokens, list(chat_format.missing)), own_p, np.nan)
    number = np.full(known.shape, -1)
    number[row, column] = np.arange(len(row))
    entry = {int(first): k for k, first in enumerate(chat_format.probe_ids)}
    for n, first, last, _ in spelled:
        k = entry.get(int(rollouts.ids[n, first]))
        if k is not None and rollouts.label_logp is not None and known[n, first]:
            whole[number[n, first], k] = np.exp(np.minimum(rollouts.label_logp[n, first : last + 1].sum(), 0.0))
    return _Positions(
        arrays.slot[row, column],
        np.minimum(arrays.turn[row, column], LAST_TURN - 1),
        arrays.alive[row, column],
        arrays.legal[row, column],
        own_p,
        hazard[row, column],
        drawn,
        whole,
        rollouts.advantage[row],
    )


def _row(at: _Positions, cell: npt.NDArray[np.intp], k: int, key: ControlKey, turns: int, last: int) -> ControlRow:
    """The statistics of the positions `cell` (C,) of token `k`; turns from `last` on are the last entry."""
    drawn, p, advantage = at.drawn[cell, k], at.p[cell, k], at.advantage[cell]
    trained = len(at.slot)
    scored = cell[at.alive[cell]]
    values, turn = at.p[scored, k], at.turn[scored]
    p50, p99 = _quantiles(values, 0.5, 0.99) if scored.size else (np.nan, np.nan)
    turn_n = np.bincount(turn, minlength=last)
    turn_sum = np.bincount(turn, values, last)
    whole = at.whole[scored, k]
    whole = whole[np.isfinite(whole)]
    return ControlRow(
        *key,
        n=scored.size,
        mean=float(values.mean()) if scored.size else np.nan,
        p50=p50,
        p99=p99,
        max=float(values.max(initial=0.0)) if scored.size else np.nan,
        hazard=float(at.hazard[scored, k].sum() / max(turns, 1)),
        expected=float(values.sum()),
        sampled=int(at.drawn[scored, k].sum()),
        forced=float(whole.mean()) if whole.size else np.nan,
        turn_n=tuple(turn_n.tolist()),
        turn_mean=tuple((turn_sum / np.where(turn_n, turn_n, np.nan)).tolist()),
        pressure_self=float(np.where(drawn, advantage * (1 - p), 0.0).sum() / trained),
        pressure_other=float(np.where(drawn, 0.0, -advantage * p).sum() / trained),
    )


def _quantiles(values: Floats, *shares: float) -> list[float]:
    """As `np.quantile` (by the linear method, to the bit), which takes several times as long for a few values."""
    last = len(values) - 1
    places = [share * last for share in shares]
    near = [(int(at), min(int(at) + 1, last)) for at in places]
    ordered = np.partition(values, sorted({place for pair in near for place in pair}))
    found = []
    for at, (i, j) in zip(places, near, strict=True):
        below, above, weight = ordered[i], ordered[j], at - i
        found.append(
            float(below + (above - below) * weight if weight < 0.5 else above - (above - below) * (1 - weight))
        )
    return found
