"""Importers: what each log says, the traps of real logs, and files that are broken or foreign."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import tempfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsewatch.importers.source as source_module
from collapsewatch.importers import IMPORTERS, Imported, ImportFailed, Options, Source, Unreadable, find, runs
from collapsewatch.importers.columns import Columns, number
from collapsewatch.importers.series import series
from collapsewatch.importers.trainer_state import TrainerState
from collapsewatch.importers.transcripts import Transcripts
from collapsewatch.importers.trl_console import TrlConsole
from collapsewatch.plugins import resolve
from collapsewatch.report import analyze

CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def state(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"log_history": rows}))
    return path


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


def read(root: Path, **options: object) -> dict[str, Imported]:
    """Every run below a path by name; nothing there is unreadable."""
    found = list(runs(root, Options(**options)))  # type: ignore[arg-type]
    assert not [run for run in found if isinstance(run, Unreadable)], found
    return {run.name: run for run in found if isinstance(run, Imported)}


def told(run: Imported, metric: str = "reward") -> list[tuple[int, float]]:
    return [(r.step, r.metrics[metric]) for r in run.records if metric in r.metrics]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# verl

WORKER = "\x1b[36m(TaskRunner pid=4242)\x1b[0m "


def verl_step(step: int, reward: float, length: float = 300.0, clip: float = 0.0, more: str = "") -> str:
    return (
        f"step:{step} - actor/entropy:0.3 - actor/grad_norm:np.float64(0.25) - critic/score/mean:{reward} - "
        f"critic/score/max:1.0 - response_length/mean:{length} - response_length/clip_ratio:{clip} - "
        f"num_turns/mean:np.float64(3.5) - timing_s/step:61.02{more}"
    )


def test_verl_steps_are_found_behind_prefixes_colours_and_progress_bars(tmp_path: Path) -> None:
    lines = [
        f"{WORKER}step:0 - val-core/tools/acc/mean@1:0.1\n",  # an evaluation before training is no step of it
        f"{WORKER}{verl_step(1, 0.5)}\x1b[0m\n",
        f"\rTraining Progress:  20%|##   | 2/10 [00:01<00:05]{verl_step(2, 0.25, clip=0.5)}\n",
        f"{WORKER}{verl_step(3, 0.75, more=' - val-core/tools/acc/mean@1:0.4')} [repeated 2x across cluster]\r\n",
        "Checkpoint tracker file does not exist: laststep:4 - critic/score/mean:0.9\n",
        f"{verl_step(5, math.nan)} - my_metric:7\n",
    ]
    path = write(tmp_path / "seed1" / "train.log", "".join(lines))
    run = read(path)["seed1"]
    assert (run.source, run.unmapped, run.faults) == ("verl_console", ("my_metric",), ())
    assert told(run) == [(1, 0.5), (2, 0.25), (3, 0.75)]
    assert run.records[0].metrics == {
        "entropy": 0.3, "grad_norm": 0.25, "reward": 0.5, "turns": 3.5,
        "completions/mean_length": 300.0, "completions/clipped_ratio": 0.0,
    }  # fmt: skip
    assert [o.value for o in run.records[1].observations if o.stream == "truncated"] == [0.5]
    assert told(run, "val-core/tools/acc/mean@1") == [(3, 0.4)]
    assert [r.step for r in run.records] == [1, 2, 3, 5]


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_verl_line_that_is_still_being_written_gives_no_half_number(cut: int, tmp_path: Path) -> None:
    whole = f"{verl_step(1, 0.5)}\n{verl_step(2, 0.5, length=4784.1875)}\n"
    (run,) = read(write(tmp_path / "a.log", whole[:-cut])).values()
    lengths = {r.step: r.metrics.get("completions/mean_length") for r in run.records}
    assert lengths[1] == 300.0 and lengths.get(2) in (None, 4784.1875)


def test_verl_s_file_logger_and_a_nested_json_log_are_read(tmp_path: Path) -> None:
    rows = [{"step": s, "data": {"critic/score/mean": s / 10, "actor/entropy": 0.5, "perf/mfu": 0.3}} for s in (1, 2)]
    write(tmp_path / "exp" / "a.jsonl", "\n".join(map(json.dumps, rows)) + '\n{"step": 3, "da')
    nested = [{"iter": s, "train": {"reward": s / 10, "kl": 0.1}, "system": {"gpu": 1}} for s in (1, 2)]
    write(tmp_path / "exp" / "b.jsonl", "\n".join(map(json.dumps, nested)))
    found = read(tmp_path)
    assert (found["a"].source, told(found["a"])) == ("verl_file", [(1, 0.1), (2, 0.2)])
    assert found["a"].unmapped == () and "1 of 3 lines left out, the first a.jsonl:3" in found["a"].faults[0]
    assert (found["b"].source, told(found["b"]), told(found["b"], "kl")) == (
        "json", [(1, 0.1), (2, 0.2)], [(1, 0.1), (2, 0.1)],
    )  # fmt: skip


def dump(output: str, score: float, step: int, prompt: str = "p") -> str:
    return json.dumps({"input": prompt, "output": output, "gts": "", "score": score, "step": step, "acc": score > 0.5})


def test_verl_s_rollout_dumps_of_a_folder_are_one_run_of_turns(tmp_path: Path) -> None:
    answer = "user\n<tool_response>\n12:00\n</tool_response>\n"
    again = "assistant\n"
    for step in (2, 10):
        rows = [
            dump(f"{CALL}\n{answer}{again}It is noon.", 1.0, step, "a"),
            dump(f"<|im_end|>\n<|im_start|>{answer}<|im_end|>\n<|im_start|>{again}{CALL}", 0.0, step, "b"),
            dump("<tool_call>\n{broken", 0.5, step, "a"),
        ]
        write(tmp_path / "rollouts" / f"{step}.jsonl", "\n".join(rows))
    run = read(tmp_path)["rollouts"]
    assert (run.source, [r.step for r in run.records], run.dated) == ("verl_rollouts", [2, 10], True)
    assert run.structure is not None and run.structure.turns == 10
    assert told(run) == [(2, 0.5), (10, 0.5)] and run.records[0].metrics["accuracy"] == pytest.approx(1 / 3)
    rates = {o.stream: (o.value, o.n) for o in run.records[0].observations}
    assert rates["polluted"] == (pytest.approx(1 / 5), 2) and rates["no_call"][0] == 0.0
    assert rates["empty"][0] == pytest.approx(1 / 5)  # the second rollout's first turn


# tables


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_a_table_is_read_whatever_stands_between_its_cells(delimiter: str, tmp_path: Path) -> None:
    rows = [
        ["Step", "Reward", "note", "Entropy"],
        ["1", "0.5", '"a b"', "1e-3"],
        ["2", "nan", "", "0.5"],
        ["3", "0.25"],
    ]
    path = write(tmp_path / "a.csv", "\ufeff" + "\r\n".join(delimiter.join(row) for row in rows))
    (run,) = read(path).values()
    assert (told(run), told(run, "entropy")) == ([(1, 0.5)], [(1, 0.001), (2, 0.5)])
    assert run.unmapped == ("note",) and "1 rows left out, the first a.csv:4" in run.faults[0]


def test_a_column_of_runs_makes_runs_where_their_steps_overlap(tmp_path: Path) -> None:
    rows = [f"{arm},{seed},{step},{step / 10 + seed}" for seed in (0, 1) for arm in "ab" for step in (1, 2)]
    write(tmp_path / "sweep.csv", "\n".join(["arm,seed,step,reward", *rows]))
    found = read(tmp_path)
    assert set(found) == {"sweep/a/seed0", "sweep/b/seed0", "sweep/a/seed1", "sweep/b/seed1"}
    assert told(found["sweep/b/seed1"]) == [(1, 1.1), (2, 1.2)]
    write(tmp_path / "sweep.csv", "run_id,step,reward\nx1,1,0.1\nx1,2,0.2\nx2,3,0.3\n")
    assert [told(run) for run in read(tmp_path).values()] == [[(1, 0.1), (2, 0.2), (3, 0.3)]]


def test_a_table_with_one_value_per_row_is_made_wide(tmp_path: Path) -> None:
    rows = [("reward", s, s / 10) for s in (1, 2)] + [("train/entropy", s, 0.5) for s in (1, 2)]
    write(tmp_path / "long.csv", "metric,step,value\n" + "".join(f"{m},{s},{v}\n" for m, s, v in rows))
    write(tmp_path / "long.jsonl", "".join(json.dumps({"tag": m, "step": s, "value": v}) + "\n" for m, s, v in rows))
    found = list(runs(tmp_path))
    assert len(found) == 2
    for run in found:
        assert isinstance(run, Imported)
        assert (told(run), told(run, "entropy")) == ([(1, 0.1), (2, 0.2)], [(1, 0.5), (2, 0.5)])


ROWS = [{"step": s, "reward": s / 10} for s in (5, 10, 15)]
COLUMNS = {"step": [5, 10, 15], "reward": [0.5, 1.0, 1.5], "other": [1]}
DOCUMENTS = {
    "rows": (ROWS, [""]),
    "rows below a name": ({"config": {"lr": 1}, "history": ROWS}, [""]),
    "columns": (COLUMNS, [""]),
    "columns of a data frame": ({n: {str(i): x for i, x in enumerate(v)} for n, v in COLUMNS.items()}, [""]),
    "rows by step": ({str(row["step"]): {"reward": row["reward"]} for row in ROWS}, [""]),
    "seeds": ({"seed1": ROWS, "seed2": ROWS}, ["/seed1", "/seed2"]),
    "seeds of columns, deeper": ({"steps": [5, 10, 15], "runs": {"1": COLUMNS, "2": COLUMNS}}, ["/1", "/2"]),
    "rows with a seed": ([{**row, "seed": s} for s in (1, 2) for row in ROWS], ["/seed1", "/seed2"]),
}


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("indent", [None, 2])
def test_json_documents_are_searched_for_tables(name: str, indent: int | None, tmp_path: Path) -> None:
    value, names = DOCUMENTS[name]
    write(tmp_path / "doc.json", json.dumps(value, indent=indent))
    found = read(tmp_path)
    assert sorted(found) == [f"doc{name}" for name in names]
    for run in found.values():
        assert [(s, round(v, 6)) for s, v in told(run)] == [(s, s / 10) for s in (5, 10, 15)]


def test_of_a_json_document_that_breaks_off_all_whole_rows_are_read(tmp_path: Path) -> None:
    rows = [{"step": s, "reward": s / 10, "note": 'a "b" {c'} for s in range(1, 20)]
    for value in (rows, {"log_history": rows}, {"a": {"b": rows}, "c": 1}):
        text = json.dumps(value)
        for end in range(text.index("}") + 1, len(text), 7):
            (run,) = read(write(tmp_path / "doc.json", text[:end])).values()
            assert len(run.records) == min(text[:end].count("}"), 19), text[:end][-40:]
    for name, value in (("doc.json", rows), ("trainer_state.json", {"log_history": rows})):
        text = json.dumps(value)
        at = text.index('"reward": 0.9')
        for broken in (text[:at] + "\x00" + text[at + 1 :], text[:at] + "}" + text[at + 1 :]):
            (run,) = read(write(tmp_path / "cut" / name, broken)).values()
            assert len(run.records) >= 17 and len(run.faults) == 1
            (tmp_path / "cut" / name).unlink()


# the traps of real logs


def test_steps_that_go_back_are_a_resumed_run_and_what_it_did_again_counts(tmp_path: Path) -> None:
    steps = [*range(1, 61), *range(51, 80)]
    path = write(
        tmp_path / "a.jsonl", "".join(json.dumps({"step": s, "reward": i}) + "\n" for i, s in enumerate(steps))
    )
    (run,) = read(path).values()
    assert told(run)[48:52] == [(49, 48.0), (50, 49.0), (51, 60.0), (52, 61.0)] and len(run.records) == 79
    assert run.faults == ("steps go back to 51: 10 earlier records left out",)


def test_the_pieces_of_a_resumed_run_are_joined_and_other_runs_beside_it_are_not(tmp_path: Path) -> None:
    def piece(name: str, *steps: int) -> None:
        write(tmp_path / name, "".join(f"{{'reward': {s}, 'step': {s}, 'kl': 0.1}}\n" for s in steps))

    piece("seed1.log", *range(1, 61))
    piece("seed1_resumed.log", *range(51, 101))
    piece("seed2.log", *range(1, 91))
    found = read(tmp_path)
    assert sorted(found) == ["seed1", "seed2"]
    assert [s for s, _ in told(found["seed1"])] == list(range(1, 101))
    assert "seed1_resumed.log: goes on with seed1.log at step 51" in found["seed1"].faults[0]
    piece("seed1.log", *range(1, 40))  # a gap: seed2's log fits as well, and is less alike
    assert sorted(read(tmp_path)) == ["seed1_resumed", "seed2"] or "seed1" in read(tmp_path)


def test_of_the_ranks_of_a_run_the_mean_is_taken(tmp_path: Path) -> None:
    for rank in (0, 1):
        rows = [{"step": s, "reward": s + rank, "completions/clipped_ratio": rank / 2} for s in (1, 2)]
        write(tmp_path / f"metrics_rank{rank}.jsonl", "\n".join(map(json.dumps, rows)))
    (run,) = read(tmp_path).values()
    assert told(run) == [(1, 1.5), (2, 2.5)]
    assert [(o.value, o.n) for o in run.records[0].observations] == [(0.25, 2)]


def test_an_evaluation_s_rows_are_no_training_and_its_scores_join_their_step(tmp_path: Path) -> None:
    rows = [{"step": 1, "reward": 0.5}, {"step": 1, "eval_reward": 0.1, "eval_loss": 2}, {"step": 2, "reward": 0.75}]
    run = read(state(tmp_path / "run" / "trainer_state.json", rows))["run"]
    assert told(run) == [(1, 0.5), (2, 0.75)] and told(run, "eval_reward") == [(1, 0.1)]
    path = write(tmp_path / "b.jsonl", "\n".join(map(json.dumps, rows)))
    assert told(read(path)["b"], "eval_reward") == [(1, 0.1)]


def test_a_kl_that_is_always_zero_was_not_measured(tmp_path: Path) -> None:
    for last, kept in ((0.0, 0), (0.1, 2)):
        rows = [{"step": 1, "reward": 0.5, "kl": 0.0}, {"step": 2, "reward": 0.5, "kl": last}]
        path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
        assert len(told(read(path)["a"], "kl")) == kept


def test_a_user_s_names_count_most(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "n,meine_belohnung,reward\n1,0.5,9\n2,0.25,9\n")
    (run,) = read(path, names={"meine_belohnung": "reward", "n": "step"}).values()
    assert told(run) == [(1, 0.5), (2, 0.25)] and run.unmapped == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("codec", ["", ".gz", ".zst", ".bz2"])
def test_compressed_logs_in_common_encodings_are_read(codec: str, encoding: str, tmp_path: Path) -> None:
    text = "".join(json.dumps({"step": s, "reward": s / 10, "who": "Jörg"}, ensure_ascii=False) + "\n" for s in (1, 2))
    kinds = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
    path = tmp_path / f"a.jsonl{codec}"
    with pa.output_stream(path, compression=kinds.get(codec)) as stream:
        stream.write(text.encode(encoding))
    assert told(read(path)["a"]) == [(1, 0.1), (2, 0.2)]


def test_a_compressed_log_that_breaks_off_gives_what_it_holds(tmp_path: Path) -> None:
    rows = "".join(f"{verl_step(s, hash(str(s)) % 1000 / 1000)}\n" for s in range(1, 20_000))
    path = write(tmp_path / "a.log.gz", gzip.compress(rows.encode())[:-2000])
    (run,) = read(path).values()
    assert 1000 < len(run.records) < 20_000 and any("ends early or is broken" in f for f in run.faults)


# folders


def test_a_folder_is_read_once_past_loops_hidden_and_skipped_folders(tmp_path: Path) -> None:
    line = '{"step": 1, "reward": 0.5}\n'
    for name in ("a/x.jsonl", "a/deep/y.jsonl", ".hidden/z.jsonl", "own/w.jsonl", "a/.v.jsonl"):
        write(tmp_path / name, line)
    write(tmp_path / "a" / "config.json", '{"lr": 1e-6}')
    write(tmp_path / "a" / "model.bin", bytes(range(256)) * 99)
    os.mkfifo(tmp_path / "a" / "pipe.jsonl")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a" / "deep")
    (tmp_path / "a" / "x2.jsonl").symlink_to(tmp_path / "a" / "x.jsonl")
    (tmp_path / "a" / "deep" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "me").symlink_to(tmp_path / "a" / "me")
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "nowhere")
    found = list(runs(tmp_path, skip=[tmp_path / "own"]))
    assert sorted(run.name for run in found if isinstance(run, Imported)) == ["x", "y"]
    assert {f.path.name for f in found if isinstance(f, Unreadable)} == {"up", "me", "gone"}
    assert next(f.reason for f in found if isinstance(f, Unreadable) and f.path.name == "up").endswith(
        "folder above it"
    )


def test_a_file_that_holds_no_training_is_passed_over_unless_it_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "trainer_state.json", '{"log_history": [{"step": 1, "loss": 2.0}]}')
    assert list(runs(tmp_path)) == []
    (found,) = runs(path)
    assert isinstance(found, Unreadable) and "1 rows without `reward`" in found.reason
    assert list(runs(write(tmp_path / "notes.md", "nothing to see"))) == []
    (pipe,) = runs(tmp_path / "nowhere")
    assert isinstance(pipe, Unreadable) and pipe.reason == "no regular file"


# size


def test_an_endless_line_and_more_rows_than_fit_cost_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.log"
    with path.open("w") as file:
        file.write(f"{verl_step(1, 1.0)}\n")
        for _ in range(60):
            file.write("x" * 1_000_000)  # a line of 60 MB
        file.write("\n")
        file.writelines(f"{verl_step(s, 1.0 + s % 2)}\n" for s in range(2, 25_001))
    tracemalloc.start()
    (run,) = read(path).values()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000
    assert (run.records[0].step, len(run.records)) == (1, 3125)
    assert run.faults == ("25000 rows: read as means of 8",) and {r.metrics["reward"] for r in run.records[1:]} == {1.5}


@given(
    st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\r\n", b"ab" * 9]), max_size=30),
    st.integers(1, 9),
    st.integers(1, 40),
)
def test_lines_are_the_same_however_the_file_is_cut_into_blocks(parts: list[bytes], block: int, longest: int) -> None:
    content = b"".join(parts)
    with pytest.MonkeyPatch.context() as patch, tempfile.NamedTemporaryFile(suffix=".log") as file:
        file.write(content)
        file.flush()
        patch.setattr(source_module, "_BLOCK", block)
        lines = list(Source(Path(file.name)).raw_lines())
        assert [line for line in lines if line] == [line for line in content.splitlines() if line]
        held = list(Source(Path(file.name)).raw_lines(re.compile(b"ba")))
        assert held == [line for line in content.splitlines() if b"ba" in line]
        patch.setattr(source_module, "LINE", longest)
        short = [line[:longest] for line in content.splitlines() if line]
        assert [line[:longest] for line in Source(Path(file.name)).raw_lines() if line] == short
