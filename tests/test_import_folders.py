"""The traps of real logs, folders of them, and files of any size."""

from __future__ import annotations

import gzip
import json
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
from collapsewatch.importers import Imported, Source, Unreadable, runs
from tests.logs import read, state, told, verl_step, write

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
    piece("seed1.log", *range(1, 40))  # what is missing is more than a crash leaves out
    assert sorted(read(tmp_path)) == ["seed1", "seed1_resumed", "seed2"]


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
