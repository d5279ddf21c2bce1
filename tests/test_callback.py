"""`CollapseCallback` in plain TRL scripts: what it stores, and that it changes nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM, Trainer, TrainerCallback
from trl import GRPOTrainer

from collapsewatch.callback import CollapseCallback
from collapsewatch.detectors import Detection, build
from collapsewatch.queries import open_run
from collapsewatch.report import analyze
from collapsewatch.store import StoreError
from tests.trl_training import PROMPTS, checksum, train

pytestmark = pytest.mark.usefixtures("one_path")


def weights(trainer: GRPOTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory: pytest.TempPathFactory, model_path: Path, tokenizer: Any) -> dict[str, torch.Tensor]:
    """The weights after a run without us; they differ from those it began with."""
    trained = weights(train(tmp_path_factory.mktemp("unwatched"), model_path, tokenizer))
    start = Qwen2ForCausalLM.from_pretrained(model_path).state_dict()
    assert any(not torch.equal(value, trained[name]) for name, value in start.items())
    return trained


def test_the_weights_are_those_of_the_unwatched_run(
    tmp_path: Path, model_path: Path, tokenizer: Any, unwatched: dict[str, torch.Tensor]
) -> None:
    callback = CollapseCallback(tmp_path, "run")
    trainer = train(tmp_path, model_path, tokenizer, callback)
    assert_same(weights(trainer), unwatched)
    assert callback.monitor is not None and not callback.monitor.faults
    # Nothing of ours is left on the trainer or the model.
    assert not {"compute_loss", "_calculate_rewards", "_generate_and_score_completions"} & vars(trainer).keys()
    assert not any(module._forward_hooks for module in trainer.model.modules())


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 4},
        {"steps_per_generation": 2, "max_steps": 4, "beta": 0.1},
        {"steps_per_generation": 1, "gradient_accumulation_steps": 3},
        {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8},
        {"loss_type": "grpo", "temperature": 0.7},
        {"loss_type": "bnpo", "gradient_checkpointing": True},
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
    ],
    ids=lambda settings: " ".join(f"{k}={v}" for k, v in settings.items()),
)
def test_every_row_of_the_store_is_one_rollout(
    tmp_path: Path, model_path: Path, tokenizer: Any, settings: dict[str, Any]
) -> None:
    callback = CollapseCallback(tmp_path, "run", keep_text=99)
    trainer = train(tmp_path, model_path, tokenizer, callback, **settings)
    assert callback.monitor is not None and not callback.monitor.faults
    run = open_run(tmp_path / "run")
    records = list(run.records(detail=True))
    assert run.status() == "finished" and [record.step for record in records] == list(range(1, len(records) + 1))
    assert len(records) == trainer.state.global_step
    groups: dict[int, dict[int, Any]] = {}
    for record in records:
        assert len(record.rollouts) == 8 * settings.get("gradient_accumulation_steps", 1)
        assert record.control and {"hazard", "hazard@start", "polluted"} <= {o.stream for o in record.observations}
        assert {"reward", "loss", "grad_norm"} <= record.metrics.keys()
        assert record.metrics["reward"] == pytest.approx(np.mean([row.reward for row in record.rollouts]))
        for row in record.rollouts:
            ids = tokenizer.encode(row.text, add_special_tokens=False)
            assert len(ids) == row.tokens > 0
            assert row.reward == np.float32(checksum([ids])[0])
            assert row.prompt in PROMPTS
            groups.setdefault(row.group, {})[row.rollout] = row
    for group in groups.values():
        assert len(group) == 4 and len({row.prompt for row in group.values()}) == 1
        reward = np.array([row.reward for row in group.values()])
        scale = 1.0 if settings.get("scale_rewards") == "none" else reward.std(ddof=1) + 1e-4
        advantage = [row.advantage for row in group.values()]
        np.testing.assert_allclose(advantage, (reward - reward.mean()) / scale, rtol=1e-4, atol=1e-5)
    assert records[0].metrics["probe/max_error"] < 1e-4


def test_every_metric_of_ours_is_documented(tmp_path: Path, model_path: Path, tokenizer: Any) -> None:
    callback = CollapseCallback(tmp_path, "run")
    trainer = train(tmp_path, model_path, tokenizer, callback)
    ours = {name for record in open_run(tmp_path / "run").records() for name in record.metrics}
    ours -= {name for row in trainer.state.log_history for name in row}
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.M))))
    tokens = [name for name in ours if name.startswith("logit_pressure/")]
    assert len(tokens) == 2 * 9 and {name.rpartition("/<")[0] + "/TOKEN" for name in tokens} == {
        "logit_pressure/self/TOKEN",
        "logit_pressure/other/TOKEN",
    }
    assert ours - set(tokens) <= listed and {"sampling/altered", "turns/void", "entropy/control"} <= ours


def test_rows_of_one_generation_are_seen_again_in_the_next_iteration(
    tmp_path: Path, model_path: Path, tokenizer: Any
) -> None:
    train(tmp_path, model_path, tokenizer, CollapseCallback(tmp_path, "run"), num_iterations=2, max_steps=4)
    numbers = [sorted(row.rollout for row in r.rollouts) for r in open_run(tmp_path / "run").records(detail=True)]
    assert numbers == [[*range(8)], [*range(8)], [*range(8, 16)], [*range(8, 16)]]


def test_a_resumed_training_goes_on_in_its_record(tmp_path: Path, model_path: Path, tokenizer: Any) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    train(tmp_path, model_path, tokenizer, CollapseCallback(tmp_path, "run"), max_steps=3, **settings)
    shutil.rmtree(tmp_path / "out" / "checkpoint-3")  # as if killed after step 3
    callback = CollapseCallback(tmp_path, "run")
    train(tmp_path, model_path, tokenizer, callback, max_steps=5, resume=True, **settings)
    assert callback.monitor is not None and not callback.monitor.faults
    run = open_run(tmp_path / "run")
    records = list(run.records())
    assert [record.step for record in records] == [1, 2, 3, 4, 5] and run.status() == "finished"
    assert run.query("SELECT count(*) FROM steps").rows == [(6,)]  # step 3 twice
    detection = Detection(build())
    for record in records:
        detection.update(record)
    assert callback.monitor.detection.state_dict() == detection.state_dict()
    said = [(e.step, e.name, e.detail) for e in run.events() if e.name in ("checkpoint", "resumed")]
    again = [(4, "checkpoint", ""), (5, "checkpoint", "")]
    assert said == [(2, "checkpoint", ""), (3, "checkpoint", ""), (2, "resumed", "checkpoint"), *again]


def test_a_checkpoint_with_a_broken_state_is_resumed_from_the_record(
    tmp_path: Path, model_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    train(tmp_path, model_path, tokenizer, CollapseCallback(tmp_path, "run"), max_steps=2, **settings)
    (tmp_path / "out" / "checkpoint-2" / "collapsewatch.json").write_text("[")
    callback = CollapseCallback(tmp_path, "run")
    train(tmp_path, model_path, tokenizer, callback, max_steps=3, resume=True, **settings)
    assert callback.monitor is not None and not callback.monitor.faults
    assert "checkpoint-2 is left out" in caplog.text
    assert ("resumed", "record") in [(e.name, e.detail) for e in open_run(tmp_path / "run").events()]


def test_what_is_switched_or_announced_is_marked(tmp_path: Path, model_path: Path, tokenizer: Any) -> None:
    callback = CollapseCallback(tmp_path, "run")

    class Curriculum(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                callback.mark("curriculum: longer answers")
                callback._trainer.max_completion_length = 12

    settings = {"max_steps": 4, "lr_scheduler_type": "constant"}
    train(tmp_path, model_path, tokenizer, callback, Curriculum(), **settings)
    marks = [(e.step, e.detail) for e in open_run(tmp_path / "run").events() if e.name == "mark"]
    assert marks == [(2, "curriculum: longer answers"), (3, "max_completion_length 16 to 12")]


def test_one_callback_watches_one_training_after_another(tmp_path: Path, model_path: Path, tokenizer: Any) -> None:
    callback = CollapseCallback(tmp_path, "one")
    with pytest.raises(RuntimeError, match="torn"):  # caught by the user, who tries again
        train(tmp_path, model_path, tokenizer, callback, reward=raising("reward"))
    callback._name = "two"
    trainer = train(tmp_path, model_path, tokenizer, callback, max_steps=8)
    assert [open_run(tmp_path / name).status() for name in ("one", "two")] == ["interrupted", "finished"]
    assert open_run(tmp_path / "two").last_step() == trainer.state.global_step == 8
    assert len(callback._ledger._known) == 24  # this generation and two more, however many there were


def test_expected_and_sampled_emissions_agree(tmp_path: Path, model_path: Path, tokenizer: Any) -> None:
    settings = {"per_device_train_batch_size": 64, "num_generations": 16, "temperature": 0.7, "max_steps": 5}
    train(tmp_path, model_path, tokenizer, CollapseCallback(tmp_path, "run"), **settings)
    expected: dict[str, float] = {}
    sampled: dict[str, int] = {}
    for record in open_run(tmp_path / "run").records(detail=True):
        for row in record.control:
            expected[row.token] = expected.get(row.token, 0.0) + row.expected
            sampled[row.token] = sampled.get(row.token, 0) + row.sampled
    assert max(expected.values()) > 100
    for token, mean in expected.items():  # a sum of Bernoulli draws: its variance is at most its mean
        assert abs(sampled[token] - mean) < 5 * max(mean, 1.0) ** 0.5, (token, sampled[token], mean)


def test_truncated_rows_that_trl_masks_are_still_judged(tmp_path: Path, model_path: Path, tokenizer: Any) -> None:
    settings = {"mask_truncated_completions": True, "max_completion_length": 4}
    train(tmp_path, model_path, tokenizer, CollapseCallback(tmp_path, "run"), **settings)
    for record in open_run(tmp_path / "run").records(detail=True):
        assert all(row.turns > 0 and row.tokens > 0 for row in record.rollouts)
        assert record.metrics["completions/clipped_ratio"] > 0.5
        assert {turn.stop for turn in record.turns} <= {"eos", "length"}
        # What nobody scored has an unknown hazard: where all rows ran on, there is no such stream.
        scored = [stream.stream for stream in record.observations if stream.stream == "hazard"]
        assert len(scored) == (record.metrics["completions/clipped_ratio"] < 1)


def raising(stage: str) -> Any:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"torn: {stage}")

    return broken


@pytest.mark.parametrize(
    ("target", "stage"),
    [
        ("collapsewatch.probe.ControlProbe._from_hidden", "probe"),
        ("collapsewatch.steps.measure_rank", "measure"),
        ("collapsewatch.steps.combine", "measure"),
        ("collapsewatch.views.ViewKeeper.take", "views"),
        ("collapsewatch.steps.complaints", "views"),
        ("collapsewatch.store.Store.log_views", "store"),
        ("collapsewatch.ledger.Ledger.take_sample", "generate_single_turn"),
        ("collapsewatch.formats.bound.BoundFormat.classify_ids", "measure"),
        ("collapsewatch.ledger.Ledger.take_rewards", "calculate_rewards"),
        ("collapsewatch.store.Store.log_step", "store"),
        ("collapsewatch.detectors.Detection.update", "detection"),
        ("on_record", "on_record"),
    ],
)
def test_a_torn_monitor_leaves_the_training_alone(
    tmp_path: Path,
    model_path: Path,
    tokenizer: Any,
    unwatched: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    stage: str,
) -> None:
    on_record = raising(stage) if target == "on_record" else None
    if on_record is None:
        monkeypatch.setattr(target, raising(stage))
    callback = CollapseCallback(tmp_path, "run", on_record=on_record)
    trainer = train(tmp_path, model_path, tokenizer, callback)
    assert trainer.state.global_step == 2
    assert_same(weights(trainer), unwatched)
    assert callback.monitor is not None and callback.monitor.faults[stage] >= 2
    events = open_run(tmp_path / "run").events()
    fault = next(event.detail for event in events if event.name == "fault")
    assert fault.startswith(f"{stage}: RuntimeError: torn")
    assert events[-1].name == "finished" and stage in events[-1].detail
    monkeypatch.undo()
    (report,) = analyze(tmp_path / "run")
    assert any(text.startswith(f"fault: {stage}: RuntimeError: torn") for _, text in report.notices)


def test_without_a_probe_the_structure_is_still_watched(
    tmp_path: Path, model_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collapsewatch.probe.ControlProbe._from_hidden", raising("probe"))
    train(tmp_path, model_path, tokenizer, CollapseCallback(tmp_path, "run"))
    for record in open_run(tmp_path / "run").records(detail=True):
        streams = {o.stream for o in record.observations}
        assert {"polluted", "no_call"} <= streams and not any(s.startswith("hazard") for s in streams)
        assert len(record.rollouts) == 8 and not record.control and "entropy" not in record.metrics


def test_where_zero_3_partitions_the_head_the_structure_is_still_watched(
    tmp_path: Path, model_path: Path, tokenizer: Any
) -> None:
    class Partition(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            model.get_output_embeddings().weight.ds_id = 0  # DeepSpeed's mark on a parameter that it partitions

    callback = CollapseCallback(tmp_path, "run")
    train(tmp_path, model_path, tokenizer, Partition(), callback)
    assert callback.monitor is not None and not callback.monitor.faults
    run = open_run(tmp_path / "run")
    assert next(e.detail for e in run.events() if e.name == "notice").startswith("probe: got ZeRO-3")
    for record in run.records(detail=True):
        assert "polluted" in {o.stream for o in record.observations} and not record.control


SCRIPT = """
import sys, os, signal
sys.path.insert(0, {tests!r})
from pathlib import Path
from transformers import PreTrainedTokenizerFast
import trl_training as t
from collapsewatch.callback import CollapseCallback

