"""Logs that hold the texts themselves: TRL's completions, message transcripts, verl-tool's step records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapsewatch import classify
from collapsewatch.importers import Imported, ImportFailed, Unreadable, runs
from collapsewatch.importers.messages import judge
from collapsewatch.records import Structure
from tests.written import fails_in_one_way_only, put, read

CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
BROKEN = '<tool_call>\n{"name": "now", "arguments": {}'


def rates(run: Imported, step: int) -> dict[str, float]:
    (record,) = [record for record in run.records if record.step == step]
    return {o.stream: o.value for o in record.observations}


def calling(arguments: object = "{}", content: object = None, name: object = "now") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": content, "tool_calls": [{"type": "function", "function": function}]}


# TRL's completions ---------------------------------------------------------------------------------------------


def completions(folder: Path, step: int, texts: list[Any], **columns: list[Any]) -> None:
    """As `GRPOTrainer.log` of TRL 1.16 does it."""
    table = {"step": [step] * len(texts), "prompt": [f"p{i // 2}" for i in range(len(texts))], "completion": texts}
    folder.mkdir(parents=True, exist_ok=True)
    table |= columns | {"advantage": [0.0] * len(texts)}
    pq.write_table(pa.table(table), folder / f"completions_{step:05d}.parquet")


def test_the_completions_of_a_run_are_judged_step_by_step(tmp_path: Path) -> None:
    folder = tmp_path / "my_run" / "completions"
    completions(folder, 5, [CALL, CALL, CALL, "It is noon."], format_reward=[1.0, 1.0, 0.0, None], acc=[0.5] * 4)
    completions(
        folder, 10, [CALL, BROKEN, "", "Noon."], format_reward=[1.0, 0.0, 0.0, 0.0], acc=[0.0] * 4, note=["x"] * 4
    )
    (run,) = runs(tmp_path)
    assert isinstance(run, Imported)
    assert (run.name, run.source, run.dated, [r.step for r in run.records]) == (
        "my_run",
        "trl_completions",
        True,
        [5, 10],
    )
    first, last = run.records
    assert first.metrics["reward"] == pytest.approx((1.5 + 1.5 + 0.5 + 0.5) / 4)
    assert first.metrics["rewards/format_reward/mean"] == pytest.approx(2 / 3)
    assert (first.metrics["tools/call_frequency"], last.metrics["tools/call_frequency"]) == (0.75, 0.5)
    assert rates(run, 5)["no_call"] == 0.25 and rates(run, 10)["no_call"] == 0.5
    assert rates(run, 10)["polluted"] == 0.25 and rates(run, 10)["collapsed"] == 0.25 == rates(run, 10)["empty"]
    assert rates(run, 10)["parse_failure"] == 0.5
    assert {o.n for o in first.observations} == {2}  # the prompts are the groups
    assert run.structure is not None and run.structure.by_step is not None and run.structure.turns == 8


def test_completions_of_messages_are_judged_turn_by_turn_and_a_column_reward_is_the_reward(tmp_path: Path) -> None:
    dialogue = [
        calling(),
        {"role": "tool", "name": "now", "content": "12:00"},
        {"role": "assistant", "content": "Noon."},
    ]
    completions(tmp_path / "run", 1, [dialogue, dialogue], f=[0.0, 1.0], reward=[0.25, 0.75])
    (run,) = runs(tmp_path)
    assert isinstance(run, Imported) and run.structure is not None
    assert run.records[0].metrics["reward"] == 0.5 and run.records[0].metrics["tools/call_frequency"] == 1.0
    assert run.structure.shares == {"tool_call": 0.5, "response": 0.5, "polluted": 0.0, "collapsed": 0.0}


def test_the_tables_of_completions_in_a_folder_of_wandb_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "offline-run-1" / "files" / "media" / "table"
    for step, completion in ((1, CALL), (2, [calling("{")])):
        names, cells = ["step", "prompt", "completion", "f", "advantage"], [step, "p", completion, 0.5, 0.0]
        table = json.dumps({"columns": names, "data": [cells, cells, cells[1:]]})
        put(folder / f"completions_{step}_992dc0cce81c.table.json", table)
    put(folder / "other_1_992dc0cce81c.table.json", json.dumps({"columns": ["a"], "data": [["x"]]}))
    (run,) = runs(tmp_path)
    assert isinstance(run, Imported)
    assert (run.name, [r.metrics["reward"] for r in run.records]) == ("offline-run-1", [0.5, 0.5])
    assert rates(run, 1)["polluted"] == 0.0 and rates(run, 2)["polluted"] == 1.0


def test_without_any_call_in_a_run_a_completion_without_one_is_no_loss(tmp_path: Path) -> None:
    completions(tmp_path / "run", 1, ["Noon."] * 4, f=[0.0] * 4)
    (run,) = runs(tmp_path)
    assert isinstance(run, Imported)
    assert "no_call" not in rates(run, 1) and "parse_failure" not in rates(run, 1)


def test_a_broken_file_of_completions_costs_its_step(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        completions(tmp_path / "run", step, [CALL, CALL], f=[1.0, 0.0])
    path = tmp_path / "run" / "completions_00002.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    (run,) = runs(tmp_path)
    assert isinstance(run, Imported)
    assert [r.step for r in run.records] == [1, 3] and "completions_00002.parquet: got a broken" in run.faults[0]
    (alone,) = runs(path)
    assert isinstance(alone, Unreadable) and "got a broken Parquet file" in alone.reason


def test_broken_completions_fail_in_one_way_only(tmp_path: Path) -> None:
    completions(tmp_path / "run", 1, [CALL, [calling()]][:1] * 4, f=[1.0] * 4)
    path = tmp_path / "run" / "completions_00001.parquet"
    fails_in_one_way_only(path, path.read_bytes())
    table = json.dumps({"columns": ["step", "prompt", "completion"], "data": [[1, "p", CALL], [2, "p", "Noon."]]})
    fails_in_one_way_only(tmp_path / "completions_1_a.table.json", table.encode())


# Messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "structure", "reason"),
    [
        (calling(), "tool_call", "ok"),
        (calling({}), "tool_call", "ok"),
        (calling("{}", "Let me see."), "tool_call", "ok"),
        (calling("{}", [{"type": "text", "text": "Let me see."}]), "tool_call", "ok"),
        (calling("{}", "<think>\nWhat time is it?\n</think>\n"), "tool_call", "ok"),
        (calling("{}", "</tool_call>"), "collapsed", "control_tokens_only"),
        (calling("{}", "Well </tool_call>"), "polluted", "stray_close"),
        (calling("{}", CALL), "polluted", "stray_open"),
        (calling("{"), "polluted", "invalid_json"),
        (calling("[]"), "polluted", "arguments_not_object"),
        (calling(None), "polluted", "arguments_not_object"),
        (calling(name=""), "polluted", "missing_name"),
        ({"role": "assistant", "tool_calls": ["now()"]}, "polluted", "call_not_object"),
        ({"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}, "tool_call", "ok"),
        ({"role": "assistant", "content": CALL, "tool_calls": []}, "tool_call", "ok"),
        ({"role": "assistant", "content": BROKEN}, "polluted", "unclosed_call"),
        ({"role": "assistant", "content": None}, "collapsed", "empty"),
    ],
)
def test_a_structured_call_counts_by_its_arguments_and_what_is_left_in_the_text(
    message: dict[str, Any], structure: str, reason: str
) -> None:
    turn = judge(message, "hermes").turn
    assert (str(turn.structure), str(turn.reason)) == (structure, reason)
    assert len(turn.calls) <= turn.attempted


@given(st.text())
def test_a_message_without_structured_calls_is_judged_as_its_text(text: str) -> None:
    assert judge({"role": "assistant", "content": text}, "hermes").turn == classify(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "arguments", "function"]), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["content", "tool_calls", "function_call", "role"]), VALUES))
def test_any_message_is_judged(message: dict[str, Any]) -> None:
    assert judge(message, "hermes").turn.structure in Structure


ROWS = [
    {"step": 1, "model": "a", "score": 1.0, "messages": [{"role": "user", "content": "Time?"}, calling()]},
    {"step": 2, "model": "a", "score": 0.0, "messages": [{"role": "user", "content": "Time?"}, calling("{")]},
    {"step": 2, "model": "b", "finish_reason": "length", "messages": [{"role": "assistant", "content": "No"}]},
    {"messages": [{"role": "user", "content": "nobody answers"}]},
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("t.json", json.dumps(ROWS)),
        ("t.json", json.dumps(ROWS, indent=1)),
        ("t.json", "[\n" + ",\n".join(map(json.dumps, [ROWS[3], *ROWS[:3]])) + "\n]"),
        ("t.jsonl", "\ufeff" + "\n".join(["{broken", *map(json.dumps, ROWS), '{"messages": [{"ro'])),
    ],
    ids=["lines", "array", "indented", "item per line", "broken"],
)
def test_dialogues_are_read_per_model_and_step(name: str, content: str, tmp_path: Path) -> None:
    a, b = read(put(tmp_path / name, content))
    assert (a.name, b.name, a.source, a.dated) == ("a", "b", "messages", True)
    assert [r.metrics["reward"] for r in a.records] == [1.0, 0.0]
    assert rates(a, 1)["polluted"] == 0.0 and rates(a, 2)["polluted"] == 1.0 == rates(a, 2)["parse_failure"]
    assert rates(b, 2)["truncated"] == 1.0
    lost, rows, first = (3, 6, 1) if "broken" in content else (1, 4, 2 if content[:3] == "[\n{" else 4)
    assert a.faults == (f"{lost} of {rows} rows left out, the first {name}:{first}: no assistant speaks",)


def test_a_few_turns_without_a_step_that_can_be_do_not_cost_the_run_its_course(tmp_path: Path) -> None:
    said = [{"messages": [calling()], "step": step} for step in [*range(1, 20), 1e300, -1]]
    (run,) = read(put(tmp_path / "t.jsonl", "\n".join(map(json.dumps, said))))
    assert run.dated and [r.step for r in run.records] == list(range(1, 20))
    assert run.faults == ("2 of 21 turns have no step and are left out of its course",)
    (run,) = read(put(tmp_path / "t.jsonl", "\n".join(map(json.dumps, said[10:]))))
    assert not run.dated and [r.step for r in run.records] == [0]
    assert run.structure is not None and (run.structure.turns, run.structure.by_step) == (11, None)


def test_a_file_may_be_one_dialogue(tmp_path: Path) -> None:
    (run,) = read(put(tmp_path / "chat.json", json.dumps(ROWS[0]["messages"], indent=2)))
    assert (run.name, run.dated) == ("chat", False) and run.structure is not None
    assert run.structure.shares["tool_call"] == 1.0
    with pytest.raises(ImportFailed, match=r"got (?:no dialogue|broken JSON)"):
        read(put(tmp_path / "cut.json", '[{"role": "assistant", ' + "[" * 100_000))


def test_broken_dialogues_fail_in_one_way_only(tmp_path: Path) -> None:
    fails_in_one_way_only(tmp_path / "t.json", json.dumps(ROWS, indent=1).encode())
    fails_in_one_way_only(tmp_path / "t.jsonl", "\n".join(map(json.dumps, ROWS)).encode())


# Step records --------------------------------------------------------------------------------------------------


def record(actions: list[str | None], score: object, **more: object) -> dict[str, Any]:
    """As verl-tool's reward managers write one (`verl_tool/workers/reward_manager`)."""
    asked = "<|im_start|>user\nTime?<|im_end|>\n<|im_start|>assistant\n"
    info = [{"obs": "12:00", "reward": None, "active": action is not None, "action": action} for action in actions]
    return {"id": None, "prompt": asked, "response": "".join(filter(None, actions)), "score": score} | (
        {"tool_interact_info": info} | more
    )


