"""What every chat format keeps to, over the table of how its family writes: `renderers.FAMILIES`."""

from __future__ import annotations

import importlib.util
import json
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from collapsewatch import classify
from collapsewatch.formats import FORMATS, format_named
from collapsewatch.records import Call, Classified
from collapsewatch.structure import Reason
from tests.renderers import FAMILIES, PROSE, byte_tokenizer

NAMES = st.text("abcdefg_", min_size=1, max_size=6)
every_family = pytest.mark.parametrize("family", FAMILIES)


def stated(calls: Sequence[Call]) -> list[str]:
    """Calls by their JSON, which tells true from 1 and 1 from 1.0, but not the order of arguments."""
    return [json.dumps([call.name, call.arguments], sort_keys=True) for call in calls]


def format_of(family: str) -> str:
    return family.partition("/")[0]


def test_every_format_has_its_renderer() -> None:
    assert {format_of(family) for family in FAMILIES} == set(FORMATS)


@st.composite
def turns(draw: st.DrawFn, family: str) -> tuple[list[Call], str, list[str]]:
    """Calls, the prose before or instead of them, and the turn's parts, as the family writes them."""
    row = FAMILIES[family]
    calls = draw(st.just([]) | row.calls)
    prose = draw(PROSE if not calls else st.just("") | PROSE)
    thought = draw(st.none() | st.just("") | PROSE) if row.thinks else None
    return calls, prose, row.render(calls, prose, thought)


def checked(judged: Classified) -> Classified:
    """The judgement, after what must hold of each."""
    assert judged.reason in set(Reason) and judged.structure.healthy == (judged.reason == "ok")
    assert len(judged.calls) <= judged.attempted
    assert all(call.name and isinstance(call.arguments, dict) for call in judged.calls)
    return judged


@every_family
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_a_family_renders_comes_back(family: str, data: st.DataObject) -> None:
    calls, prose, parts = data.draw(turns(family))
    name = format_of(family)
    judged = checked(classify("".join(parts), name))
    assert stated(judged.calls) == stated(calls) and judged.attempted == len(calls)
    if calls and prose and not format_named(name).preamble:
        assert judged.reason == "text_around_call"
    else:
        assert (judged.structure, judged.reason) == ("tool_call" if calls else "response", "ok")


@every_family
@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(["drop", "double", "swap", "insert"]))
def test_one_changed_marker_is_never_healthy(family: str, data: st.DataObject, action: str) -> None:
    parts = data.draw(turns(family))[2]
    marked = range(1, len(parts), 2)
    at = data.draw(st.sampled_from(marked))
    if action == "drop":
        parts[at] = ""
    elif action == "double":
        parts[at] *= 2
    elif action == "swap":
        other = data.draw(st.sampled_from(marked))
        assume(parts[at] != parts[other])
        parts[at], parts[other] = parts[other], parts[at]
    else:
        text = "".join(parts)
        cut = data.draw(st.integers(0, len(text)))
        marker = data.draw(st.sampled_from(format_named(format_of(family)).markers))
        parts = [text[:cut], marker.text, text[cut:]]
    # Without its end marker a whole turn is healthy, unless it is known not to have ended.
    judged = checked(classify("".join(parts), format_of(family), stop="length"))
    assert not judged.structure.healthy, "".join(parts)


