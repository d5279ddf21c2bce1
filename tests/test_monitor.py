"""The monitor: live is replay, state survives a checkpoint, and nothing it does can raise."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsewatch.detectors import Detection, build
from collapsewatch.monitor import Monitor
from collapsewatch.queries import open_run
from collapsewatch.records import Alarm, Applied, Observation, StepRecord, Tier
from collapsewatch.store import StoreError

FA_PER_10K = 20.0


pytestmark = pytest.mark.usefixtures("one_path")


def run_of(seed: int, badness: float = 0.7, steps: int = 60, breaks_at: int = 40) -> list[StepRecord]:
    """Noisy healthy steps, then control tokens where none may stand; some streams come and go."""
    draw = np.random.default_rng(seed)
    records = []
    for step in range(1, steps + 1):
        broken = step >= breaks_at
        levels = {
            "hazard": badness if broken else 0.02,
            "hazard:</tool_call>@start": badness if broken else 0.004,
            "hazard@start": badness if broken else 0.01,
            "polluted": badness if broken else 0.03,
            "parse_failure": badness if broken else 0.02,
            "no_end": 0.05,
        }
        observations = tuple(
            Observation(name, min(level * math.exp(draw.normal(0, 0.3)), 1.0), 8, level / 10)
            for name, level in levels.items()
            if draw.random() < 0.9
        )
        records.append(StepRecord(step, 100.0 + step, {"reward": draw.random()}, observations))
    return records


def logged(run_dir: Path, records: list[StepRecord]) -> list[Alarm]:
    monitor = Monitor(run_dir, fa_per_10k=FA_PER_10K, max_steps=len(records))
    alarms = [alarm for record in records for alarm in monitor.log(record)]
    monitor.close()
    assert not monitor.faults
    return alarms


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_live_alarms_are_those_of_a_replay_bit_for_bit(tmp_path: Path, seed: int) -> None:
    live = logged(tmp_path / "run", run_of(seed))
    assert any(alarm.tier is Tier.ALARM and alarm.step >= 40 for alarm in live)
    assert not any(alarm.tier is Tier.ALARM and alarm.step < 40 for alarm in live)
    run = open_run(tmp_path / "run")
    detection = Detection(build(fa_per_10k=FA_PER_10K))
    replayed, evidence = [], []
    for record in run.records():
        alarms, held = detection.update(record)
        replayed += alarms
        evidence += [(e.step, e.detector, e.log_e, e.log_bound) for e in held]
    assert replayed == live == run.alarms()
    stored = run.query("SELECT step, detector, log_e, log_bound FROM evidence WHERE stream = ''").rows
    assert len(stored) == len(evidence) and set(stored) == set(evidence)
    assert run.status() == "finished" and json.loads(run.events()[0].detail) == {"max_steps": 60, "fa_per_10k": 20.0}


@pytest.mark.parametrize("cut", [25, 30, 45])
def test_a_resumed_run_is_judged_as_if_it_had_never_stopped(tmp_path: Path, cut: int) -> None:
    records = run_of(1)
    for name, upto in (("whole", 60), ("cut", min(cut + 5, 60))):  # the first session went beyond its checkpoint
        monitor = Monitor(tmp_path / name, fa_per_10k=FA_PER_10K)
        for record in records[:upto]:
            monitor.log(record)
            if record.step == 20:
                monitor.mark("lr")
        monitor.close()
    whole = open_run(tmp_path / "whole")
    monitor = Monitor(tmp_path / "cut", fa_per_10k=FA_PER_10K)
    standing = monitor.go_on(cut)
    raised = [alarm for alarm in whole.alarms() if alarm.tier is Tier.ALARM and alarm.step <= cut]
    assert standing == (raised[-1] if raised else None) and bool(raised) == (cut == 45)
    alarms = [alarm for record in records[cut:] for alarm in monitor.log(record)]
    assert alarms == [alarm for alarm in whole.alarms() if alarm.step > cut]
    monitor.close()


@pytest.mark.parametrize("cut", [1, 25, 41, 45])
def test_state_survives_a_checkpoint(tmp_path: Path, cut: int) -> None:
    records = run_of(1)
    whole = logged(tmp_path / "whole", records)
    first = Monitor(tmp_path / "first", fa_per_10k=FA_PER_10K)
    alarms = [alarm for record in records[:cut] for alarm in first.log(record)]
    state = json.loads(json.dumps(first.state_dict()))
    second = Monitor(tmp_path / "second", fa_per_10k=FA_PER_10K)
    second.load_state_dict(state)
    assert second.state == first.state and second.state_dict() == first.state_dict()
    alarms += [alarm for record in records[cut:] for alarm in second.log(record)]
    for monitor in (first, second):
        monitor.close()
        assert not monitor.faults
    assert alarms == whole


ANY = st.floats(allow_nan=True, allow_infinity=True)
STREAMS = st.sampled_from(["hazard", "hazard:<tool_call>@text", "polluted", "nonesuch", "", "no_end", "\ud800"])
OBSERVATIONS = st.lists(st.builds(Observation, STREAMS, ANY, st.integers(-1, 9), ANY), max_size=6).map(tuple)
RECORDS = st.builds(StepRecord, st.integers(-5, 10**20), ANY, st.dictionaries(st.text(max_size=3), ANY), OBSERVATIONS)


@pytest.fixture(scope="module")
def battered(tmp_path_factory: pytest.TempPathFactory) -> Any:
    monitor = Monitor(tmp_path_factory.mktemp("battered") / "run")
    yield monitor
    monitor.close()


@settings(max_examples=80, deadline=None)
@given(record=RECORDS)
def test_log_takes_anything_and_never_raises(battered: Monitor, record: StepRecord) -> None:
    assert isinstance(battered.log(record), list)
    battered.log_metrics(record.step, record.metrics)
    battered.mark("curriculum")
    assert battered.state in ("ok", "alarm", "hold")


def test_a_fault_is_counted_logged_once_and_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitor = Monitor(tmp_path / "run")
    for _ in range(3):
        with monitor.guard("tea"):
            raise ZeroDivisionError("no cups")
    with pytest.raises(KeyboardInterrupt), monitor.guard("tea"):
        raise KeyboardInterrupt
    monitor.log_applied(Applied(2**70, "x", "interleaved", 0, "applied"))  # no column holds that step
    monitor.close("failed")
    monitor.close("finished")  # too late
    assert monitor.faults == {"tea": 3, "store": 1}
    assert sum("tea failed" in message for message in caplog.messages) == 1
    events = [(event.name, event.detail) for event in open_run(tmp_path / "run").events()]
    assert events == [
        ("started", '{"max_steps": null, "fa_per_10k": 10.0}'),
        ("fault", "tea: ZeroDivisionError: no cups"),
        ("mark", "intervention x"),
        ("failed", "faults: store 1, tea 3"),
    ]


def test_a_store_that_fails_altogether_raises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError("disk full")

    monitor = Monitor(tmp_path / "run", fa_per_10k=FA_PER_10K)
    with monkeypatch.context() as patch:
        patch.setattr(monitor.store, "_put", full)
        alarms = [alarm for record in run_of(0) for alarm in monitor.log(record)]
        monitor.close()
    assert monitor.faults["store"] >= 60
    # Judging goes on without it.
    assert alarms[0].tier is Tier.ALARM and alarms[0].step >= 40


def test_a_run_that_was_removed_says_so_at_its_end(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "run")
    assert monitor.store.flush(timeout=30)
    shutil.rmtree(tmp_path / "run")
    monitor.event("mark")
    assert monitor.store.flush(timeout=30)
    monitor.close()
    events = [(event.name, event.detail.split(" ")[:2]) for event in open_run(tmp_path / "run").events()]
    assert events == [("mark", [""]), ("finished", ["faults:", "store"])]


def test_a_mark_starts_baselines_again_and_is_kept(tmp_path: Path) -> None:
    records = run_of(0, badness=0.15)
    unmarked = logged(tmp_path / "unmarked", records)
    monitor = Monitor(tmp_path / "run", fa_per_10k=FA_PER_10K)
    alarms = []
    for record in records:
        if record.step == 40:
            monitor.mark("new tools")
        alarms += monitor.log(record)
    monitor.close()
    # The new baselines may lie above the old ones, but not without limit: the alarm comes later.
    first, later = (next(a.step for a in rows if a.tier is Tier.ALARM) for rows in (unmarked, alarms))
    assert 40 <= first < later
    marks = [(event.step, event.detail) for event in open_run(tmp_path / "run").events() if event.name == "mark"]
    assert marks == [(39, "new tools")]


def test_what_is_misconfigured_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fa_per_10k"):
        Monitor(tmp_path / "budget", fa_per_10k=0.0)
    monitor = Monitor(tmp_path / "run", config="steps = 3\n")
    with pytest.raises(StoreError, match="expected a writable folder"):
        Monitor(tmp_path / "run")
    monitor.close()
    assert (tmp_path / "run" / "config.toml").read_text() == "steps = 3\n"
