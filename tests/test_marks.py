"""Switches told from schedules, and the events that act on detection when a training is resumed."""

from __future__ import annotations

import json
import math
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_scheduler

from collapsewatch.detectors import Detection
from collapsewatch.detectors.baseline import APART
from collapsewatch.detectors.e_detector import BettingEDetector
from collapsewatch.marks import Switches, acting, switched
from collapsewatch.monitor import Monitor, saved_state
from collapsewatch.queries import open_run
from collapsewatch.records import Applied, Event, Observation, StepRecord, Tier
from tests.one_path import assert_one_path


def rates(schedule: str, warmup: int, steps: int = 120) -> list[float]:
    """The learning rates of a real scheduler, as TRL logs them: after each step, that of the next."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-5)
    extra = {"num_cycles": 3} if schedule == "cosine_with_restarts" else {}
    scheduler = get_scheduler(schedule, optimizer, warmup, steps, scheduler_specific_kwargs=extra)
    found = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append(scheduler.get_last_lr()[0])
    return found


def seen(values: list[float], name: str = "learning_rate") -> list[int]:
    switches = Switches()
    return [step for step, value in enumerate(values, 1) if switches.update(step, {name: value})]


@pytest.mark.parametrize("every", [1, 5, 10])
@pytest.mark.parametrize("warmup", [0, 3, 10, 40])
@pytest.mark.parametrize("schedule", ["constant_with_warmup", "linear", "cosine", "polynomial", "inverse_sqrt"])
def test_a_schedule_is_no_switch(schedule: str, warmup: int, every: int) -> None:
    assert seen(rates(schedule, warmup)[every - 1 :: every]) == []


def test_a_rate_off_its_schedule_is_a_switch() -> None:
    assert seen([1e-5] * 20 + [1e-6] * 20) == [21]
    cosine = rates("cosine", 10)
    assert seen(cosine[:50] + [rate / 10 for rate in cosine[50:]]) == [51]
    assert seen(rates("cosine_with_restarts", 0)) == [40, 80]
    assert seen([1e-5, math.nan, 1e-5, 3e-5]) == [4]


def test_any_other_temperature_is_a_switch_and_a_step_is_looked_at_once() -> None:
    assert seen([1.0, 1.0, 0.9, 0.9], "temperature") == [3]
    switches = Switches()
    switches.update(1, {"temperature": 1.0, "reward": 0.3})
    assert switches.update(2, {"reward": 0.1}) == []
    assert switches.update(2, {"temperature": 0.5}) == ["temperature 1 to 0.5"]
    assert switches.update(2, {"temperature": 0.7}) == []


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), max_size=30), st.integers(0, 30))
def test_switches_continue_from_their_state(values: list[float], cut: int) -> None:
    cut = min(cut, len(values))
    head, tail = Switches(), Switches()
    first = [head.update(step, {"learning_rate": v}) for step, v in enumerate(values[:cut], 1)]
    tail.load_state_dict(json.loads(json.dumps(head.state_dict())))
    rest = [tail.update(step, {"learning_rate": v}) for step, v in enumerate(values[cut:], cut + 1)]
    whole = Switches()
    assert first + rest == [whole.update(step, {"learning_rate": v}) for step, v in enumerate(values, 1)]


def test_a_foreign_log_is_marked_by_its_own_learning_rate() -> None:
    records = [StepRecord(step, 0.0, {"learning_rate": 1e-5 if step < 30 else 1e-6}) for step in range(1, 60)]
    assert [(e.step, e.name, e.detail) for e in switched(records)] == [(30, "mark", "learning_rate 1e-05 to 1e-06")]


def event(step: int, name: str, detail: str = "") -> Event:
    return Event(step, 0.0, name, detail)


def test_events_of_steps_that_were_taken_again_do_not_act() -> None:
    first = [event(0, "started"), event(5, "mark", "a"), event(10, "checkpoint"), event(10, "mark", "b")]
    lost = [event(12, "mark", "c")]
    after = [event(11, "mark", "d"), event(20, "finished")]

    def found(resumed: list[Event]) -> list[str]:
        return [e.detail for e in acting([*first, *lost, *resumed, *after]) if e.name == "mark"]

    assert found([]) == ["a", "b", "d", "c"]
    assert found([event(10, "resumed", "record")]) == ["a", "b", "d"]
    assert found([event(10, "resumed", "checkpoint")]) == ["a", "d"]


# baselines


def test_events_in_quick_succession_explain_one_jump() -> None:
    """A stream that grows by 0.05 nat a step alarms, though somebody announces a change every ten steps."""

    def steps_to_alarm(every: int) -> int:
        detector = BettingEDetector()
        for t in range(1, 200):
            y = min(0.02 * math.exp(0.05 * max(0, t - 60)), 0.9)
            held = detector.update(t, [Observation("polluted", y, 16)])
            if held.log_e >= held.log_bound:
                return t - 60
            if t % every == 0:
                detector.mark_event(t, "again")
        return 0

    assert 0 < steps_to_alarm(1000) <= steps_to_alarm(10) < 80
    assert APART > 10


def broken(step: int) -> StepRecord:
    level = 0.02 if step < 40 else 0.6
    return StepRecord(step, float(step), {}, tuple(Observation(s, level, 16) for s in ("polluted", "hazard")))


def test_an_alarm_is_not_forgotten_because_somebody_stepped_in(tmp_path: Path) -> None:
    """While an alarm stands no event starts a baseline again: twenty applications later it still stands."""
    monitor = Monitor(tmp_path / "run")
    for step in range(1, 141):
        monitor.log(broken(step))
        if monitor.state != "ok" and step % 5 == 0:
            monitor.log_applied(Applied(step, "erroneous", "triggered", 40, "applied"))
            monitor.mark("help")
    assert monitor.state == "hold" and monitor.standing is not None and monitor.standing.step < 45
    monitor.close()
    with closing(open_run(tmp_path / "run")) as run:
        assert {a.tier for a in run.alarms()} >= {Tier.ALARM, Tier.HOLD}
        assert not {a.tier for a in run.alarms()} & {Tier.CLEARED, Tier.REBASELINED}
        assert {e.detail for e in run.events() if e.name == "mark"} == {"help", "intervention erroneous"}
    assert assert_one_path(tmp_path / "run") > 1


def test_interventions_without_an_alarm_are_marked_where_the_series_begins(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "run")
    for step in range(1, 150):
        monitor.log(StepRecord(step, float(step), {}, (Observation("polluted", 0.01, 16),)))
        if (20 <= step <= 80 and step % 10 == 0) or step == 130:
            monitor.log_applied(Applied(step, "expert", "interleaved", 0, "applied"))
        monitor.log_metrics(step, {"learning_rate": 1e-5 if step < 100 else 1e-4})
    monitor.close()
    with closing(open_run(tmp_path / "run")) as run:
        marks = [(e.step, e.detail) for e in run.events() if e.name == "mark"]
    assert marks == [(20, "intervention expert"), (100, "learning_rate 1e-05 to 0.0001"), (130, "intervention expert")]


# checkpoints


def noisy(seed: int, steps: int = 120, breaks_at: int = 70) -> list[StepRecord]:
    draw = torch.Generator().manual_seed(seed)
    found = []
    for step in range(1, steps + 1):
        level = 0.02 if step < breaks_at else 0.3
        values = [level * math.exp(0.5 * float(torch.randn((), generator=draw))) for _ in range(3)]
        names = ("hazard", "hazard:<tool_call>", "polluted")
        observations = tuple(Observation(n, min(v, 1.0), 8) for n, v in zip(names, values, strict=True))
        found.append(StepRecord(step, float(step), {"learning_rate": 1e-5 if step < 30 else 1e-6}, observations))
    return found


@pytest.mark.parametrize("cut", [20, 50, 75, 90])
def test_a_training_resumed_from_its_checkpoint_goes_on_bit_for_bit(tmp_path: Path, cut: int) -> None:
    records = noisy(3)
    whole = Monitor(tmp_path / "whole")
    expected = [alarm for record in records for alarm in whole.log(record)]
    whole.close()
    assert expected
    first = Monitor(tmp_path / "run")
    for record in records[: cut + 7]:
        first.log(record)
        if record.step == cut:
            first.save(tmp_path)
    first.mark("of a step that is taken again")
    first.close()
    state = saved_state(tmp_path)
    second = Monitor(tmp_path / "run")
    standing = second.go_on(cut, state)
    begun = [a for a in expected if a.tier is Tier.ALARM and a.step <= cut]
    assert standing == (begun[-1] if begun else None)
    assert [a for record in records[cut:] for a in second.log(record)] == [a for a in expected if a.step > cut]
    assert second.state_dict() == whole.state_dict()
    second.close()
    assert not second.faults
    assert assert_one_path(tmp_path / "run") >= len(expected)


def test_a_rollback_takes_detection_back_and_counts_on(tmp_path: Path) -> None:
    """Weights of step 60 at step 80: detection forgets the collapse, judges what comes, and so does a replay."""
    records = noisy(5, steps=160)
    monitor = Monitor(tmp_path / "run")
    for record in records[:80]:
        monitor.log(record)
        if record.step == 60:
            monitor.save(tmp_path)
    assert monitor.state != "ok"
    assert monitor.go_on(80, saved_state(tmp_path)) is None and monitor.state == "ok"
    back = Detection()
    back.load_state_dict(json.loads((tmp_path / "collapsewatch.json").read_text())["detection"])
    healthy = [StepRecord(r.step + 80, r.time, {}, r.observations) for r in records[:60]]
    for record in healthy:
        assert monitor.log(record) == back.update(record)[0]
    monitor.close()
    with closing(open_run(tmp_path / "run")) as run:
        rolled = [(e.step, e.detail) for e in run.events() if e.name == "rolled_back"]
    assert rolled == [(80, "60")]
    assert assert_one_path(tmp_path / "run") >= 1


@pytest.mark.parametrize(
    "text", ["{}", '{"detection": 3}', '{"detection": {"detectors": {}}, "switches": {}}', "[", "[1]"]
)
def test_a_state_that_is_none_changes_nothing(tmp_path: Path, text: str) -> None:
    monitor = Monitor(tmp_path / "run")
    for record in noisy(1, steps=20):
        monitor.log(record)
    before = monitor.state_dict()
    (tmp_path / "collapsewatch.json").write_text(text)
    with pytest.raises(ValueError):
        monitor.go_on(20, saved_state(tmp_path))
    assert monitor.state_dict() == before
    monitor.close()
