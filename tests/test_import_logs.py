"""verl's logs and tables of any kind, whole and broken."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from collapsewatch.importers import Imported, runs
from tests.logs import CALL, read, told, verl_step, write

# verl

WORKER = "\x1b[36m(TaskRunner pid=4242)\x1b[0m "


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
