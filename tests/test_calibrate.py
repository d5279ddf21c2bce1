"""Calibration: false alarms counted as a replay raises them, exact intervals, and what the curve says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2
from typer.testing import CliRunner

from collapsewatch.calibrate import BUDGETS, CalibrateError, advice, calibrate, interval
from collapsewatch.cli import app
from collapsewatch.detectors import Detection, build
from collapsewatch.monitor import Monitor
from collapsewatch.records import Observation, StepRecord, Tier


def healthy(run_dir: Path, seed: int, level: float = 0.005, shift: float = 0.0, steps: int = 200) -> list[StepRecord]:
    """A run whose hazard is noise about a level; with `shift` it rises by so many nat in the middle and stays."""
    draw = np.random.default_rng(seed)
    records = []
    for step in range(1, steps + 1):
        mean = level * math.exp(shift if step > steps // 2 else 0.0)
        hazard = mean * draw.gamma(2.0, 0.5)
        observations = (Observation("hazard", hazard, 16), Observation("polluted", draw.binomial(128, 0.01) / 128, 16))
        records.append(StepRecord(step, float(step), {"reward": draw.random()}, observations))
    monitor = Monitor(run_dir, fa_per_10k=1.0)
    for record in records:
        monitor.log(record)
    monitor.close()
    return records


@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_the_interval_is_garwoods(count: int) -> None:
    low, high = interval(count, 2_000)
    assert high == pytest.approx(chi2.ppf(0.975, 2 * count + 2) / 2 * 5)
    assert low == pytest.approx(chi2.ppf(0.025, 2 * count) / 2 * 5 if count else 0.0)


def test_every_budget_counts_what_a_replay_raises(tmp_path: Path) -> None:
    runs = [healthy(tmp_path / f"run{seed}", seed, shift=2.5) for seed in range(4)]
    found = calibrate(tmp_path)
    assert found.runs == 4 and [b.fa_per_10k for b in found.bounds] == list(BUDGETS)
    for bound in found.bounds:
        alarms = steps = 0
        for records in runs:
            detection = Detection(build(["e_detector"], bound.fa_per_10k))
            for record in records:
                steps += detection.state == "ok"
                alarms += sum(a.tier is Tier.ALARM for a in detection.update(record)[0])
        assert (bound.alarms, bound.steps) == (alarms, steps)
        assert bound.low <= bound.per_10k <= bound.high


def test_shifts_beyond_tolerance_make_a_flat_curve(tmp_path: Path) -> None:
    for seed in range(4):
        healthy(tmp_path / f"run{seed}", seed, shift=2.5)
    found = calibrate(tmp_path)
    assert found.curve == "flat" and all(b.alarms >= 4 and b.others >= 4 for b in found.bounds)
    assert found.culprits[0].stream == "hazard"
    assert found.culprits[0].reached > found.culprits[0].tolerated  # no noise: the mean lies beyond it for long
    assert any("flat" in line for line in advice(found)) and any("broken" in line for line in advice(found))


def test_noise_makes_a_falling_curve_and_calm_none(tmp_path: Path) -> None:
    for seed in range(3):
        healthy(tmp_path / "calm" / f"run{seed}", seed)
        healthy(tmp_path / "loud" / f"run{seed}", seed, level=0.0125)
    calm, loud = calibrate(tmp_path / "calm", [1.0, 50.0]), calibrate(tmp_path / "loud", [1.0, 5000.0])
    assert calm.curve == "none" and not calm.culprits and calm.bounds[0].high > 0
    assert loud.curve == "falling" and loud.bounds[0].alarms < loud.bounds[1].alarms


def test_what_is_not_healthy_or_not_readable_is_left_out_and_said(tmp_path: Path) -> None:
    healthy(tmp_path / "fine", 0)
    monitor = Monitor(tmp_path / "lost")
    for step in range(1, 101):
        level = 0.01 if step < 50 else 0.9
        metrics = {"reward": 1.0 - level}
        monitor.log(StepRecord(step, 0.0, metrics, (Observation("polluted", level, 16),)))
    monitor.close()
    (tmp_path / "torn.json").write_text('{"log_history": [')
    done = CliRunner().invoke(app, ["calibrate", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert said["runs"] == 1 and said["bounds"][0]["steps"] == 200
    assert {name: why.split()[0] for name, why in said["left_out"]}["lost"] == "collapsed,"
    text = CliRunner().invoke(app, ["calibrate", str(tmp_path)]).output
    assert "1 healthy runs, 200 steps" in text and "left out: lost: collapsed" in text


def test_nothing_to_calibrate_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CalibrateError, match="no such path"):
        calibrate(tmp_path / "absent")
    with pytest.raises(CalibrateError, match="no healthy run"):
        calibrate(tmp_path)
