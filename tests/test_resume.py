"""A training that is killed and resumed is the training that nobody killed: same rows, same weights."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from collapsewatch.queries import open_run
from collapsewatch.trainer.config import ConfigError, from_mapping, load_config
from collapsewatch.trainer.resuming import whole_checkpoints
from collapsewatch.trainer.train import train

pytestmark = pytest.mark.slow
STEPS, KILLED = 8, 6
KNOBS: dict[str, Any] = {"steps": STEPS, "seed": 3, "warm_start": 30, "prompts": 3, "rollouts": 4, "max_turns": 3}
KNOBS |= {"max_turn_tokens": 24, "learning_rate": 2e-3, "probe_every": 4, "probe_tasks": 2, "save_every": 2}
KNOBS |= {"save_model": True, "sft_updates": 1}
ARMS: dict[str, dict[str, Any]] = {
    "erroneous": {"intervention": "erroneous", "schedule": "interleaved", "schedule_knobs": {"segments": [3, 2, 3]}},
    "off_policy": {"intervention": "off_policy", "micro_batches": 2, "num_iterations": 2},
}
WAIT = {"erroneous": "2", "off_policy": "0"}
"""Seconds before the kill: rows of a step that no checkpoint holds have reached the journal, or nothing new has."""
CHILD = """
import json, os, signal, sys, time
from collapsewatch.trainer.config import from_mapping
from collapsewatch.trainer.train import train
knobs, killed = json.loads(sys.argv[1]), int(sys.argv[2])
def die(record, alarms, applied):
    if record.step == killed:
        time.sleep(float(sys.argv[3]))
        os.kill(os.getpid(), signal.SIGKILL)
train(from_mapping(knobs, "child"), die)
"""


@pytest.fixture(scope="module", params=ARMS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a run nobody killed, and of one that was killed behind a checkpoint and resumed."""
    logdir = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLAPSEWATCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        knobs = {**KNOBS, **ARMS[request.param], "logdir": str(logdir)}
        whole = train(from_mapping({**knobs, "name": "whole"}, "test"))
        killed = {**knobs, "name": "killed"}
        child = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(killed), str(KILLED + 1), WAIT[request.param]], check=False
        )
        assert child.returncode == -signal.SIGKILL
        assert max(whole_checkpoints(logdir / "killed", True)) == KILLED
        return whole, train(from_mapping(killed, "test"), resume=True)


def tables(folder: Path) -> dict[str, list[Any]]:
    """What a run says of its course, without the clock."""
    apart = ("step_time", "probe/max_error")  # the clock, and a check that each process makes of its first step
    with closing(open_run(folder)) as run:
        assert run.status() == "finished"
        records = list(run.records(detail=True))
        metrics = [{k: repr(v) for k, v in sorted(r.metrics.items()) if k not in apart} for r in records]
        return {
            "steps": [r.step for r in records],
            "observations": [r.observations for r in records],
            "metrics": metrics,
            "control": [repr(r.control) for r in records],
            "turns": [r.turns for r in records],
            "rollouts": [r.rollouts for r in records],
            "alarms": run.alarms(),
            "applied": run.applied(),
        }


def test_the_rows_are_those_of_the_run_that_nobody_killed(both: tuple[Path, Path]) -> None:
    whole, resumed = map(tables, both)
    assert whole["steps"] == list(range(1, STEPS + 1))  # and no step twice
    assert whole["applied"] and whole["observations"][0] != whole["observations"][-1]
    for name, rows in whole.items():
        assert resumed[name] == rows, name


def test_the_weights_are_those_of_the_run_that_nobody_killed(both: tuple[Path, Path]) -> None:
    whole, resumed = (load_file(folder / "model" / "model.safetensors") for folder in both)
    assert whole.keys() == resumed.keys() and all(whole[name].equal(resumed[name]) for name in whole)


def test_a_run_that_cannot_be_resumed_says_why(both: tuple[Path, Path]) -> None:
    knobs = {**KNOBS, "logdir": str(both[0].parent), "name": "whole"}

    def refused(told: str, **changes: Any) -> None:
        with pytest.raises(ConfigError, match=f"resume: got .*{told}"):
            train(from_mapping({**knobs, **changes}, "test"), resume=True)

    refused("no run in", name="never")
    refused("with which the run was begun", learning_rate=1.0)
    with pytest.raises(ConfigError, match="resume: got 'whole', which is finished"):
        train(load_config(both[0] / "config.toml"), resume=True)