class Tokens:
    """A format in the ids of a byte-level tokenizer that has the given markers as tokens."""

    def __init__(self, name: str, markers: Sequence[str]) -> None:
        self.tokenizer = byte_tokenizer(list(markers))
        self.bound = format_named(name).bind(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def starts(self, ids: Sequence[int]) -> list[int]:
        """The byte each token starts at: a token of the byte-level alphabet has a character per byte."""
        spelled = self.tokenizer.convert_ids_to_tokens(ids)
        sizes = [len(token.encode() if token in self.bound.tokens else token) for token in spelled]
        return [0, *accumulate(sizes)][:-1]

    def legal(self, ids: list[int]) -> bool:
        """Is every marker in the turn legal where it stands?"""
        last = dict(zip(self.bound.ids.tolist(), range(len(self.bound.ids)), strict=True)).get(ids[-1])
        row = [*ids, *self.encode("a")]  # what stands behind the last marker knows whether that was legal
        found = self.bound.slots([row], [[True] * len(row)])
        ended = last is not None and self.bound.roles[last] == "end"  # then a new turn begins
        own_end = not ended or bool(found.legal[0, -2, last])
        return bool(found.alive[0, : len(ids)].all()) and own_end and (ended or bool(found.alive[0, -1]))


@cache
def tokens(name: str, known: str) -> Tokens:
    """With all markers of the format as tokens, or with those that end a turn alone."""
    markers = format_named(name).markers
    return Tokens(name, [marker.text for marker in markers if known == "all" or marker.role == "end"])


@every_family
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rendered_turns_are_legal_and_slots_need_no_tokens(family: str, data: st.DataObject) -> None:
    calls, prose, parts = data.draw(turns(family))
    assume(max("".join(parts)) < "\U00100000")  # private characters stand for control tokens in between
    whole, few = (tokens(format_of(family), known) for known in ("all", "ends"))
    ids, pieces = whole.encode("".join(parts)), few.encode("".join(parts))
    if not (calls and prose) or whole.bound.format.preamble:
        assert whole.legal(ids) and few.legal(pieces)
    for reader, own in ((whole, ids), (few, pieces)):
        judged = checked(reader.bound.classify_ids(own))
        assert stated(judged.calls) == stated(calls)
    assert_alike(whole, ids, few, pieces)


def assert_alike(one: Tokens, ids: list[int], other: Tokens, pieces: list[int]) -> None:
    """Slots, survival and turns agree wherever a token of both begins."""
    found = one.bound.slots([ids], [[True] * len(ids)])
    again = other.bound.slots([pieces], [[True] * len(pieces)])
    at = {start: index for index, start in enumerate(other.starts(pieces))}
    for index, start in enumerate(one.starts(ids)):
        if start in at:
            mine = (found.slot[0, index], found.alive[0, index], found.turn[0, index])
            theirs = (again.slot[0, at[start]], again.alive[0, at[start]], again.turn[0, at[start]])
            assert mine == theirs, (start, one.tokenizer.decode(ids[: index + 1]))


@st.composite
def soups(draw: st.DrawFn, family: str) -> str:
    """A rendered turn with some of its parts dropped, doubled or moved, amid markers and scraps."""
    markers = [marker.text for marker in format_named(format_of(family)).markers]
    parts = draw(turns(family))[2]
    scraps = st.sampled_from([*markers, *parts, "user\n", "{", "}", "[", '"', "\n", "x", " ", "call:", "=", ")"])
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(parts)))
        parts[at : at + draw(st.integers(0, 2))] = draw(st.lists(scraps, max_size=2))
    return "".join(parts)


@every_family
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_what_is_healthy_is_legal(family: str, data: st.DataObject) -> None:
    text = data.draw(soups(family))
    name = format_of(family)
    for stop in ("eos", "length", "unknown"):
        checked(classify(text, name, stop=stop))  # type: ignore[arg-type]
    whole, few = tokens(name, "all"), tokens(name, "ends")
    for reader in (whole, few):
        ids = reader.encode(text)
        judged = checked(reader.bound.classify_ids(ids))
        assert not judged.structure.healthy or reader.legal(ids), text
    assert_alike(whole, whole.encode(text), few, few.encode(text))


def model_turn(reader: Tokens, prompt: str, whole: str) -> tuple[Classified, bool]:
    """The turn that follows `prompt` in the dialogue `whole`, judged, and whether every marker in it is legal."""
    role = reader.bound.format.role
    pieces = reader.bound.format.split(whole)
    ends = list(accumulate(map(len, pieces)))
    alike = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    first = bisect_right(ends, alike)
    begin = ends[first - 1] if first % 2 else alike  # a marker that begins like one of the prompt's is the turn's
    last = next((i for i in range(first, len(pieces)) if i % 2 and role[pieces[i]] == "end"), len(pieces) - 1)
    before = [role[piece] for piece in pieces[1:first:2]]
    bound = reader.bound.format.bind(reader.tokenizer, thinking=before[-1:] == ["think_open"])
    head, own = reader.encode(whole[:begin]), reader.encode(whole[begin : ends[last]])
    tail = reader.encode(whole[ends[last] :])
    mask = [False] * len(head) + [True] * len(own) + [False] * len(tail)
    found = bound.slots([[*head, *own, *tail]], [mask])
    return checked(bound.classify_ids(own, "eos")), found.alive[0].tolist() == mask


