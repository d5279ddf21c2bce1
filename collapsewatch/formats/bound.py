"""A chat format in the ids of one tokenizer: slots and legality as arrays, turns from token ids."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..records import SLOTS, Classified, Slot, Stop
from ..structure import Tools, judge

if TYPE_CHECKING:
    from .base import ChatFormat

AFTER: dict[str, Slot] = {
    "open": Slot.OPEN,
    "close": Slot.CLOSE,
    "end": Slot.END,
    "header": Slot.TEXT,
    "response_open": Slot.TEXT,
    "response_close": Slot.TEXT,
    "think_open": Slot.THINK,
    "think_close": Slot.START,  # what may follow a reasoning block is what may start a turn
}
"""The roles a marker may have, and the slot that stands after each."""

_START, _OPEN, _BODY, _CLOSE, _TEXT = (
    SLOTS.index(slot) for slot in (Slot.START, Slot.OPEN, Slot.BODY, Slot.CLOSE, Slot.TEXT)
)
_ORDINARY, _BLANK, _CONTROL = 0, 1, 2  # code of a token id; `_CONTROL + k` is the k-th control token
# How vocabularies spell white space: as it is, byte-level BPE, sentencepiece, sentencepiece byte fallback.
_MAYBE_BLANK = re.compile(r"(?:[\sĠĊĉč▁]|<0x(?:09|0A|0D|20)>)+")

Bools = npt.NDArray[np.bool_]


class Tokenizer(Protocol):
    """The part of a Hugging Face fast tokenizer that is used."""

    def get_vocab(self) -> dict[str, int]: ...

    def decode(self, token_ids: list[int]) -> str: ...


class SlotArrays(NamedTuple):
    """Where each token of a batch stands.

    `slot` (N, T) int8: code into `SLOTS` of what stands before the position in its turn, -1 where masked.
    `alive` (N, T) bool: nothing illegal was sampled before the position in its turn; False where masked.
    `turn` (N, T) int32: index of the turn within its rollout, -1 where masked.
    """

    slot: npt.NDArray[np.int8]
    alive: Bools
    turn: npt.NDArray[np.int32]


class BoundFormat:
    """A chat format in the ids of one tokenizer.

    `tokens` and `ids` (K,): the control tokens that are single tokens of it. `missing`: the markers that are
    not; those are found in decoded text only, so slots do not see them. `legal_table` (len(SLOTS), K) bool.

    Raises:
        ValueError: the tokenizer has none of the format's control tokens.
    """

    def __init__(self, chat_format: ChatFormat, tokenizer: Tokenizer) -> None:
        # By membership: convert_tokens_to_ids answers an unknown token with the id of <unk>, often 0.
        vocab = tokenizer.get_vocab()
        known = [marker for marker in chat_format.markers if marker.text in vocab]
        if not known:
            wanted = " ".join(chat_format.role)
            raise ValueError(f"format {chat_format.name}: got a tokenizer with none of its tokens, expected {wanted}")
        self.format, self._tokenizer = chat_format, tokenizer
        self.tokens: tuple[str, ...] = tuple(marker.text for marker in known)
        self.ids: npt.NDArray[np.int64] = np.array([vocab[token] for token in self.tokens], np.int64)
        self.missing: tuple[str, ...] = tuple(text for text in chat_format.role if text not in vocab)
        self._missing = spelled(self.missing)
        roles = [marker.role for marker in known]
        self.legal_table: Bools = np.array([[r in chat_format.legal[slot] for r in roles] for slot in SLOTS])
        # Tables by token code; the last entry of `_codes` stands for ids beyond the vocabulary.
        self._codes = np.full(max(vocab.values()) + 2, _ORDINARY, np.int8)
        blank = [i for token, i in vocab.items() if _MAYBE_BLANK.fullmatch(token)]
        self._codes[[i for i in blank if not tokenizer.decode([i]).strip()]] = _BLANK
        self._codes[self.ids] = _CONTROL + np.arange(len(known), dtype=np.int8)
        self._ends = np.array([False, False, *(role == "end" for role in roles)])
        self._after = np.array([_TEXT, _TEXT, *(SLOTS.index(AFTER[role]) for role in roles)], np.int8)
        self._legal = np.concatenate([np.ones((len(SLOTS), _CONTROL), bool), self.legal_table], axis=1)

    def _coded(self, ids: npt.ArrayLike, mask: Bools) -> npt.NDArray[np.int8]:
        """Token codes, ordinary where masked."""
        codes: npt.NDArray[np.int8] = np.take(self._codes, np.asarray(ids, np.int64), mode="clip")
        return np.where(mask, codes, np.int8(_ORDINARY))

    def _starts(self, codes: npt.NDArray[np.int8], mask: Bools) -> Bools:
        """Where a turn starts: after a masked position, or after the end token of the turn before."""
        start = mask.copy()
        start[:, 1:] &= ~mask[:, :-1] | self._ends[codes[:, :-1]]
        return start

    def turns(self, mask: npt.ArrayLike, ids: npt.ArrayLike | None = None) -> list[tuple[int, int]]:
        """Spans `[begin, end)` of one assistant turn each: runs of model tokens in `mask` (T,).

        With `ids` (T,), a run is also split after an end token; without, turns that touch are one span.
        """
        own = np.asarray(mask, bool)[None]
        codes = np.zeros(own.shape, np.int8) if ids is None else self._coded(np.asarray(ids)[None], own)
        begins = np.flatnonzero(self._starts(codes, own)[0])
        gaps = np.append(np.flatnonzero(~own[0]), own.shape[1])
        # A turn ends where the next one begins or where the mask ends, whichever comes first.
        ends = np.minimum(gaps[np.searchsorted(gaps, begins)], np.append(begins, own.shape[1])[1:])
        return list(zip(begins.tolist(), ends.tolist(), strict=True))

    def slots(self, ids: npt.ArrayLike, mask: npt.ArrayLike) -> SlotArrays:
        """Slot, survival and turn of every position of `ids` (N, T), where `mask` (N, T) marks model tokens.

        Raises:
            ValueError: ids and mask are not of one shape (N, T).
        """
        ids, mask = np.asarray(ids, np.int64), np.asarray(mask, bool)
        if ids.ndim != 2 or ids.shape != mask.shape:
            raise ValueError(f"slots: got ids {ids.shape} and mask {mask.shape}, expected one shape (N, T)")
        codes = self._coded(ids, mask)
        start = self._starts(codes, mask)
        position = np.arange(ids.shape[1], dtype=np.int32)

        # The anchor of a position: where its turn started, or the position after the last control token.
        fresh = start.copy()
        fresh[:, 1:] |= codes[:, :-1] >= _CONTROL
        state = np.full(ids.shape, _START, np.int8)
        state[:, 1:] = self._after[codes[:, :-1]]
        state[start] = _START
        anchor = _latest(fresh, position)
        slot = np.take_along_axis(state, np.maximum(anchor, 0), axis=1)

        # What ordinary tokens since the anchor change: text after an opened call is its body, after a start or a
        # closed call it is prose. White space alone is layout and changes nothing: the paper reads the
        # probabilities of an opened call right after `<tool_call>\n`.
        spoken = _before(_latest(mask & (codes == _ORDINARY), position)) >= anchor
        slot[spoken & (slot == _OPEN)] = _BODY
        slot[spoken & ((slot == _START) | (slot == _CLOSE))] = _TEXT

        illegal = mask & ~self._legal[slot, codes]
        broken = _before(_latest(illegal, position)) >= np.maximum(_latest(start, position), 0)
        slot[~mask] = -1
        turn = np.where(mask, np.cumsum(start, axis=1, dtype=np.int32) - 1, -1).astype(np.int32)
        return SlotArrays(slot, mask & ~broken, turn)

    def classify_ids(self, ids: npt.ArrayLike, stop: Stop | None = None, tools: Tools | None = None) -> Classified:
        """One assistant turn from its token ids (T,), with or without its end token.

        `stop` defaults to `eos` if the last id is an end token, else `length`.
        """
        ids = np.asarray(ids, np.int64)
        codes = self._coded(ids, np.ones(ids.shape, bool))
        pieces: list[str] = []
        begin = 0
        for cut in np.flatnonzero(codes >= _CONTROL).tolist():
            pieces += self._text(ids[begin:cut])
            pieces.append(self.tokens[codes[cut] - _CONTROL])
            begin = cut + 1
        pieces += self._text(ids[begin:])
        if stop is None:
            stop = "eos" if len(codes) and self._ends[codes[-1]] else "length"
        return judge(self.format.parse(pieces), stop, tools)

    def _text(self, ids: npt.NDArray[np.int64]) -> list[str]:
        """Pieces of ids without control tokens: what has no token of its own is found by spelling."""
        text = self._tokenizer.decode(ids.tolist()) if len(ids) else ""
        return self._missing.split(text) if self.missing else [text]


def spelled(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that splits at any of `texts`, the longest first."""
    return re.compile("(" + "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) + ")")


def _latest(hit: Bools, position: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Per position, the last position up to and including it where `hit` (N, T); -1 where there is none."""
    found: npt.NDArray[np.int32] = np.maximum.accumulate(np.where(hit, position, np.int32(-1)), axis=1)
    return found


def _before(latest: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """`latest` as it stood one position earlier."""
    shifted = np.full_like(latest, -1)
    shifted[:, 1:] = latest[:, :-1]
    return shifted
