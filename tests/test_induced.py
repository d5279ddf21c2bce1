"""The real runs of the benchmark: the rule that says when one broke, what breaks it, and that a seed is a run."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "detection" / "induced"))

from truth import FIRST, IN_A_ROW, SIGNS, broken_step

from collapsewatch.records import Alarm, Observation, StepRecord, Tier

QUIZ = 1  # of `WORLDS`: a Llama that writes LFM2 calls


def course(*values: float, sign: str = "sound") -> list[dict[str, float]]:
    """Ten usual steps, then one sign at these values and the others as they were."""
    return [dict.fromkeys(SIGNS, 0.8)] * FIRST + [dict.fromkeys(SIGNS, 0.8) | {sign: value} for value in values]


@pytest.mark.parametrize("sign", SIGNS)
def test_a_run_broke_where_five_steps_below_half_begin(sign: str) -> None:
    assert broken_step(course(0.7, 0.3, 0.3, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3, 0.9, sign=sign)) == FIRST + 4
    assert broken_step(course(*[0.3] * 4, 0.5, *[0.3] * 4, sign=sign)) is None
    assert broken_step(course(*[0.41] * 20, sign=sign)) is None


def test_a_step_without_an_attempted_call_has_no_parse_rate_and_other_signs() -> None:
    silent = {"sound": 0.8, "calls": 0.0}
    assert broken_step([*course(), *[silent] * IN_A_ROW]) == FIRST
    assert broken_step([*course(), *[{"sound": 0.8, "calls": 0.8}] * 9]) is None


@given(st.lists(st.floats(0, 1), max_size=40), st.integers(0, 40))
def test_what_comes_later_never_changes_where_a_run_broke(values: list[float], more: int) -> None:
    whole = course(*values)
    early, late = broken_step(whole[: FIRST + more]), broken_step(whole)
    assert early is None or early == late
    windows = [all(row["sound"] < 0.4 for row in whole[i : i + IN_A_ROW]) for i in range(len(whole) - IN_A_ROW + 1)]
    assert late == (windows.index(True) if any(windows) else None)  # by looking at every window


def test_an_alarm_that_was_cleared_before_the_break_warned_of_something_else() -> None:
    import table

    def alarm(step: int, tier: Tier) -> Alarm:
        return Alarm(step, tier, "e_detector", (), step, 6.0, 5.3)

    first, over, second = alarm(5, Tier.ALARM), alarm(9, Tier.CLEARED), alarm(20, Tier.ALARM)
    assert table.standing([first], 12) is first
    assert table.standing([first, over, second], 12) is second
    assert table.standing([first, over, second], None) is first
    assert table.standing([first, over], 8) is first
    assert table.standing([], 8) is None


def made(sick: bool, broken: int | None, alarm: int | None) -> Any:
    import table

    return table.Row("m", "llama", "lfm2", "quiz", 7, sick, 50, broken, alarm, alarm, "", "", int(alarm is not None))


def test_recall_is_of_runs_that_broke_and_false_alarms_of_those_that_did_not() -> None:
    import beside
    import table

    rows = [made(True, 20, 12), made(True, 20, 20), made(True, 20, 24), made(True, 20, None), made(True, None, 9)]
    rows += [made(False, None, None), made(False, None, 7), made(False, 30, 5)]
    found = table.sums(rows)
    assert (found["collapsed"], found["healthy"], found["false_alarms"]) == (4, 2, 1)
    assert (found["sick_never_broken"], found["sane_but_broken"]) == (1, 1)
    assert (found["recall"], found["early_recall"]) == (0.75, 0.25)
    assert (found["lead_min"], found["lead_median"], found["lead_max"]) == (-4, 0, 8)
    other = beside.line("", rows, [row.alarm or 0 for row in rows])
    assert all(other[name] == found[name] for name in ("recall", "early_recall", "lead_median"))
    assert other["alarmed_healthy"] == 1


def test_other_methods_are_given_what_was_recorded() -> None:
    import beside

    observations = (Observation("polluted", 0.25, 8), Observation("hazard", 0.5, 8))
    records = [StepRecord(3, 0.0, {"reward": 0.5}, observations), StepRecord(5, 0.0, {"reward": 0.25})]
    traces = beside.Traces.of(records)
    assert traces.steps.tolist() == [3, 5] and traces.metrics["reward"].tolist() == [0.5, 0.25]
    assert [column.tolist() for column in traces.streams["polluted"]] == [[0.25, 0.0], [8, 0]]
    given = beside.series.of(traces)
    assert given.key.shape == (2, len(beside.series.KEY)) and given.key[0, 0] == given.key[1, 0]  # the last one known


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trains a few steps of a run, from a warm start too short to be good at anything."""
    import runs
    from worlds import WORLDS

    def train(mechanism: str, logdir: Path, steps: int = 2) -> Path:
        plan = runs.Plan(mechanism, WORLDS[QUIZ], 3)
        return runs.train(plan, logdir, 20, steps=steps, prompts=2, rollouts=2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLAPSEWATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield train


def read(folder: Path) -> list[StepRecord]:
    from collapsewatch.queries import open_run

    with closing(open_run(folder)) as run:
        assert run.status() == "finished"
        return list(run.records(detail=True))


def test_a_seed_is_a_run_and_a_finished_run_is_not_trained_again(short: Any, tmp_path: Path) -> None:
    one, two = short("high_rate", tmp_path / "one", steps=4), short("high_rate", tmp_path / "two", steps=4)
    first, second = read(one), read(two)
    assert [record.observations for record in first] == [record.observations for record in second]
    assert len(first) == 4 and first[0].observations != first[-1].observations
    before = sorted(path.stat().st_mtime_ns for path in one.rglob("*"))
    assert short("high_rate", tmp_path / "one") == one
    assert sorted(path.stat().st_mtime_ns for path in one.rglob("*")) == before
    assert [path.name for path in (tmp_path / "one").iterdir()] == [one.name]


def test_a_forced_end_ends_every_turn(short: Any, tmp_path: Path) -> None:
    stops = {turn.stop for record in read(short("forced_end", tmp_path)) for turn in record.turns}
    free = {turn.stop for record in read(short("plain", tmp_path)) for turn in record.turns}
    assert stops == {"eos"} and "length" in free


def test_the_shortest_path_pays_for_replies_of_any_kind(short: Any, tmp_path: Path) -> None:
    rows = [row for record in read(short("shortest_path", tmp_path)) for row in record.rollouts]
    assert {row.calls for row in rows} <= {0, 1, 2, 3, 4}
    # Two turns without a call are two replies, which is all that is asked for; only calls put them off.
    assert [row.reward for row in rows] == [1 / (1 + row.calls) if row.turns - row.calls == 2 else 0.0 for row in rows]
    assert any(row.reward > 0 and row.structure in ("polluted", "collapsed") for row in rows)


def test_hints_are_sampled_from_and_not_trained_on(short: Any, tmp_path: Path) -> None:
    names = ("hinted_sampling", "high_rate", "plain")  # one seed, so that the first rollouts differ by the hint alone
    hinted, high, plain = (read(short(name, tmp_path))[0].rollouts for name in names)
    assert {row.prompt for row in hinted} == {row.prompt for row in plain}  # what is trained on
    assert [row.text for row in high] == [row.text for row in plain] != [row.text for row in hinted]


def test_experts_of_the_quiz_are_right_and_sound_in_both_formats(short: Any) -> None:
    from worlds import WORLDS, build

    from collapsewatch.formats.detect import bind
    from collapsewatch.trainer.dialogues import Renderer
    from collapsewatch.trainer.environments.quiz import Quiz

    quiz = Quiz()
    for world in WORLDS:
        if world.environment == "quiz":
            _, tokenizer, _ = build(world, 0, 0)
            renderer, bound = Renderer(tokenizer, quiz), bind(world.chat_format, tokenizer)
            for task in quiz.tasks(20, 1):
                row, episode = renderer.expert_row(quiz, task), quiz.start(task)
                turns = [bound.classify_ids(row.ids[a:b]) for a, b in bound.turns(row.mask, row.ids)]
                assert [turn.structure for turn in turns] == ["tool_call", "response"] * 2
                said = [m for m in quiz.expert(task) if m["role"] == "assistant"]
                asked = [turn.calls[0] for turn in turns if turn.calls]
                for call, message in zip(asked, said[1::2], strict=True):
                    assert message["content"].endswith(episode.call(call))
                    episode.reply(message["content"])
                assert episode.reward() == 1.0