def test_step_records_are_judged_by_what_was_sampled(tmp_path: Path) -> None:
    folder = tmp_path / "verl_step_records" / "my_run"
    given_answer = record([BROKEN], 1, final_actions_is_gt=True)
    steps = {9: [CALL, "Noon.", None], 10: [BROKEN, None, None]}
    for step, actions in steps.items():
        put(folder / f"fcl_eval-step-{step}.json", json.dumps([record(actions, step == 9), given_answer], indent=4))
    put(folder / "fcl_eval-step-val-9.json", json.dumps([record([CALL], {"accuracy": 1, "score": 0.5})]))
    train, val = sorted((run for run in runs(tmp_path) if isinstance(run, Imported)), key=lambda run: run.name)
    assert (train.name, val.name, train.source) == ("my_run", "my_run/val", "step_records")
    assert [(r.step, r.metrics["turns"], r.metrics["tools/call_frequency"]) for r in train.records] == [
        (9, 2, 1),
        (10, 1, 1),
    ]
    assert rates(train, 9)["polluted"] == 0.0 and rates(train, 10)["polluted"] == 1.0
    assert train.faults == ("2 rollouts with given answers left out: nobody sampled them",)
    assert val.records[0].metrics == {"reward": 0.5, "accuracy": 1.0, "turns": 1.0, "tools/call_frequency": 1.0}


