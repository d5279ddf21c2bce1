"""Verdicts, replay of own runs, the JSON contract, broken files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from collapsewatch.detectors import Detection
from collapsewatch.monitor import Monitor
from collapsewatch.plugins import UnknownPlugin
from collapsewatch.records import (
    Applied,
    Event,
    Observation,
    RolloutRow,
    StepRecord,
    Structure,
    Tier,
    TurnRow,
    Verdict,
)
from collapsewatch.replay import replay
from collapsewatch.report import ReportError, analyze, analyze_all, to_json
from collapsewatch.store import Store
from collapsewatch.verdict import decide

DATA = Path(__file__).parents[2] / "shared" / "data"
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def course(cut: list[float], reward: list[float] | None = None, n: int = 8) -> list[StepRecord]:
    """Records with these truncated shares and rewards, one per step."""
    rng = np.random.default_rng(0)
    metrics = [{"reward": r + 0.01 * rng.standard_normal()} for r in reward] if reward else [{}] * len(cut)
    return [
        StepRecord(t, 0.0, m, (Observation("truncated", c, n),))
        for t, (c, m) in enumerate(zip(cut, metrics, strict=True), 1)
    ]


LOW, HIGH = [0.01] * 40, [0.95] * 30
COURSES = {
    "healthy": (LOW + LOW, [0.8] * 80, Verdict.HEALTHY, ""),
    "healthy, no reward": (LOW, None, Verdict.HEALTHY, ""),
    "collapsed": (LOW + HIGH, [0.8] * 40 + [0.0] * 30, Verdict.COLLAPSED, "length_runaway"),
    "collapsed, no reward": (LOW + HIGH, None, Verdict.COLLAPSED, "length_runaway"),
    "collapsed and got used to": (
        LOW + HIGH * 4,
        [0.8] * 40 + [0.0] * 120,
        Verdict.COLLAPSED,
        "length_runaway",
    ),
    "silent": (LOW + HIGH, [0.8] * 70, Verdict.SILENT, "eos_loss"),
    "recovered": (
        LOW + HIGH + LOW,
        [0.8] * 40 + [0.1] * 30 + [0.8] * 40,
        Verdict.RECOVERED,
        "length_runaway",
    ),
    "reward lost for good": (LOW + HIGH + LOW, [0.8] * 40 + [0.1] * 70, Verdict.COLLAPSED, "length_runaway"),
    "degraded": (LOW + HIGH + LOW, [0.8] * 40 + [0.5] * 70, Verdict.DEGRADED, "length_runaway"),
    "degraded in reward only": (LOW + LOW, [0.8] * 40 + [0.4] * 40, Verdict.DEGRADED, "reward_loss"),
    "dead": ([1.0] * 30, [-0.001] * 30, Verdict.DEAD, "broken_start"),
    "starts broken, learns": ([0.9] * 15 + LOW, [0.1] * 15 + [0.8] * 40, Verdict.HEALTHY, ""),
    "too short": (LOW[:4], [0.8] * 4, Verdict.UNJUDGED, ""),
}


@pytest.mark.parametrize("name", COURSES)
def test_every_course_gets_its_verdict(name: str) -> None:
    cut, reward, verdict, kind = COURSES[name]
    reward = [0.0] * len(cut) if name == "dead" else reward
    found = decide(replay(course(cut, reward)))
    assert (found.verdict, found.kind) == (verdict, kind)
    if verdict in (Verdict.COLLAPSED, Verdict.SILENT, Verdict.RECOVERED):
        assert found.alarm is not None and (found.alarm.onset_step, found.alarm.step) == (41, 41)


def test_of_two_episodes_the_last_decides() -> None:
    found = decide(replay(course(LOW + HIGH + LOW + HIGH)))
    assert found.alarm is not None and found.alarm.step == 111


def test_a_driver_that_is_no_structural_rate_can_be_lost_too() -> None:
    silent = [StepRecord(t, 0.0, {}, (Observation("no_call", 0.1 if t < 60 else 1.0, 8),)) for t in range(1, 120)]
    found = decide(replay(silent))
    assert (found.verdict, found.kind) == (Verdict.COLLAPSED, "tool_abandonment")


def spike(steps: int = 90, mended: int = 1000) -> list[StepRecord]:
    rng = np.random.default_rng(1)
    out = []
    for t in range(1, steps + 1):
        rise = 0.0 if t > mended else max(0, min(9, 0.3 * (t - 50)))
        p = 1 / (1 + math.exp(5 - rise - 0.2 * rng.standard_normal()))
        hazard = {"hazard": -math.log1p(-p), "hazard:<tool_call>": -0.9 * math.log1p(-p)}
        rates = {"polluted": rng.binomial(64, p) / 64, "parse_failure": rng.binomial(64, 0.05) / 64}
        seen = tuple(Observation(s, v, 8) for s, v in {**hazard, **rates}.items())
        out.append(StepRecord(t, float(t), {"reward": 0.8 * (1 - p)}, seen))
    return out


def stored(folder: Path, records: list[StepRecord], marks: dict[int, str] | None = None) -> Path:
    store = Store(folder)
    for record in records:
        store.log_step(record)
        if marks and record.step in marks:
            store.log_event(Event(record.step, 0.0, "mark", marks[record.step]))
    store.log_applied(Applied(60, "ets", "triggered", 59, "applied", {}))
    store.log_applied(Applied(60, "ets", "triggered", 59, "skipped", {}))
    store.close()
    return folder


def test_a_spike_that_was_mended_is_told_however_the_reward_goes_on(tmp_path: Path) -> None:
    records = [
        replace(r, metrics={"reward": r.metrics["reward"] + max(0, r.step - 66) / 1000}) for r in spike(140, mended=66)
    ]
    (report,) = analyze(stored(tmp_path / "run", records))
    assert report.verdict == "recovered" and report.kind == "control_token_spike"
    assert report.onset_step is not None and 50 <= report.onset_step <= 66


def test_an_own_run_is_replayed_bit_for_bit_with_its_marks(tmp_path: Path) -> None:
    records = spike()
    live, seen = Detection(), []
    for record in records:
        seen += live.update(record)[0]
        if record.step == 30:
            live.mark_event(30, "curriculum")
    (report,) = analyze(stored(tmp_path / "run", records, {30: "curriculum"}))
    assert report.alarms == tuple(seen)
    unmarked = Detection()
    assert report.alarms != tuple(a for r in records for a in unmarked.update(r)[0])  # the mark matters
    first = next(a for a in seen if a.tier is Tier.ALARM)
    assert (report.name, report.source, report.steps) == ("run", "collapsewatch", (1, 90, 90))
    assert (report.verdict, report.kind) == (Verdict.COLLAPSED, "control_token_spike")
    assert (report.detected_step, report.onset_step) == (first.step, first.onset_step)
    assert report.token == "<tool_call>" and report.first_mover.startswith("hazard")
    assert report.interventions == 1
    assert ("empty", "not in the log") in report.not_judged


def test_json_keeps_its_contract(tmp_path: Path) -> None:
    reports = analyze(stored(tmp_path / "run", spike()))
    (run,) = json.loads(json.dumps(to_json(reports), allow_nan=False))["runs"]
    assert list(run) == [
        "name", "path", "source", "steps", "verdict", "kind", "onset_step", "detected_step", "first_mover",
        "token", "evidence", "alarms", "not_judged", "unmapped", "notices", "reward", "interventions", "capability",
    ]  # fmt: skip
    assert run["steps"] == {"first": 1, "last": 90, "count": 90}
    assert list(run["evidence"][0]) == ["stream", "share", "level", "baseline", "tolerance"]
    assert {"step", "tier", "detector", "streams", "onset_step", "log_e"} <= set(run["alarms"][0])
    assert {tuple(row) for row in run["not_judged"]} == {("stream", "reason")}


def transcripts(path: Path) -> Path:
    """30 turns of 15 steps, the odd ones cut off mid-call, and a line that is none."""
    rows = [{"step": i // 2, "turn": i % 2, "text": CALL[:-12] if i % 2 else CALL, "stop": "eos"} for i in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n{")
    return path


def test_json_of_transcripts_has_their_structure(tmp_path: Path) -> None:
    (run,) = json.loads(json.dumps(to_json(analyze(transcripts(tmp_path / "t.jsonl"))), allow_nan=False))["runs"]
    assert list(run)[-1] == "structure"
    found = run["structure"]
    half = {"tool_call": 0.5, "response": 0.0, "polluted": 0.5, "collapsed": 0.0}
    assert found.pop("by_step") == [{"step": i, "turns": 2, "shares": half} for i in range(15)]
    intact, broken = found.pop("by_turn")
    assert intact == {"turn": 0, "turns": 15, "shares": dict.fromkeys(half, 0.0) | {"tool_call": 1.0}}
    assert broken == {"turn": 1, "turns": 15, "shares": dict.fromkeys(half, 0.0) | {"polluted": 1.0}}
    (reason,) = found.pop("reasons")
    assert reason == {
        "reason": "unclosed_call", "family": "structural", "count": 15, "share": 0.5,
        "examples": [{"line": 2, "text": CALL[:-12]}],
    }  # fmt: skip
    assert found.pop("lenient_parse_rate") >= 0.5
    assert found == {"turns": 30, "shares": half, "parse_rate": 0.5}
    assert any(row["stream"] == "" and row["reason"].startswith("1 of 31 lines left out") for row in run["not_judged"])
    (undated,) = analyze(untold(tmp_path / "u.jsonl"))
    assert undated.structure is not None and undated.structure.to_dict() == {
        "turns": 1, "shares": dict.fromkeys(half, 0.0) | {"response": 1.0}, "parse_rate": None,
        "lenient_parse_rate": None, "by_step": None, "by_turn": None, "reasons": [],
    }  # fmt: skip


def untold(path: Path) -> Path:
    path.write_text(json.dumps({"text": "It is noon."}))
    return path


def test_an_own_run_has_the_structure_of_its_valid_turns_on_all_ranks(tmp_path: Path) -> None:
    def record(step: int, *reasons: str) -> StepRecord:
        structure = {"ok": Structure.TOOL_CALL, "empty": Structure.COLLAPSED}
        turns = (TurnRow(0, i, str(structure[r]), r, "eos", 9, 1, 0.0) for i, r in enumerate(reasons))
        return StepRecord(step, 0.0, {}, (), (), tuple(turns))

    for rank, logged in enumerate(
        [(record(1, "empty"), record(2, "ok"), record(1, "ok", "empty")), (record(1, "ok"),)]
    ):
        store = Store(tmp_path / "run", rank)
        for each in logged:
            store.log_step(each)
        store.close()
    (report,) = analyze(tmp_path / "run")
    assert report.structure is not None
    found = report.structure.to_dict()
    assert (found["turns"], found["shares"]["tool_call"], found["shares"]["collapsed"]) == (4, 0.75, 0.25)
    assert [(p["step"], p["turns"], p["shares"]["tool_call"]) for p in found["by_step"]] == [(1, 3, 2 / 3), (2, 1, 1.0)]
    assert [(p["turn"], p["turns"], p["shares"]["collapsed"]) for p in found["by_turn"]] == [(0, 3, 0.0), (1, 1, 1.0)]
    assert [(r["reason"], r["count"], r["examples"]) for r in found["reasons"]] == [("empty", 1, [])]
    assert found["parse_rate"] is None and found["lenient_parse_rate"] is None


def folder(tmp_path: Path) -> Path:
    stored(tmp_path / "runs" / "mine", course(LOW, [0.5] * 40))
    rows = [{"step": t, "reward": 0.7, "completions/clipped_ratio": 0.0} for t in range(1, 20)]
    (tmp_path / "trl").mkdir()
    (tmp_path / "trl" / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    (tmp_path / "cut" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "cut" / "checkpoint-1" / "trainer_state.json").write_text('{"log_history": [')
    (tmp_path / "notes.md").write_text("nothing to see")
    (tmp_path / "broken_run").mkdir()
    (tmp_path / "broken_run" / "run.duckdb").write_bytes(b"no database at all" * 100)
    return tmp_path


def test_one_broken_file_in_a_folder_never_stops_the_rest(tmp_path: Path) -> None:
    reports = {Path(r.path).relative_to(tmp_path).parts[0]: r for r in analyze(folder(tmp_path))}
    assert set(reports) == {"runs", "trl", "cut", "broken_run"}
    assert reports["runs"].verdict == reports["trl"].verdict == Verdict.HEALTHY
    for name in ("cut", "broken_run"):
        assert reports[name].verdict is Verdict.UNJUDGED
        assert reports[name].not_judged[0][1].startswith("broken: ")


def test_nothing_to_analyze_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no such path"):
        analyze(tmp_path / "nowhere")
    with pytest.raises(ReportError, match="no run in it, expected"):
        analyze(tmp_path)
    (tmp_path / "notes.md").write_text("nothing to see")
    with pytest.raises(ReportError, match="expected a log of one of trainer_state"):
        analyze(tmp_path / "notes.md")


def test_transcripts_without_steps_are_judged_by_their_shares(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    turns = [("good", CALL), ("bad", "<tool_call><|im_end|>"), ("mixed", "Fine, it is noon.")] * 9
    turns += [("mixed", "")] * 3 + [("few", CALL)] * 2
    path.write_text("\n".join(json.dumps({"model": m, "text": x}) for m, x in turns))
    found = {r.name: r for r in analyze(path)}
    verdicts = {name: str(r.verdict) for name, r in found.items()}
    assert verdicts == {"good": "healthy", "bad": "collapsed", "mixed": "degraded", "few": "unjudged"}
    assert {d.stream: d.level for d in found["mixed"].evidence}["empty"] == 0.25
    assert found["bad"].onset_step is None and found["bad"].steps == (None, None, 0)
    with pytest.raises(UnknownPlugin, match="expected one of"):
        analyze(path, format="nope")


def test_seeds_of_one_arm_follow_each_other_in_order(tmp_path: Path) -> None:
    for name in ("kl0.2_seed10", "kl0.2_seed9", "kl0.10_seed1", "plain"):
        stored(tmp_path / name, course(LOW))
    assert [r.name for r in analyze(tmp_path)] == ["kl0.2_seed9", "kl0.2_seed10", "kl0.10_seed1", "plain"]


def test_what_two_paths_hold_is_told_once(tmp_path: Path) -> None:
    stored(tmp_path / "a", course(LOW))
    stored(tmp_path / "b", course(LOW))
    assert [r.name for r in analyze_all([tmp_path / "b", tmp_path, tmp_path / "b"])] == ["b", "a"]


def test_a_user_says_what_a_column_is(tmp_path: Path) -> None:
    rows = ["it,cutoff,score"] + [f"{t},{0.95 if t > 40 else 0.01},{0.0 if t > 40 else 0.8}" for t in range(1, 81)]
    (tmp_path / "log.csv").write_text("\n".join(rows))
    names = {"it": "step", "cutoff": "completions/clipped_ratio", "score": "reward"}
    (report,) = analyze(tmp_path / "log.csv", names=names)
    assert (report.verdict, report.onset_step, report.unmapped) == (Verdict.COLLAPSED, 41, ())


def test_a_log_whose_numbers_went_is_no_healthy_one(tmp_path: Path) -> None:
    rows = ["step,reward,loss"] + [f"{t},0.{70 + t % 5},{'nan' if t > 40 else 0.01 * t}" for t in range(1, 61)]
    (tmp_path / "log.csv").write_text("\n".join(rows))
    (report,) = analyze(tmp_path / "log.csv")
    assert (report.verdict, report.kind, report.onset_step) == (Verdict.DEGRADED, "not_finite", 41)
    gone = [f"{t},nan,nan" if t > 40 else row for t, row in enumerate(rows)]
    (tmp_path / "log.csv").write_text("\n".join(gone))
    (report,) = analyze(tmp_path / "log.csv")
    assert (report.verdict, report.kind, report.steps) == (Verdict.COLLAPSED, "not_finite", (1, 60, 60))


def test_the_rollouts_worth_reading_are_a_sound_one_from_before_and_the_worst_since(tmp_path: Path) -> None:
    def record(step: int) -> StepRecord:
        late = step > 40
        rows = []
        for i, (structure, hazard) in enumerate([(Structure.TOOL_CALL, 0.0), (Structure.POLLUTED, math.nan)]):
            structure = Structure.COLLAPSED if late and i else structure
            rows.append(
                RolloutRow(i, 0, 0.5, 0.0, 1, 3, 0, 0, str(structure), hazard + step, f"prompt {step}", f"{i}@{step}")
            )
        turns = (
            TurnRow(0, 0, "tool_call", "ok", "eos", 3, 1, 0.0),
            TurnRow(1, 0, "collapsed", "empty", "eos", 3, 0, 0.0),
        )
        seen = (Observation("truncated", 0.95 if late else 0.01, 8),)
        return StepRecord(step, 0.0, {}, seen, (), turns, tuple(rows))

    (report,) = analyze(stored(tmp_path / "run", [record(t) for t in range(1, 71)]))
    assert report.onset_step == 41
    sound, *worst = report.samples
    assert (sound.place, sound.reason, sound.text, sound.prompt) == ("step 40, rollout 0", "", "0@40", "prompt 40")
    assert len(worst) == 3 and {s.reason for s in worst} == {"collapsed (empty)"}
    assert all(int(s.text.partition("@")[2]) >= 41 for s in worst)
    assert "samples" not in report.to_dict()


@pytest.mark.skipif(not DATA.exists(), reason="needs the shared transcripts")
def test_real_transcripts_are_told_apart_by_their_shares() -> None:
    path = DATA / "transcripts" / "ace_dialogues_dev.jsonl"
    said = {"healthy_call": "tool_call", "healthy_response": "response"}
    labels: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        labels.setdefault(row["model"], []).append(said.get(row["label"], row["label"]))
    for report in analyze(path):
        own = labels[report.name]
        assert report.structure is not None and report.structure.turns == len(own)
        for structure, share in report.structure.shares.items():
            assert share == pytest.approx(own.count(structure) / len(own), abs=0.02), (report.name, structure)


def test_a_run_broken_from_the_start_is_never_called_healthy(tmp_path: Path) -> None:
    broken = course([0.85] * 6)
    rewarded = [replace(r, metrics={"reward": 0.4}) for r in broken]
    (report,) = analyze(stored(tmp_path / "rewarded", rewarded))
    assert (report.verdict, report.kind) == (Verdict.SILENT, "broken_start")
    fading = [replace(r, metrics={"reward": 0.9 if r.step < 4 else 0.1}) for r in broken]
    (report,) = analyze(stored(tmp_path / "fading", fading))
    assert report.verdict is Verdict.COLLAPSED
    (report,) = analyze(stored(tmp_path / "unrewarded", broken))
    assert report.verdict is Verdict.DEAD


@pytest.mark.parametrize("reward", [0.0, -1.0])
def test_a_sound_run_whose_rewards_never_differ_and_never_pay_is_dead(tmp_path: Path, reward: float) -> None:
    def found(name: str, *last: float, **told: float) -> tuple[Verdict, str]:
        records = [replace(r, metrics={"reward": reward} | told) for r in course([0.01] * 30)]
        records += [replace(r, step=r.step + 30, metrics={"reward": x}) for r, x in zip(records, last, strict=False)]
        (report,) = analyze(stored(tmp_path / name, records))
        return report.verdict, report.kind

    assert found("unrewarded") == (Verdict.DEAD, "no_reward")
    assert found("learns late", *[0.3, 0.5] * 5)[0] is Verdict.HEALTHY
    assert found("right all the same", accuracy=0.4)[0] is Verdict.HEALTHY


def test_a_run_is_judged_by_the_budget_it_was_watched_with(tmp_path: Path) -> None:
    spiking = course([0.01] * 40 + [0.15] * 20)
    seen = {}
    for budget in (1.0, 500.0):
        monitor = Monitor(tmp_path / f"{budget}", fa_per_10k=budget)
        seen[budget] = [alarm for r in spiking for alarm in monitor.log(r)]
        monitor.close()
        (report,) = analyze(tmp_path / f"{budget}")
        assert report.alarms == tuple(seen[budget])
    assert seen[1.0] != seen[500.0]
    assert analyze(tmp_path / "1.0", fa_per_10k=500.0)[0].alarms == tuple(seen[500.0])
