"""Chat formats bound to a tokenizer: slots, legality and turns from token ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsewatch.formats import FORMATS, format_named
from collapsewatch.formats.base import AFTER, BoundFormat
from collapsewatch.records import SLOTS, Slot
from tests.renderers import byte_tokenizer

HERMES = format_named("hermes")


ALL = [marker.text for marker in HERMES.markers]
TOKENIZER = byte_tokenizer(ALL)
BOUND = HERMES.bind(TOKENIZER)
ID = dict(zip(BOUND.tokens, BOUND.ids.tolist(), strict=True))


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False)
    return ids


def slots_of(text: str) -> list[str]:
    ids = np.array([encode(text)])
    return [SLOTS[code].value for code in BOUND.slots(ids, np.ones_like(ids)).slot[0]]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_keeps_the_contract(name: str) -> None:
    chat_format = format_named(name)
    assert chat_format.name == name and chat_format is format_named(name)
    assert {marker.role for marker in chat_format.markers} <= set(AFTER)
    assert set(chat_format.follow) <= set(AFTER)
    assert {role for pair in chat_format.follow.values() for allowed in pair for role in allowed.split()} <= set(AFTER)
    assert len({marker.text for marker in chat_format.markers}) == len(chat_format.markers)


def test_binding_finds_tokens_by_membership() -> None:
    assert BOUND.tokens == tuple(ALL) and BOUND.missing == ()
    assert BOUND.ids.tolist() == TOKENIZER.convert_tokens_to_ids(ALL) and BOUND.ids.dtype == np.int64
    # Like SmolLM2, whose vocabulary has the turn markers only: the others must not become <unk>.
    small = byte_tokenizer(["<|im_start|>", "<|im_end|>"])
    bound = HERMES.bind(small)
    assert set(bound.tokens) == {"<|im_start|>", "<|im_end|>"} and 0 not in bound.ids
    assert set(bound.missing) == set(ALL) - set(bound.tokens)
    ids = small.encode('<tool_call>{"name": "f", "arguments": {}}</tool_call><|im_end|>', add_special_tokens=False)
    assert [call.name for call in bound.classify_ids(ids).calls] == ["f"]
    with pytest.raises(ValueError, match="hermes: got a tokenizer with none"):
        HERMES.bind(byte_tokenizer(["<other>"]))


def test_markers_that_several_tokens_spell_are_probed_at_their_first() -> None:
    assert BOUND.pieces == {} and BOUND.probe_tokens == BOUND.tokens and BOUND.probe_roles == BOUND.roles
    assert BOUND.probe_ids.tolist() == BOUND.ids.tolist()
    small = byte_tokenizer(["<|im_end|>"])
    bound = HERMES.bind(small)
    assert bound.tokens == ("<|im_end|>",)
    assert {text: small.decode(list(ids)) for text, ids in bound.pieces.items()} == {m: m for m in bound.missing}
    # They all begin with `<`; a format of words has a first piece for each.
    assert bound.probe_tokens == ("<|im_end|>", "<tool_call>") and bound.probe_roles == ("end", "open")
    assert bound.probe_ids.tolist() == small.encode("<|im_end|><", add_special_tokens=False)
    words = format_named("react").bind(small)
    assert words.probe_tokens == ("<|im_end|>", "Action:", "Final Answer:", "Observation:", "<search>")
    known = byte_tokenizer(["<|im_end|>", "<"])  # a first piece that is a token of its own, of another kind
    assert len({*HERMES.bind(known).probe_ids.tolist()}) == len(HERMES.bind(known).probe_ids) == 2


ENDS = ["<|im_end|>", "<|endoftext|>"]
FEW = byte_tokenizer(ENDS)


@given(st.lists(st.sampled_from([*ALL, "a", "\n", "{"]), max_size=12))
def test_a_first_piece_is_legal_where_a_marker_that_begins_with_it_is(parts: list[str]) -> None:
    bound = HERMES.bind(FEW)
    ids, pieces = encode("".join(parts)), FEW.encode("".join(parts), add_special_tokens=False)
    whole = BOUND.slots([[*ids, 1]], [[True] * (len(ids) + 1)]).legal[0, -1]
    found = bound.slots([[*pieces, 1]], [[True] * (len(pieces) + 1)]).legal[0, -1]
    may = dict(zip(BOUND.tokens, whole.tolist(), strict=True))
    own = [may[token] for token in bound.tokens]
    assert found.tolist() == [*own, any(may[marker] for marker in bound.missing)]
    # The spelled markers are those that are tokens for the other, where they stand.
    # Line breaks may be one token or two: places are told by the characters before them.
    tokens = np.cumsum([0, *(len(FEW.decode([i])) for i in pieces)]).tolist()
    places = np.cumsum([0, *map(len, parts)]).tolist()
    spelled = [(a, b, part) for part, a, b in zip(parts, places, places[1:], strict=False) if part in bound.missing]
    spans = [(0, tokens.index(a), tokens.index(b) - 1, part) for a, b, part in spelled]
    assert bound.spelled([pieces], [[True] * len(pieces)]) == spans
    assert BOUND.spelled([ids], [[True] * len(ids)]) == []


def legal_after(text: str) -> str:
    """The control tokens that may be sampled behind `text`, which opens a turn."""
    ids = np.array([[*encode(text), 1]])
    found = BOUND.slots(ids, np.ones_like(ids)).legal[0, -1]
    return " ".join(token for token, legal in zip(BOUND.tokens, found, strict=True) if legal)


def test_what_is_legal_depends_on_what_stands_before() -> None:
    ends = "<|im_end|> <|endoftext|>"
    assert legal_after("") == legal_after("\n") == "<tool_call> <think>"
    assert legal_after("<think>") == legal_after("<think>\nhm") == "</think>"
    assert legal_after("<think>hm</think>\n") == "<tool_call>"
    assert legal_after("<tool_call>\n") == ""
    assert legal_after("<tool_call>\n{") == "</tool_call>"
    assert legal_after("<tool_call>{</tool_call>") == f"<tool_call> {ends}"
    assert legal_after("a") == legal_after("<tool_call>{</tool_call>a") == f"<tool_call> {ends}"
    masked = BOUND.slots(np.array([[1]]), np.zeros((1, 1)))
    assert masked.legal.shape == (1, 1, len(ALL)) and not masked.legal.any()


def test_slots_of_a_rendered_turn() -> None:
    assert slots_of("<think>\n\n</think>\n\n<tool_call>\n{") == [
        "start",  # <think>
        "think",  # \n\n
        "think",  # </think>
        "start",  # \n\n
        "start",  # <tool_call>
        "open",  # \n
        "open",  # {
    ]
    assert slots_of("<tool_call>\n{{") == ["start", "open", "open", "body"]
    assert slots_of("</tool_call>\n\n <tool_call>") == ["start", "close", "close", "close"]
    assert slots_of("</tool_call>\na b<|im_end|>") == ["start", "close", "close", "text", "text", "text"]
    assert slots_of("\n\na<|im_end|><tool_call>") == ["start", "start", "start", "text", "start"]


def test_survival_ends_after_the_first_illegal_token() -> None:
    ids = np.array([encode("a</tool_call>b<|im_end|>a<|im_end|><|im_end|>c")])
    mask = np.ones_like(ids, bool)
    found = BOUND.slots(ids, mask)
    assert found.alive[0].tolist() == [True, True, False, False, True, True, True, True]
    assert found.turn[0].tolist() == [0, 0, 0, 0, 1, 1, 2, 3]
    assert BOUND.turns(mask[0], ids[0]) == [(0, 4), (4, 6), (6, 7), (7, 8)]
    assert BOUND.turns(mask[0]) == [(0, 8)]


def slow(ids: list[int], mask: list[bool]) -> tuple[list[int], list[bool], list[int]]:
    """Slots, survival and turns of one row, position by position."""
    roles = {ID[marker.text]: marker.role for marker in HERMES.markers}
    slots, alives, turns = [], [], []
    last, spoken, alive, turn, running = "start", False, True, -1, False
    for token, own in zip(ids, mask, strict=True):
        if not own:
            slots.append(-1), alives.append(False), turns.append(-1)
            running = False
            continue
        if not running:
            last, spoken, alive, turn, running = "start", False, True, turn + 1, True
        slots.append(list(Slot).index(AFTER[last][spoken])), alives.append(alive), turns.append(turn)
        role = roles.get(token)
        if role is not None:
            alive = alive and role in HERMES.follow.get(last, ("", ""))[spoken].split()
            running = role != "end"
            last, spoken = role, False
        elif TOKENIZER.decode([token]).strip():
            spoken = True
    return slots, alives, turns


tokens = st.sampled_from([*ID.values(), *encode("a b"), *encode("\n\n"), *encode("\n"), *encode("{")])
rows = st.lists(st.tuples(tokens, st.sampled_from([True] * 5 + [False])), max_size=40)


@settings(max_examples=300)
@given(st.lists(rows, min_size=1, max_size=4))
def test_slots_agree_with_a_slow_walk(batch: list[list[tuple[int, bool]]]) -> None:
    width = max(map(len, batch))
    ids = np.zeros((len(batch), width), np.int64)
    mask = np.zeros((len(batch), width), bool)
    for n, row in enumerate(batch):
        ids[n, : len(row)] = [token for token, _ in row]
        mask[n, : len(row)] = [own for _, own in row]
    found = BOUND.slots(ids, mask)
    assert (found.slot.dtype, found.alive.dtype, found.turn.dtype) == (np.int8, np.bool_, np.int32)
    for n in range(len(batch)):
        slot, alive, turn = slow(ids[n].tolist(), mask[n].tolist())
        assert found.slot[n].tolist() == slot
        assert found.alive[n].tolist() == alive
        assert found.turn[n].tolist() == turn
        spans = BOUND.turns(mask[n], ids[n])
        assert [t for begin, end in spans for t in range(begin, end)] == np.flatnonzero(mask[n]).tolist()
        assert [turn[begin] for begin, _ in spans] == list(range(len(spans)))


def test_slots_take_ids_beyond_the_vocabulary_and_refuse_shapes() -> None:
    ids = np.array([[-100, 10**6, ID["<|im_end|>"]]])
    assert BOUND.slots(ids, np.array([[0, 1, 1]])).slot[0].tolist() == [-1, 0, SLOTS.index(Slot.TEXT)]
    with pytest.raises(ValueError, match=r"\(1, 3\).*\(1, 2\)"):
        BOUND.slots(ids, np.ones((1, 2)))


def test_prose_that_spells_a_marker_is_no_marker() -> None:
    spelled = [i for char in "Write <tool_call> first." for i in encode(char)]
    judged = BOUND.classify_ids([*spelled, ID["<|im_end|>"]])
    assert (judged.structure, judged.reason, judged.attempted) == ("response", "ok", 0)
    assert BOUND.classify_ids(encode("Write <tool_call> first.<|im_end|>")).attempted == 1


def test_stop_defaults_to_what_the_ids_say() -> None:
    assert BOUND.classify_ids(encode("It is noon.<|im_end|>")).reason == "ok"
    assert BOUND.classify_ids(encode("It is noon.")).reason == "truncated"
    assert BOUND.classify_ids(encode("It is noon."), stop="eos").reason == "ok"
    assert BOUND.classify_ids([]).reason == "empty"
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call><|im_end|>'
    assert BOUND.classify_ids(encode(text), tools=["g"]).reason == "unknown_tool"


@given(st.lists(tokens | st.integers(0, len(TOKENIZER) - 1), max_size=60))
def test_any_ids_are_judged(ids: list[int]) -> None:
    judged = BOUND.classify_ids(ids)
    assert judged.structure.healthy == (judged.reason == "ok")
    if judged.structure.healthy:  # what the structure calls healthy, the slots call legal
        assert BOUND.slots([ids], [[True] * len(ids)]).alive[0, -1]


def test_a_format_binds_to_any_duck() -> None:
    class Words:
        def get_vocab(self) -> dict[str, int]:
            return {"<tool_call>": 0, "</tool_call>": 1, "<|im_end|>": 2, "hi": 3, " ": 4}

        def decode(self, token_ids: list[int]) -> str:
            return "".join({3: "hi", 4: " "}[i] for i in token_ids)

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [3]  # `<unk>`, as it were

    bound = HERMES.bind(Words())
    assert isinstance(bound, BoundFormat)
    assert bound.missing and bound.pieces == {} and bound.probe_tokens == bound.tokens
    assert bound.classify_ids([3, 4, 3, 2]).structure == "response"
    assert bound.classify_ids([0, 2]).reason == "control_tokens_only"