def test_an_empty_turn_is_one_but_for_the_one_before_the_first(tmp_path: Path) -> None:
    rows = [record(["", CALL], 1.0), record([""], 0.0), record([CALL, ""], 0.0)]
    (run,) = read(put(tmp_path / "run" / "torl-step-3.json", json.dumps(rows)))
    assert run.structure is not None and (run.structure.turns, run.structure.shares["tool_call"]) == (4, 0.5)
    assert rates(run, 3)["empty"] == 0.5


def test_a_record_without_turns_is_cut_at_the_tools_answers(tmp_path: Path) -> None:
    answer = "<|im_end|>\n<|im_start|>user\n<tool_response>\n12:00\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    row = record([], 1.0) | {"response": f"{CALL}{answer}Noon.<|im_end|>"}
    (run,) = read(put(tmp_path / "run" / "torl-step-3.json", json.dumps([row])))
    assert run.structure is not None and run.structure.turns == 2
    assert run.structure.shares == {"tool_call": 0.5, "response": 0.5, "polluted": 0.0, "collapsed": 0.0}


def test_broken_step_records_fail_in_one_way_only(tmp_path: Path) -> None:
    content = json.dumps([record([CALL, "Noon."], 1.0), record([BROKEN], 0.0)], indent=4).encode()
    fails_in_one_way_only(tmp_path / "torl-step-3.json", content)
