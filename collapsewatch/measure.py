"""Arrays of one step on one rank to sums by stream and prompt group, and to detail rows. Pure numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from .cells import control_rows
from .combine import RankMeasure
from .formats.bound import BoundFormat, SlotArrays
from .records import SLOTS, Classified, RolloutRow, Slot, Structure, TurnRow
from .rollouts import Bools, Floats, GroupSums, Rollouts
from .scalars import control_sums, reward_sums, token_sums, turn_sums
from .structure import Reason

Spans = Sequence[tuple[int, int]]
_WORST = {structure: rank for rank, structure in enumerate(Structure)}  # tool_call < ... < collapsed


def measure_rank(rollouts: Rollouts, chat_format: BoundFormat) -> RankMeasure:
    """Slots, hazards, structures and control-token statistics of one rank's rollouts."""
    arrays = chat_format.slots(rollouts.ids, rollouts.mask)
    sums = GroupSums(rollouts.group)
    p, hazard, known = probabilities(rollouts)
    scored = arrays.alive & known
    # A turn nobody scored has an unknown hazard, not one of zero.
    turns_per = (np.diff(np.maximum.accumulate(np.where(scored, arrays.turn, -1), axis=1), prepend=-1) > 0).sum(axis=1)
    turn_hazard = _hazard_streams(sums, chat_format, arrays, hazard, scored, turns_per)
    _legal_streams(sums, chat_format, arrays, p, hazard, scored)
    spelled = chat_format.spelled(rollouts.ids, rollouts.mask)
    control = tuple(control_rows(chat_format, rollouts, arrays, p, hazard, known, int(turns_per.sum()), spelled))
    control_sums(sums, rollouts, chat_format, p, known, scored)
    spans = chat_format.turns_by_row(rollouts.mask, rollouts.ids)
    classified = _classified(chat_format, rollouts.ids, spans)
    ends = np.isin(rollouts.ids, chat_format.ids[np.array(chat_format.roles) == "end"])  # (N, T)
    _outcome_streams(sums, classified)
    reward_sums(sums, rollouts)
    turn_sums(sums, rollouts, classified, [bool(own) and not ends[i, own[-1][1] - 1] for i, own in enumerate(spans)])
    token_sums(sums, rollouts, arrays, chat_format.control(rollouts.ids, rollouts.mask, spelled))
    return RankMeasure(
        sums.by_stream,
        control,
        tuple(_turn_rows(rollouts, spans, ends, classified, turn_hazard)),
        tuple(_rollout_rows(rollouts, classified, turn_hazard)),
    )


def _classified(chat_format: BoundFormat, ids: npt.NDArray[np.int64], spans: Sequence[Spans]) -> list[list[Classified]]:
    """Every turn of `ids` (N, T), judged; what several rollouts say alike is judged once."""
    known: dict[bytes, Classified] = {}

    def classify(turn: npt.NDArray[np.int64]) -> Classified:
        key = turn.tobytes()
        if key not in known:
            known[key] = chat_format.classify_ids(turn)
        return known[key]

    return [[classify(row[a:b]) for a, b in own] for row, own in zip(ids, spans, strict=True)]


def probabilities(rollouts: Rollouts) -> tuple[Floats, Floats, Bools]:
    """Probabilities and hazards -log(1-p) of the control tokens (N, T, K), 0 where not known; known (N, T)."""
    logp = np.minimum(rollouts.logp.astype(np.float64), 0.0)
    known = rollouts.mask & np.isfinite(logp).all(axis=2)
    p = np.where(known[..., None], np.exp(np.where(known[..., None], logp, 0.0)), 0.0)
    return p, -np.log1p(-np.minimum(p, 1 - 1e-12)), known


def _hazard_streams(
    sums: GroupSums,
    chat_format: BoundFormat,
    arrays: SlotArrays,
    hazard: Floats,
    scored: Bools,
    turns_per: npt.NDArray[np.int_],
) -> Floats:
    """Adds `hazard`, `hazard:<token>`, `hazard@slot` and their cells; returns hazard per position (N, T).

    Summed is the probability that a turn breaks, 1 - exp(-its hazard), not the hazard itself: of a turn that is sure
    to break the hazard has no bound, and it is one broken turn all the same.
    """
    row, at = np.nonzero(scored)  # (P,)
    turns = int(arrays.turn.max(initial=0)) + 1
    turn = row * turns + arrays.turn[row, at]
    slot = arrays.slot[row, at]
    illegal = ~arrays.legal[row, at]  # (P, K)
    held = np.where(illegal, hazard[row, at], 0.0)

    def add(stream: str, values: Floats, where: Bools | slice = slice(None)) -> None:
        by_turn = np.bincount(turn[where], values[where], len(scored) * turns).reshape(-1, turns)
        sums.add(stream, -np.expm1(-by_turn).sum(axis=1), turns_per)

    total = held.sum(axis=1)
    add("hazard", total)
    for k, token in enumerate(chat_format.probe_tokens):
        add(f"hazard:{token}", held[:, k])
    for code, name in enumerate(SLOTS):
        here = slot == code
        if illegal[here].any():
            add(f"hazard@{name}", total, here)
        for k in np.flatnonzero(illegal[here].any(axis=0)).tolist():
            add(f"hazard:{chat_format.probe_tokens[k]}@{name}", held[:, k], here)
    positions = np.zeros(scored.shape)
    positions[row, at] = total
    return positions


