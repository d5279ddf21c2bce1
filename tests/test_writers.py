"""What formats write: over the table of those that can, calls and answers come back as they went in."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsewatch import classify
from collapsewatch.formats import FORMATS, CannotWrite, format_named, writer_named, writers
from collapsewatch.plugins import UnknownPlugin
from collapsewatch.records import Call
from tests.renderers import FAMILIES, PROSE

every_writer = pytest.mark.parametrize("name", writers())
CALLS = [Call("lookup", {"key": "ash"}), Call("add", {"a": 3, "b": -4.5})]


def test_the_formats_that_write() -> None:
    assert {"hermes", "qwen3_coder", "react", "llama3", "bracket"} <= set(writers()) < set(FORMATS)


@every_writer
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_written_calls_come_back(name: str, data: st.DataObject) -> None:
    row = FAMILIES[name]
    calls = data.draw(row.calls)
    judged = classify(writer_named(name).write(calls), name)
    assert (judged.structure, judged.reason, judged.attempted) == ("tool_call", "ok", len(calls))
    given_back = [json.dumps([call.name, call.arguments], sort_keys=True) for call in judged.calls]
    assert given_back == [json.dumps([call.name, call.arguments], sort_keys=True) for call in calls]


@every_writer
@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_writer_writes_what_its_family_renders(name: str, data: st.DataObject) -> None:
    row = FAMILIES[name]
    calls = data.draw(row.calls)
    *parts, _, _ = row.render(calls, "", None)  # without the end of the turn
    assert writer_named(name).write(calls) == "".join(parts)


@every_writer
@settings(max_examples=50, deadline=None)
@given(PROSE)
def test_an_answer_is_a_response(name: str, text: str) -> None:
    judged = classify(writer_named(name).answer(text), name)
    assert (judged.structure, judged.reason) == ("response", "ok")


@pytest.mark.parametrize("name", sorted(set(FORMATS) - set(writers())))
def test_a_format_that_only_reads_says_which_write(name: str) -> None:
    with pytest.raises(CannotWrite, match=rf"got '{name}', which only reads, expected one of hermes, .*bracket"):
        writer_named(name)
    with pytest.raises(CannotWrite, match="expected them for one of hermes"):
        format_named(name).write(CALLS)


def test_an_unknown_writer_names_the_choices() -> None:
    with pytest.raises(UnknownPlugin, match="chat format: got 'bracked'"):
        writer_named("bracked")


def test_what_cannot_be_written() -> None:
    with pytest.raises(CannotWrite, match="react: got 2 calls in one turn, expected one"):
        writer_named("react").write(CALLS)
    for name in ("hermes", "llama3", "react", "qwen3_coder"):
        with pytest.raises(CannotWrite, match=r"got the argument .*nan.*, expected a JSON value"):
            writer_named(name).write([Call("f", {"a": float("nan")})])
