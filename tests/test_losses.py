"""Losses that only scalars tell, live: found once, not in noise, and in time that does not grow with the square."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from collapsewatch.losses import EVERY, FIRST, Losses
from collapsewatch.monitor import Monitor
from collapsewatch.queries import open_run
from collapsewatch.records import Observation, StepRecord
from tests.one_path import assert_one_path


def scalars(seed: int, steps: int = 200, lost_at: int = 1000) -> list[dict[str, float]]:
    """Reward and entropy of a run that learns; from a step on its answers are wrong, in sound form."""
    draw = np.random.default_rng(seed)
    rows = []
    for step in range(1, steps + 1):
        reward = (0.5 + 0.3 * min(step, 80) / 80 if step < lost_at else 0.05) + 0.05 * draw.standard_normal()
        rows.append({"reward": reward, "entropy": 0.5 + 0.05 * draw.standard_normal()})
    return rows


def said(rows: list[dict[str, float]]) -> list[tuple[int, str, str, int]]:
    losses, found = Losses(), []
    for step, row in enumerate(rows, 1):
        losses.add(step, row)
        if (finding := losses.update(step)) is not None:
            found.append((step, finding.kind, str(finding.verdict), finding.onset))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_of_content_is_told_and_noise_is_not(seed: int) -> None:
    assert said(scalars(seed)) == []
    first, *_ = said(scalars(seed, lost_at=120))
    assert 120 < first[0] < 150 and first[1:3] == ("reward_loss", "collapsed") and abs(first[3] - 120) <= 3
    kinds = [row[1:3] for row in said(scalars(seed, lost_at=120))]
    assert len(kinds) == len(set(kinds))


def test_looks_grow_apart_as_the_run_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr("collapsewatch.losses.judge", lambda told: looks.append(len(told["reward"].steps)))
    losses = Losses()
    for step in range(1, 5001):
        losses.add(step, {"reward": 1.0})
        losses.add(step, {"reward": 2.0, "loss": 0.1})  # a second telling of a step changes nothing
        losses.update(step)
    assert looks[:3] == [FIRST, FIRST + EVERY, FIRST + 2 * EVERY] and len(looks) < 200
    assert set(losses.told["reward"].values) == {1.0}


def test_a_monitor_tells_of_it_as_an_event_also_after_a_resume(tmp_path: Path) -> None:
    rows = scalars(0, steps=150, lost_at=100)

    def record(step: int) -> StepRecord:
        return StepRecord(step, float(step), rows[step - 1], (Observation("polluted", 0.01, 16),))

    monitor = Monitor(tmp_path / "run")
    for step in range(1, 104):
        monitor.log(record(step))
        if step == 101:
            monitor.save(tmp_path, step)
            state = monitor.state_dict()
    monitor.close()
    monitor = Monitor(tmp_path / "run")
    monitor.go_on(101, state)
    assert [len(series.steps) for series in monitor.losses.told.values()] == [101, 101]
    for step in range(102, 151):
        monitor.log(record(step))
    monitor.close()
    assert not monitor.faults
    with closing(open_run(tmp_path / "run")) as run:
        found = [(e.step, e.detail) for e in run.events() if e.name == "finding"]
    assert len(found) == 1 and 102 <= found[0][0] < 130
    kind, _, rest = found[0][1].partition(" since step ")
    onset, _, verdict = rest.partition(": ")
    assert (kind, verdict) == ("reward_loss", "collapsed") and abs(int(onset) - 100) <= 3
    assert_one_path(tmp_path / "run")