def _legal_streams(
    sums: GroupSums,
    chat_format: BoundFormat,
    arrays: SlotArrays,
    p: Floats,
    hazard: Floats,
    scored: Bools,
) -> None:
    """The degenerate side of positions where a control token is legal, as probabilities."""
    opens = np.isin(chat_format.probe_roles, ("open", "section_open", "prefix"))
    p_open = p[..., opens].sum(axis=2)
    none = 1 - np.where(arrays.legal, p, 0.0).sum(axis=2)  # (N, T): neither of the control tokens that are legal
    in_slot = {slot: scored & (arrays.slot == SLOTS.index(slot)) for slot in (Slot.START, Slot.CLOSE, Slot.TEXT)}
    # White space keeps the slot, so only the first position after the header or the call is a decision.
    start, close = (_first(in_slot[slot], arrays.turn) for slot in (Slot.START, Slot.CLOSE))
    if not chat_format.format.implicit:  # where text opens a call, its absence says nothing
        sums.add("no_call_start", np.where(start, none, 0).clip(0).sum(axis=1), start.sum(axis=1))
    sums.add("no_end", np.where(close, none, 0).clip(0).sum(axis=1), close.sum(axis=1))
    sums.add("reopen", np.where(close, p_open, 0).sum(axis=1), close.sum(axis=1))
    text = in_slot[Slot.TEXT]
    opened = np.where(text[..., None] & opens, hazard, 0).sum(axis=(1, 2))
    sums.add("call_in_text", -np.expm1(-opened), text.any(axis=1))


def _first(inside: Bools, turn: npt.NDArray[np.int32]) -> Bools:
    """Where a run of True within one turn begins; both (N, T)."""
    before = np.zeros_like(inside)
    before[:, 1:] = inside[:, :-1] & (turn[:, 1:] == turn[:, :-1])
    return inside & ~before


def _outcome_streams(sums: GroupSums, classified: Sequence[Sequence[Classified]]) -> None:
    """Rates of bad outcomes: over turns, over attempted calls, over rollouts."""
    turns = [len(row) for row in classified]

    def share(stream: str, hit: Callable[[Classified], bool]) -> None:
        sums.add(stream, [sum(map(hit, row)) for row in classified], turns)

    for structure in Structure:
        share(f"structure/{structure}", lambda turn, wanted=structure: turn.structure is wanted)  # type: ignore[misc]
    for stream in (Structure.POLLUTED, Structure.COLLAPSED):
        sums.by_stream[stream] = sums.by_stream[f"structure/{stream}"]
    share("empty", lambda turn: turn.reason == Reason.EMPTY)
    share("truncated", lambda turn: turn.reason == Reason.TRUNCATED)
    share("repeated", lambda turn: turn.reason == Reason.REPETITION)
    attempted = [sum(turn.attempted for turn in row) for row in classified]
    parsed = [sum(len(turn.calls) for turn in row) for row in classified]
    saved = [sum(len(turn.calls) + turn.recovered for turn in row) for row in classified]
    sums.add("parse_failure", np.subtract(attempted, parsed), attempted)
    reached = [sum(max(turn.attempted, len(turn.calls) + turn.recovered) for turn in row) for row in classified]
    sums.add("lenient_parse_rate", saved, reached)
    sums.add("no_call", [count == 0 for count in attempted], np.ones(len(classified)))


def _turn_rows(
    rollouts: Rollouts,
    spans: Sequence[Spans],
    ends: Bools,
    classified: Sequence[Sequence[Classified]],
    hazard: Floats,
) -> Iterator[TurnRow]:
    for i, row in enumerate(classified):
        for j, ((begin, end), turn) in enumerate(zip(spans[i], row, strict=True)):
            yield TurnRow(
                rollout=int(rollouts.row[i]),
                turn=j,
                structure=turn.structure,
                reason=turn.reason,
                stop="eos" if ends[i, end - 1] else "length",
                tokens=end - begin,
                calls=len(turn.calls),
                hazard=float(hazard[i, begin:end].sum()),
            )


def _rollout_rows(
    rollouts: Rollouts, classified: Sequence[Sequence[Classified]], hazard: Floats
) -> Iterator[RolloutRow]:
    for i, row in enumerate(classified):
        worst = max((turn.structure for turn in row), key=_WORST.__getitem__, default=Structure.COLLAPSED)
        yield RolloutRow(
            rollout=int(rollouts.row[i]),
            group=int(rollouts.group[i]),
            reward=float(rollouts.reward[i]),
            advantage=float(rollouts.advantage[i]),
            turns=len(row),
            tokens=int(rollouts.mask[i].sum()),
            calls=sum(len(turn.calls) for turn in row),
            env_errors=int(rollouts.env_errors[i]),
            structure=worst,
            hazard=float(hazard[i].sum()),
        )
