"""The summary on the terminal: what it says of one run, of several, of transcripts; and in which width."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from collapsewatch import findings
from collapsewatch.advice import FAILURES
from collapsewatch.course import CAUSES
from collapsewatch.detectors.streams import FAILURES as BY_STREAM
from collapsewatch.records import Observation, StepRecord, Verdict
from collapsewatch.report import RunReport, analyze
from collapsewatch.store import Store
from collapsewatch.summary import STYLES, print_summary

CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def run(folder: Path, onset: int = 99, steps: int = 60) -> Path:
    """A run whose turns are all cut off from `onset` on."""
    store = Store(folder)
    for t in range(1, steps + 1):
        cut = Observation("truncated", 0.95 if t >= onset else 0.01, 8)
        store.log_step(StepRecord(t, 0.0, {"reward": 0.8 if t < onset else 0.0}, (cut,)))
    store.close()
    return folder


def transcripts(path: Path) -> Path:
    """30 turns of 15 steps, the odd ones cut off mid-call, and a line that is none."""
    rows = [{"step": i // 2, "turn": i % 2, "text": CALL[:-12] if i % 2 else CALL, "stop": "eos"} for i in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n{")
    return path


def shown(path: Path, width: int) -> str:
    text = io.StringIO()
    print_summary(analyze(path), Console(file=text, width=width))
    return text.getvalue()


def unfolded(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", [80, 1000])
def test_of_one_run_it_says_what_since_when_and_what_to_try(width: int, tmp_path: Path) -> None:
    text = shown(run(tmp_path / "mine", onset=31), width)
    assert max(map(len, text.splitlines())) <= min(width, 100)
    said = unfolded(text)
    assert said.startswith("mine collapsed since step 31, alarm at step 31 of 60 what turns run on to the length limit")
    for words in (
        "(length_runaway)",
        "moved first turns cut at the length limit",
        "evidence turns cut at the length limit 95% (usual 1%, limit ",
        "reward 0.80 first, 0.80 best, 0.00 last",
        "try next Leave truncated rollouts out of the loss",
        "not judged: control tokens where the format forbids them, ",
    ):
        assert words in said, (words, text)


def test_of_several_runs_it_says_which_broke_when_and_how(tmp_path: Path) -> None:
    run(tmp_path / "a" / "kl_seed1", onset=31)
    run(tmp_path / "a" / "kl_seed2")
    run(tmp_path / "b" / "kl_seed2", onset=41)
    (tmp_path / "b" / "trainer_state.json").write_text('{"log_history": [')
    wide, narrow = shown(tmp_path, 200), shown(tmp_path, 80)
    rows = [line.split() for line in wide.splitlines()]  # of two runs of one name, their folders are named
    assert rows[0] == ["run", "verdict", "since", "alarm", "steps", "how", "reward", "first", "/", "best", "/", "last"]
    assert rows[1][:6] == ["kl_seed1", "collapsed", "31", "31", "60", "length_runaway,"]
    assert rows[2] == ["a/kl_seed2", "healthy", "60", *["0.80", "/"] * 2, "0.80"]
    assert rows[3][:3] == ["b/kl_seed2", "collapsed", "41"]
    for text in (wide, narrow):
        said = unfolded(text)
        assert (
            "3 runs: 2 collapsed, 1 healthy" in said and "kl, 2 seeds: 1 collapsed (seed 1), 1 healthy (seed 2)" in said
        )
        assert said.count("try next") == 2 and said.count("not judged") == 1
        (line,) = (line for line in text.splitlines() if line.startswith("not read: "))
        assert str(tmp_path / "b" / "trainer_state.json") in line and "got broken JSON" in line
    assert max(len(line) for line in narrow.splitlines() if not line.startswith("not read")) <= 80


def test_columns_that_no_run_fills_are_left_out(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("\n".join([json.dumps({"text": "It is noon."})] * 9))
    assert shown(tmp_path, 80).splitlines()[0].split() == ["run", "verdict"]


def test_what_is_too_short_says_so(tmp_path: Path) -> None:
    assert unfolded(shown(run(tmp_path / "run", steps=3), 80)).startswith(
        "run unjudged what too little to say: 3 steps, 5 are needed reward "
    )


def test_of_transcripts_the_summary_shows_shares_and_reasons_also_on_a_narrow_terminal(tmp_path: Path) -> None:
    for width in (80, 200):
        lines = shown(transcripts(tmp_path / "t.jsonl"), width).splitlines()
        assert max(map(len, lines)) <= width
        rows = {tuple(line.split()[: -5 if "%" in line else None]): line.split()[-5:] for line in lines}
        assert rows["all",] == ["30", "50.0%", "0.0%", "50.0%", "0.0%"]
        assert [name for name in rows if name[:1] == ("step",)] == [
            ("step", "0"),
            ("step", "14"),
        ]  # all alike: no worst
        assert rows["turn", "1"] == ["15", "0.0%", "0.0%", "100.0%", "0.0%"]
        (reason,) = (line for line in lines if "unclosed_call" in line)
        assert reason.split()[:5] == ["unclosed_call", "15", "50.0%", "structural", "2"]
        assert reason.split()[5].startswith("<tool_call>")
        assert sum("1 of 31 lines left out" in line for line in lines) == 1


def test_of_many_steps_the_first_the_worst_and_the_last_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"step": s, "text": "" if s == 7 else "Fine."}) for s in range(40)))
    assert [line.split("  ")[0] for line in shown(path, 100).splitlines() if line.startswith("step ")] == [
        "step 0", "step 7 (worst)", "step 39",
    ]  # fmt: skip


@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_has_its_words(verdict: Verdict) -> None:
    report = RunReport("r", "/r", "x", (1, 9, 9), verdict, "" if verdict is Verdict.HEALTHY else "eos_loss")
    assert len(findings.headline(report)) > 10 and verdict in STYLES and verdict in findings.ORDER
    assert bool(findings.advice(report)) == (verdict in findings.BROKEN)


@pytest.mark.parametrize("kind", sorted({*BY_STREAM.values(), *FAILURES, *(cause.kind for cause in CAUSES)}))
def test_every_kind_of_failure_has_words_and_something_to_try(kind: str) -> None:
    assert kind in FAILURES and FAILURES[kind].words and FAILURES[kind].advice
    for advice in FAILURES[kind].advice:
        assert advice.what.endswith(".") and advice.why.endswith(".") and (advice.place or not advice.tested)


def test_a_level_that_is_no_share_is_told_as_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    for t in range(1, 81):
        store.log_step(StepRecord(t, 0.0, {"reward": 12.0 + t % 3 if t < 41 else 0.0}, ()))
    store.close()
    (report,) = analyze(tmp_path / "run")
    assert (report.verdict, report.kind, report.onset_step) == (Verdict.COLLAPSED, "reward_loss", 41)
    assert findings.evidence(report).startswith("reward 0 (usual 12.7, limit 3.8")
    assert not report.alarms and "beyond noise by step" in findings.when(report)


def test_names_that_several_runs_have_get_their_folders_or_a_number() -> None:
    base = RunReport("r", "/x/a/r", "s")
    same = [base, replace(base, path="/x/b/r"), replace(base, name="q"), base]
    assert findings.labels(same) == ["/x/a/r", "b/r", "q", "/x/a/r (2)"]


def test_foreign_names_are_text_and_not_obeyed(tmp_path: Path) -> None:
    evil = "[red]x[-red] \x1b[31m \u202e"
    rows = [f"step,reward,{evil}", *(f"{t},{0.5 + 0.1 * math.sin(t)},1" for t in range(30))]
    (tmp_path / f"{evil}.csv").write_text("\n".join(rows))
    text = shown(tmp_path, 200)
    assert all(char.isprintable() for char in text.replace("\n", ""))
    assert "[red]x[-red]" in text and "columns without a known meaning: " in text