@pytest.mark.parametrize(("family", "shipped"), [(f, name) for f, row in FAMILIES.items() for name in row.templates])
@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from(["", "Let me look."]), st.sampled_from(["", "I need two facts."]))
def test_what_a_template_renders_is_legal(
    family: str, shipped: str, data: st.DataObject, content: str, thought: str
) -> None:
    from jinja2 import TemplateError

    row, reader = FAMILIES[family], tokens(format_of(family), "all")
    # Templates write a name as it is, also where they write the arguments as JSON.
    calls = data.draw(st.lists(st.builds(Call, NAMES, row.arguments), min_size=1, max_size=3 if row.parallel else 1))

    def render(messages: Sequence[object], more: bool) -> str:
        text = reader.tokenizer.apply_chat_template(
            messages, chat_template=template(shipped), tokenize=False, add_generation_prompt=more
        )
        return str(text)

    asked: list[dict[str, object]] = [{"role": "user", "content": "What is it?"}]
    said: dict[str, object] = {"role": "assistant", "content": content, "tool_calls": []}
    told: list[dict[str, object]] = []
    for n, call in enumerate(calls):
        function = {"name": call.name, "arguments": call.arguments}
        said["tool_calls"] = [*said["tool_calls"], {"id": f"c{n}", "type": "function", "function": function}]
        told.append({"role": "tool", "name": call.name, "tool_call_id": f"c{n}", "content": '{"found": 3}'})
    reply = {"role": "assistant", "content": "It is 3, as far as I can see."}
    try:
        whole = render([*asked, {**said, "reasoning_content": thought, "thinking": thought}, *told], False)
    except TemplateError:  # one that takes content or reasoning beside calls, but not both
        assume(False)
    judged, legal = model_turn(reader, render(asked, True), whole)
    assert sorted(stated(judged.calls)) == sorted(stated(calls)) and legal
    around = content and not reader.bound.format.preamble
    assert judged.reason in (("text_around_call", "ok") if around else ("ok",))
    # gpt-oss drops what was said before a call once there is an answer: then the prompt would be no prefix.
    dialogue = [*asked, {**said, "content": ""}, *told]
    judged, legal = model_turn(reader, render(dialogue, True), render([*dialogue, reply], False))
    assert (judged.structure, judged.reason, legal) == ("response", "ok", True)


def template(name: str) -> str:
    """A chat template as TRL ships it."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("trl, which ships the templates, is not installed")
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text()


@pytest.mark.parametrize("name", FORMATS)
def test_random_bytes_are_judged(name: str) -> None:
    # 100,000 strings over all formats together; half of them hold pieces of the format's own.
    draw = Random(name)
    own = [marker.text.encode() for marker in format_named(name).markers]
    own += [b'{"name": "f", "arguments": {}}', b"f(x=1)", b"<function=f>", b"call:f{}", b"\n", b" ", b"a"]
    for _ in range(100_000 // len(FORMATS) // 2 + 1):
        for raw in (draw.randbytes(draw.randrange(60)), b"".join(draw.choices(own, k=draw.randrange(12)))):
            checked(classify(raw.decode("utf-8", "surrogateescape"), name))


@every_family
def test_one_thing_over_and_over_takes_linear_time(family: str) -> None:
    # A tenth of a megabyte each, so that all of them take seconds; anything quadratic would take minutes.
    name, row = format_of(family), FAMILIES[family]
    parts = row.render([Call("search", {"query": "x"})], "", "hm" if row.thinks else None)
    units = {*parts, *("".join(parts[:k]) for k in range(2, len(parts))), *format_named(name).role} - {""}
    units |= {*"[{(<,:=\"'\\\n ", '{"a":', "{a:", "[[", "a=", "f(", "<parameter=a>"}
    opener = "".join(parts[: len(parts) // 2])
    for unit in units:
        for head in ("", opener):
            checked(classify(head + unit * (100_000 // len(unit)), name))