folder, model_path, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
calls = 0

def reward(completion_ids, **_):
    global calls
    calls += 1
    if calls == 4 and how == "ctrl_c":
        raise KeyboardInterrupt
    if calls == 4 and how == "error":
        raise ZeroDivisionError("ordinary")
    if calls == 4 and how == "kill":
        callback.monitor.store.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return t.checksum(completion_ids)

callback = CollapseCallback(folder, "run")
t.train(folder, model_path, PreTrainedTokenizerFast.from_pretrained(model_path), callback, reward=reward, max_steps=9)
"""


@pytest.mark.parametrize(("how", "status"), [("ctrl_c", "interrupted"), ("error", "failed"), ("kill", "stopped")])
def test_an_aborted_run_says_so_and_keeps_its_steps(tmp_path: Path, model_path: Path, how: str, status: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, str(script), str(tmp_path), str(model_path), how]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    run = open_run(tmp_path / "run")
    assert run.status() == status, done.stderr[-2000:]
    records = list(run.records(detail=True))
    assert [record.step for record in records] == [1, 2, 3]
    assert all(len(record.rollouts) == 8 and record.observations for record in records)
    if how == "error":
        assert run.events()[-1].detail == "ZeroDivisionError: ordinary"


def test_what_is_misconfigured_fails_before_the_first_step(tmp_path: Path, model_path: Path, tokenizer: Any) -> None:
    from collapsewatch.plugins import UnknownPlugin

    with pytest.raises(UnknownPlugin, match="hermes"):
        CollapseCallback(tmp_path, chat_format="nonesuch")
    with pytest.raises(UnknownPlugin, match="erroneous"):
        CollapseCallback(tmp_path, intervention="nonesuch")

    def never(**_: Any) -> list[float]:
        raise AssertionError("a step began")

    with pytest.raises(ValueError, match="got no expert"):
        train(tmp_path, model_path, tokenizer, CollapseCallback(tmp_path, intervention="erroneous"), reward=never)
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match="taken"):
        train(tmp_path, model_path, tokenizer, CollapseCallback(tmp_path, "taken"), reward=never)
    with pytest.raises(TypeError, match="got Trainer, expected a GRPOTrainer"):
        CollapseCallback(tmp_path).attach(Trainer(Qwen2ForCausalLM.from_pretrained(model_path)))
    with pytest.raises(RuntimeError, match="attach"):
        CollapseCallback(tmp_path).on_train_begin(None, None, None)  # type: ignore[arg-type]
