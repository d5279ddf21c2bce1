"""A chat format in the ids of one tokenizer: slots and legality as arrays, turns from token ids."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..records import SLOTS, Classified, Slot, Stop
from ..structure import Tools, judge
from .spelling import Event, Spelling

if TYPE_CHECKING:
    from .base import ChatFormat

AFTER: dict[str, tuple[Slot, Slot]] = {
    "start": (Slot.START, Slot.TEXT),  # not a marker: the beginning of the turn
    "section_open": (Slot.OPEN, Slot.OPEN),  # of the part of a turn that holds its calls
    "open": (Slot.OPEN, Slot.BODY),
    "prefix": (Slot.OPEN, Slot.BODY),  # opens a call that no marker closes
    "divide": (Slot.BODY, Slot.BODY),  # between the parts of a call
    "close": (Slot.CLOSE, Slot.TEXT),
    "section_close": (Slot.CLOSE, Slot.TEXT),
    "think_open": (Slot.THINK, Slot.THINK),
    "think_close": (Slot.START, Slot.TEXT),  # what may follow a reasoning block may start a turn
    "channel": (Slot.START, Slot.START),  # harmony: the name and recipient of a message follow
    "message": (Slot.TEXT, Slot.TEXT),  # harmony: the content of a message that is neither call nor reasoning
    "message_close": (Slot.CLOSE, Slot.CLOSE),  # harmony: another message of the same turn may follow
    "restart": (Slot.START, Slot.START),  # harmony: the header of that message
    "end": (Slot.END, Slot.END),
    "header": (Slot.TEXT, Slot.TEXT),
    "response_open": (Slot.TEXT, Slot.TEXT),
    "response_close": (Slot.TEXT, Slot.TEXT),
}
"""The roles a marker may have, and the slots that stand right after it and, once there is text, after that."""

_ROLES = {role: code for code, role in enumerate(AFTER)}
_NONE = -1  # role of a token that is no marker
_ORDINARY, _BLANK, _CONTROL = 0, 1, 2  # code of a token id; `_CONTROL + k` is the k-th control token
# How vocabularies spell white space: as it is, byte-level BPE, sentencepiece, sentencepiece byte fallback.
_MAYBE_BLANK = re.compile(r"(?:[\sĠĊĉč▁]|<0x(?:09|0A|0D|20)>)+")

Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int8]


Spelled = list[tuple[int, int, int, str]]  # row, first and last token, and text of markers that several tokens spell


class Tokenizer(Protocol):
    """The part of a Hugging Face fast tokenizer that is used."""

    def get_vocab(self) -> dict[str, int]: ...

    def decode(self, token_ids: list[int]) -> str: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


class SlotArrays(NamedTuple):
    """Where each token of a batch stands.

    `slot` (N, T) int8: code into `SLOTS` of what stands before the position in its turn, -1 where masked.
    `alive` (N, T) bool: nothing illegal was sampled before the position in its turn; False where masked.
    `turn` (N, T) int32: index of the turn within its rollout, -1 where masked.
    `legal` (N, T, K) bool: may the k-th of `probe_ids` be sampled at the position, a first piece as the beginning of
    any of its markers? False where masked.
    """

    slot: Codes
    alive: Bools
    turn: npt.NDArray[np.int32]
    legal: Bools


class BoundFormat:
    """A chat format in the ids of one tokenizer.

    `tokens` and `ids` (K,): the control tokens that are single tokens of it. `missing`: the markers that are
    not; slots and turns find them in the bytes that several tokens spell. `pieces`: the ids that spell each of them,
    as the tokenizer writes it alone. `probe_tokens` and `probe_ids` (K'): the control tokens, then every first piece
    of `pieces` that is none itself, under the name of the first marker that begins so. `thinking`: the prompt of
    every turn opens its reasoning block. `notes`: what `format_for` could not make sure of.

    Raises:
        ValueError: the tokenizer has none of the format's control tokens.
    """

    def __init__(self, chat_format: ChatFormat, tokenizer: Tokenizer, thinking: bool = False) -> None:
        # By membership: convert_tokens_to_ids answers an unknown token with the id of <unk>, often 0.
        vocab = tokenizer.get_vocab()
        known = [marker for marker in chat_format.markers if marker.text in vocab]
        if not known:
            wanted = " ".join(chat_format.role)
            raise ValueError(f"format {chat_format.name}: got a tokenizer with none of its tokens, expected {wanted}")
        self.format, self.thinking, self._tokenizer = chat_format, thinking, tokenizer
        self.tokens: tuple[str, ...] = tuple(marker.text for marker in known)
        self.ids: npt.NDArray[np.int64] = np.array([vocab[token] for token in self.tokens], np.int64)
        self.missing: tuple[str, ...] = tuple(text for text in chat_format.role if text not in vocab)
        # Tables by token code; the last entry of `_codes` stands for ids beyond the vocabulary.
        self._codes = np.full(max(vocab.values()) + 2, _ORDINARY, np.int8)
        blank = [i for token, i in vocab.items() if _MAYBE_BLANK.fullmatch(token)]
        self._codes[[i for i in blank if not tokenizer.decode([i]).strip()]] = _BLANK
        self._codes[self.ids] = _CONTROL + np.arange(len(known), dtype=np.int8)
        self._role = np.array([_NONE, _NONE, *(_ROLES[marker.role] for marker in known)], np.int8)
        self._slot = np.array([SLOTS.index(slot) for pair in AFTER.values() for slot in pair], np.int8)
        self._may = _may(chat_format.follow)
        self._first = _ROLES["think_open" if thinking else "start"]
        self._spelling = Spelling(chat_format, self.tokens, vocab)
        self.pieces: dict[str, tuple[int, ...]] = self._spelling.written(tokenizer.encode)
        begun: dict[int, list[str]] = {}  # the markers that begin with a piece
        for text, spelled in self.pieces.items():
            if spelled[0] not in self.ids:
                begun.setdefault(spelled[0], []).append(text)
        self.probe_tokens: tuple[str, ...] = (*self.tokens, *(texts[0] for texts in begun.values()))
        self.probe_ids: npt.NDArray[np.int64] = np.array([*self.ids, *begun], np.int64)
        self._probe_may = np.stack(
            [
                self._may[:, [_ROLES[chat_format.role[text]] for text in texts]].any(axis=1)
                for texts in [[token] for token in self.tokens] + list(begun.values())
            ],
            axis=1,
        )  # (states, K')
        self.notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.format.name

    @property
    def roles(self) -> tuple[str, ...]:
        """Role of each control token (K,)."""
        return tuple(self.format.role[token] for token in self.tokens)

    @property
    def probe_roles(self) -> tuple[str, ...]:
        """Role of each of `probe_tokens` (K',)."""
        return tuple(self.format.role[token] for token in self.probe_tokens)

    def _coded(self, ids: npt.ArrayLike, mask: Bools) -> Codes:
        """Token codes, ordinary where masked."""
        codes: Codes = np.take(self._codes, np.asarray(ids, np.int64), mode="clip")
        return np.where(mask, codes, np.int8(_ORDINARY))

    def blank(self, ids: npt.ArrayLike) -> Bools:
        """Which of the tokens `ids` are white space alone: layout, which changes no slot."""
        return np.asarray(np.take(self._codes, np.asarray(ids, np.int64), mode="clip") == _BLANK)

    def _starts(self, codes: Codes, mask: Bools) -> Bools:
        """Where a turn starts: after a masked position, or after the end token of the turn before."""
        start = mask.copy()
        start[:, 1:] &= ~mask[:, :-1] | (self._role[codes[:, :-1]] == _ROLES["end"])
        return start

    def turns(self, mask: npt.ArrayLike, ids: npt.ArrayLike | None = None) -> list[tuple[int, int]]:
        """Spans `[begin, end)` of one assistant turn each: runs of model tokens in `mask` (T,).

        With `ids` (T,), a run is also split after an end token; without, turns that touch are one span.
        """
        return self.turns_by_row(np.asarray(mask)[None], None if ids is None else np.asarray(ids)[None])[0]

    def turns_by_row(self, mask: npt.ArrayLike, ids: npt.ArrayLike | None = None) -> list[list[tuple[int, int]]]:
        """As `turns`, of each row of `mask` and `ids` (N, T)."""
        own = np.asarray(mask, bool)
        codes = np.zeros(own.shape, np.int8) if ids is None else self._coded(ids, own)
        found: list[list[tuple[int, int]]] = [[] for _ in own]
        for row, begin, end in _spans(self._starts(codes, own), own):
            found[row].append((begin, end))
        return found

    def slots(self, ids: npt.ArrayLike, mask: npt.ArrayLike) -> SlotArrays:
        """Slot, survival, turn and legality at every position of `ids` (N, T); `mask` (N, T) marks model tokens.

        Raises:
            ValueError: ids and mask are not of one shape (N, T).
        """
        ids, mask = np.asarray(ids, np.int64), np.asarray(mask, bool)
        if ids.ndim != 2 or ids.shape != mask.shape:
            raise ValueError(f"slots: got ids {ids.shape} and mask {mask.shape}, expected one shape (N, T)")
        codes = self._coded(ids, mask)
        start = self._starts(codes, mask)
        position = np.arange(ids.shape[1], dtype=np.int32)
        drawn = self._role[codes]  # (N, T) role of the marker that ends with the token, for its legality
        after = drawn  # (N, T) the same, for the state behind it
        if self._spelling.active:
            drawn, after = drawn.copy(), drawn.copy()
            self._spell(ids, mask, codes, start, drawn, after)

        # The anchor of a position: where its turn started, or the position after the last marker.
        fresh = start.copy()
        fresh[:, 1:] |= after[:, :-1] != _NONE
        role = np.full(ids.shape, _ROLES["start"], np.int8)
        role[:, 1:] = np.maximum(after[:, :-1], 0)
        role[start] = self._first
        anchor = _latest(fresh, position)
        role = np.take_along_axis(role, np.maximum(anchor, 0), axis=1)
        # White space alone is layout and changes nothing: the paper reads the probabilities of an opened call
        # right after `<tool_call>\n`.
        spoken = _before(_latest(mask & (codes == _ORDINARY), position)) >= anchor
        state = 2 * role + spoken

        illegal = mask & (drawn != _NONE) & ~self._may[state, drawn]
        broken = _before(_latest(illegal, position)) >= np.maximum(_latest(start, position), 0)
        slot = np.where(mask, self._slot[state], np.int8(-1))
        turn = np.where(mask, np.cumsum(start, axis=1, dtype=np.int32) - 1, -1).astype(np.int32)
        legal = self._probe_may[state] & mask[..., None]  # (N, T, K')
        return SlotArrays(slot, mask & ~broken, turn, legal)

    def _spell(
        self, ids: npt.NDArray[np.int64], mask: Bools, codes: Codes, start: Bools, drawn: Codes, after: Codes
    ) -> None:
        """Write the markers that several tokens spell into `codes`, `drawn` and `after`, all (N, T)."""
        for n, event in self._events(ids, mask, codes, start, self._spelling.loose):
            own = slice(event.first, event.last + 1)
            codes[n, own][codes[n, own] == _ORDINARY] = _BLANK
            if drawn[n, event.last] == _NONE and event.drawn:
                drawn[n, event.last] = _ROLES[event.role]
            after[n, event.last] = _ROLES[event.role]

    def _events(
        self, ids: npt.NDArray[np.int64], mask: Bools, codes: Codes, start: Bools, loose: bool = False
    ) -> Iterator[tuple[int, Event]]:
        """Row and event, its tokens counted from the row's first; arrays (N, T). Where not `loose`, markers alone."""
        # Most turns hold no token that a marker could begin in.
        before = np.zeros((len(ids), ids.shape[1] + 1), np.int32)
        np.cumsum(np.take(self._spelling.begins, ids, mode="clip"), axis=1, out=before[:, 1:])
        for n, begin, end in _spans(start, mask):
            if loose or before[n, end] > before[n, begin]:
                control = codes[n, begin:end].astype(int) - _CONTROL
                for event in self._spelling.events(ids[n, begin:end].tolist(), control.tolist()):
                    yield n, event._replace(first=begin + event.first, last=begin + event.last)

    def control(self, ids: npt.ArrayLike, mask: npt.ArrayLike, spelled: Spelled) -> Bools:
        """Where control tokens stand in `ids` (N, T), whole or `spelled` by several of the tokens of `mask` (N, T)."""
        found = np.asarray(np.asarray(mask, bool) & np.isin(ids, self.ids))
        for n, first, last, _ in spelled:
            found[n, first : last + 1] = True
        return found

    def spelled(self, ids: npt.ArrayLike, mask: npt.ArrayLike) -> Spelled:
        """The markers that several tokens of `ids` (N, T) spell, all of them the model's own by `mask` (N, T)."""
        if not self.missing:
            return []
        ids, mask = np.asarray(ids, np.int64), np.asarray(mask, bool)
        codes = self._coded(ids, mask)
        events = self._events(ids, mask, codes, self._starts(codes, mask))
        return [(n, event.first, event.last, event.marker) for n, event in events if event.drawn]

    def classify_ids(self, ids: npt.ArrayLike, stop: Stop | None = None, tools: Tools | None = None) -> Classified:
        """One assistant turn from its token ids (T,), with or without its end token.

        `stop` defaults to `eos` if the last id is an end token, else `length`.
        """
        ids = np.asarray(ids, np.int64)
        codes = self._coded(ids, np.ones(ids.shape, bool))
        parts: list[str] = []
        begin = 0
        for cut in np.flatnonzero(codes >= _CONTROL).tolist():
            parts += [self._text(ids[begin:cut]), self.tokens[codes[cut] - _CONTROL]]
            begin = cut + 1
        parts.append(self._text(ids[begin:]))
        if stop is None:
            stop = "eos" if len(codes) and self._role[codes[-1]] == _ROLES["end"] else "length"
        return judge(self.format.parse(self._spelling.pieces(parts), self.thinking), stop, tools)

    def _text(self, ids: npt.NDArray[np.int64]) -> str:
        return self._tokenizer.decode(ids.tolist()) if len(ids) else ""


def _may(follow: Mapping[str, tuple[str, str]]) -> Bools:
    """May a marker of a role be sampled in a state? (2 * roles, roles); state 2 * role + (1 once text follows)."""
    may = np.zeros((2 * len(AFTER), len(AFTER)), bool)
    for role, pair in follow.items():
        for spoken, allowed in enumerate(pair):
            may[2 * _ROLES[role] + spoken, [_ROLES[other] for other in allowed.split()]] = True
    return may


def _spans(start: Bools, mask: Bools) -> Iterator[tuple[int, int, int]]:
    """Row, begin and end of each turn, in order; `start` (N, T) marks its first position, `mask` (N, T) its own."""
    stop = mask.copy()  # (N, T) the last position of a turn: the next one is masked, or starts another
    stop[:, :-1] &= ~mask[:, 1:] | start[:, 1:]
    rows, begins = np.nonzero(start)
    return zip(rows.tolist(), begins.tolist(), (np.nonzero(stop)[1] + 1).tolist(), strict=True)


def _latest(hit: Bools, position: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Per position, the last position up to and including it where `hit` (N, T); -1 where there is none."""
    found: npt.NDArray[np.int32] = np.maximum.accumulate(np.where(hit, position, np.int32(-1)), axis=1)
    return found


def _before(latest: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """`latest` as it stood one position earlier."""
    shifted = np.full_like(latest, -1)
    shifted[:, 1:] = latest[:, :-1]
    return shifted
