"""Importers: what each log says, the traps of real logs, and files that are broken or foreign."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapsewatch.importers import IMPORTERS, ImportFailed, Source, find
from collapsewatch.importers.columns import Columns, number
from collapsewatch.importers.series import series
from collapsewatch.importers.trainer_state import TrainerState
from collapsewatch.importers.transcripts import Transcripts
from collapsewatch.importers.trl_console import TrlConsole
from collapsewatch.plugins import resolve
from collapsewatch.report import analyze
from tests.logs import CALL, read, state, told, write


@pytest.mark.parametrize("name", IMPORTERS)
def test_every_importer_refuses_what_is_not_its_own(name: str, tmp_path: Path) -> None:
    importer = resolve(IMPORTERS, name)()
    assert importer.source == name
    for i, content in enumerate((b"", b"\x00\xff\xfe{'reward':", b"[]", b'{"a": 1}\n', b"step,reward\n1,0.5\n")):
        for suffix in (".json", ".jsonl", ".log", ".csv", ""):
            if (name, content[:4], suffix) == ("csv", b"step", ".csv"):
                continue
            path = tmp_path / f"file{i}{suffix}"
            path.write_bytes(content)
            assert importer.sniff(Source(path)) is False


def test_trainer_state_gives_metrics_under_trl_names_and_truncation_as_a_stream(tmp_path: Path) -> None:
    rows = [
        {"step": 5, "reward": 0.5, "completion_length": 30, "completions/clipped_ratio": 0.25, "kl": 0.0},
        {"step": 5, "eval_reward": 0.1},
        {
            "step": 10,
            "reward": "0.75",
            "loss": "nan",
            "entropy": "1.5e-3",
            "my/own": 3,
            "completions/clipped_ratio": 1,
        },
        {"step": 10, "train_runtime": 12.0},
    ]
    path = state(tmp_path / "my_run" / "checkpoint-10" / "trainer_state.json", rows)
    importer = find(Source(path))
    assert isinstance(importer, TrainerState)
    (run,) = importer.read(Source(path))
    assert (run.name, run.dated, run.unmapped) == ("my_run", True, ("my/own",))
    first, last = run.records
    assert (first.step, last.step) == (5, 10)
    assert first.metrics["completions/mean_length"] == 30.0 and "completion_length" not in first.metrics
    assert last.metrics["reward"] == 0.75 and last.metrics["entropy"] == 0.0015 and "loss" not in last.metrics
    assert [(o.stream, o.value, o.n) for o in last.observations] == [("truncated", 1.0, 1)]


def test_of_a_run_s_checkpoints_the_last_is_read_unless_one_is_named(tmp_path: Path) -> None:
    paths = {}
    for step in (9, 10, 100):
        rows = [{"step": s, "reward": 0.5} for s in range(1, step + 1)]
        paths[step] = state(tmp_path / "my_run" / f"checkpoint-{step}" / "trainer_state.json", rows)
    state(tmp_path / ".cache" / "trainer_state.json", [{"step": 1, "reward": 0.5}])
    assert [report.steps for report in analyze(tmp_path)] == [(1, 100, 100)]
    assert [report.steps for report in analyze(paths[9])] == [(1, 9, 9)]
    state(tmp_path / "my_run" / "trainer_state.json", [{"step": s, "reward": 0.5} for s in range(1, 121)])
    assert [report.steps for report in analyze(tmp_path)] == [(1, 120, 120)]


def test_a_new_name_wins_over_the_old_one_beside_it() -> None:
    (record,), _, _ = series([(1, {"completion_length": 9, "completions/mean_length": 7})], Columns())
    assert record.metrics == {"completions/mean_length": 7.0}


def test_calls_per_rollout_bound_the_share_of_rollouts_without_one() -> None:
    records = series([(1, {"tools/call_frequency": 0.25}), (2, {"tools/call_frequency": 3.0})], Columns()).records
    assert [r.observations[0].value for r in records] == [0.75, 0.0]
    assert records[0].observations[0].stream == "no_call"


@given(st.one_of(st.floats(), st.text(), st.booleans(), st.none(), st.lists(st.integers()), st.integers(-9, 9)))
def test_anything_becomes_a_number_or_nan(value: object) -> None:
    found = number(value)
    if isinstance(value, float | int) and not isinstance(value, bool):
        assert found == value or math.isnan(value)
    else:
        assert isinstance(found, float)


def test_console_takes_steps_from_redrawn_bars_although_the_rows_come_late(tmp_path: Path) -> None:
    def bar(k: int) -> str:
        return f"\r {k}%|█  | {k}/20 [00:01<00:02, 1.0s/it]"

    bars = "Loading shards: 1/2 [00:00<00:01]\r" + "".join(bar(k) + (bar(k) if k % 5 == 0 else "") for k in range(21))
    rows = [
        "{'loss': 0.1, 'reward': '0.9', 'completions/clipped_ratio': 0.0, 'grad_norm': nan}",
        "{'eval_loss': 0.1, 'eval_reward': 0.3}",
        "INFO {'reward': np.float64(0.8), 'completions/clipped_ratio': 0.5} trailing",
        "{'reward': 0.5, 'kl': -inf}",
        "{'reward': 0.25}",
        "{'train_runtime': 3.0, 'train_loss': 0.1}",
    ]
    path = tmp_path / "run.log"
    path.write_text(bars + "\n" + "\n".join(rows) + "\n")
    importer = find(Source(path))
    assert isinstance(importer, TrlConsole)
    (run,) = importer.read(Source(path))
    assert [(r.step, r.metrics["reward"]) for r in run.records] == [
        (5, 0.9),
        (10, 0.8),
        (15, 0.5),
        (20, 0.25),
    ]
    assert "grad_norm" not in run.records[0].metrics and "kl" not in run.records[2].metrics
    assert run.records[1].observations[0].value == 0.5


def test_console_without_bars_counts_rows_and_prefers_a_step_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("{'reward': 1.0}\n{'reward': 0.5}\n")
    assert [r.step for r in TrlConsole().read(Source(path))[0].records] == [1, 2]
    path.write_text("{'reward': 1.0, 'step': 51}\n{'reward': 0.5, 'step': '52'}\n")
    assert [r.step for r in TrlConsole().read(Source(path))[0].records] == [51, 52]


def test_console_dicts_of_other_trainers_are_read_by_what_their_columns_mean(tmp_path: Path) -> None:
    rows = [
        "rollout 3: {'rollout/raw_reward': 0.5, 'rollout/step': 3, 'truncated': tensor(0.25, device='cpu')}",
        "config {'reward': 'exact', 'lr': 1e-6}",  # names a reward, and tells none
        "{'loss': 0.1, 'grad_norm': 0.5, 'step': 4}",
        "step 4: {'rollout/raw_reward': np.float32(0.75), 'rollout/step': 4, 'truncated': 0.0}",
    ]
    (run,) = read(write(tmp_path / "slime.log", "\n".join(rows))).values()
    assert (told(run), told(run, "completions/clipped_ratio")) == ([(3, 0.5), (4, 0.75)], [(3, 0.25), (4, 0.0)])


def test_transcripts_are_classified_per_model_and_step(tmp_path: Path) -> None:
    turns = [
        {"model": "a", "step": 1, "dialogue": "x", "text": CALL},
        {"model": "a", "step": 1, "dialogue": "y", "text": "<tool_call><|im_end|>"},
        {"model": "a", "step": 1, "dialogue": "y", "text": "", "stop": "length"},
        {"model": "a", "step": 2, "dialogue": "x", "text": "It is noon.", "label": "ok"},
        {"model": "b", "text": "user\n<tool_call>\n{broken\n</tool_call>"},
    ]
    path = tmp_path / "turns.jsonl"
    path.write_text("\n\n".join(map(json.dumps, turns)))
    importer = find(Source(path))
    assert isinstance(importer, Transcripts)
    a, b = importer.read(Source(path))
    assert (a.name, a.dated, b.name, b.dated, a.unmapped) == ("a", True, "b", False, ("label",))
    rates = {o.stream: (o.value, o.n) for o in a.records[0].observations}
    assert rates["collapsed"] == (pytest.approx(2 / 3), 2)
    assert rates["polluted"][0] == 0.0 and rates["truncated"][0] == pytest.approx(1 / 3)
    assert rates["parse_failure"][0] == pytest.approx(1 / 2)
    assert {o.stream: o.value for o in a.records[1].observations}["collapsed"] == 0.0
    assert {o.stream: o.value for o in b.records[0].observations}["polluted"] == 1.0
    assert b.records[0].step == 0 and b.records[0].metrics["turns"] == 1


BAD = (
    "{",
    "7",
    "[]",
    '{"text": null}',
    '{"txt": "x"}',
    "[" * 100_000,
    '{"text": "x", "step": ' + "1" * 5000 + "}",
    "\0",
)


@pytest.mark.parametrize("bad", BAD, ids=lambda line: line[:24])
@pytest.mark.parametrize("first", [False, True])
def test_an_unreadable_line_costs_that_line_only(bad: str, first: bool, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    good = [json.dumps({"text": CALL}), json.dumps({"text": "Fine."})]
    path.write_text("\n".join([bad, "", *good] if first else [*good, "", bad]))
    importer = find(Source(path))
    assert isinstance(importer, Transcripts)
    (run,) = importer.read(Source(path))
    assert run.structure is not None and run.structure.turns == 2
    (fault,) = run.faults
    assert fault.startswith(f"1 of 3 lines left out, the first t.jsonl:{1 if first else 4}: got ") and len(fault) < 300


def test_transcripts_without_a_readable_line_are_no_transcripts(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(BAD))
    assert find(Source(path)) is None
    with pytest.raises(ImportFailed, match=r"t.jsonl:1: got '\{'.*expected an object with `text`; so in all 8 lines"):
        Transcripts().read(Source(path))
    path.write_text("\n\n")
    with pytest.raises(ImportFailed, match="got no line"):
        Transcripts().read(Source(path))


def test_fields_of_any_type_are_read_for_what_they_are_worth(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    huge = '{"text": "x", "model": "b", "step": 1' + "0" * 400 + ', "turn": NaN, "dialogue": [1]}'
    path.write_text("\ufeff" + json.dumps({"text": "\ud800", "model": None, "turn": "3", "stop": ["x"]}) + "\n" + huge)
    named, other = find(Source(path)).read(Source(path))  # type: ignore[union-attr]
    assert (named.name, other.name, named.faults) == ("t", "b", ())
    assert named.structure is not None and named.structure.by_turn is not None
    assert [part.at for part in named.structure.by_turn] == [3]
    assert other.structure is not None and (other.structure.by_turn, other.dated) == (None, False)


@pytest.mark.parametrize(
    ("stop", "cut"),
    [
        *[(s, False) for s in ("eos", "stop", "tool_calls", "end_turn", "stop_sequence", "STOP", "error", None)],
        *[(s, True) for s in ("length", "max_tokens", "model_length", "MAX_TOKENS")],
    ],
)
def test_finish_reasons_are_read_as_servers_spell_them(stop: str | None, cut: bool, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"text": CALL[:-3], "stop": stop}))
    (run,) = Transcripts().read(Source(path))
    assert {o.stream: o.value for o in run.records[0].observations}["truncated"] == cut
    assert run.structure is not None
    assert [r.reason == "truncated" for r in run.structure.reasons] == [cut]


def test_examples_are_the_first_turns_of_a_reason_that_differ(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    long = "user\na " + " ".join(map(str, range(999))) + " end"
    path.write_text("\n".join(json.dumps({"text": t}) for t in (CALL, "user\nhi", "user\nhi", long, "user\nho", "")))
    (run,) = Transcripts().read(Source(path))
    assert run.structure is not None
    echo, empty = run.structure.reasons
    assert [(e.line, e.text[:7], e.text[-4:]) for e in echo.examples] == [
        (2, "user\nhi", "r\nhi"),
        (4, "user\na ", " end"),
    ]
    assert len(echo.examples[1].text) == 160
    assert (empty.reason, empty.examples[0].line, empty.examples[0].text) == ("empty", 6, "")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("trainer_state.json", '{"log_history": [', "got broken JSON"),
        ("trainer_state.json", '{"global_step": 3}', "got no list `log_history`"),
        ("trainer_state.json", '{"log_history": [{"step": 1, "loss": 2}]}', "1 rows without `reward`"),
        ("a.log", "{'reward': object at 0x1}\n", "1 broken dict lines"),
    ],
)
def test_a_broken_file_says_what_is_wrong(name: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    importer = find(Source(path))
    assert importer is not None
    with pytest.raises(ImportFailed, match=message):
        importer.read(Source(path))
